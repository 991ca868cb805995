//! Partitions that are being split, as the map has them.

use super::Observed;
use super::words;
use cluster_core::ids::PartitionId;
use cluster_core::map::{ReplicaState, Split};
use serde::Serialize;

#[derive(Serialize)]
pub struct RunningSplit {
    partition: u64,
    /// Of the replicas of both halves, how many serve.
    serving: usize,
    replicas: usize,
}

impl RunningSplit {
    fn of((partition, split): (&PartitionId, &Split)) -> Self {
        let halves = split.halves();
        let serving = halves
            .iter()
            .map(|half| half.in_state(ReplicaState::Serving).count());
        Self {
            partition: partition.0,
            serving: serving.sum(),
            replicas: halves.iter().map(|half| half.replicas.len()).sum(),
        }
    }

    pub fn sentence(&self) -> String {
        format!(
            "partition {} is being split: {} of {} of its halves serve",
            self.partition,
            self.serving,
            words::counted(self.replicas, "replica")
        )
    }
}

impl Observed {
    pub fn running_splits(&self) -> Vec<RunningSplit> {
        self.map.splits.iter().map(RunningSplit::of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{observed, split};
    use cluster_core::map::ReplicaState::Serving;

    #[test]
    fn a_split_says_how_many_of_its_halves_replicas_serve() {
        let mut seen = observed(2, &[&[(1, 1, Serving), (2, 2, Serving)]]);
        split(&mut seen, 1, &[1, 2]);
        let sentences: Vec<_> = seen.running_splits().iter().map(|s| s.sentence()).collect();
        assert_eq!(
            sentences,
            ["partition 1 is being split: 1 of 4 replicas of its halves serve"]
        );
    }
}
