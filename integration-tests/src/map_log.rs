//! Every map that any coordinator has shown since the log began: what a test may
//! say about all of them, and not only about the last.

use anyhow::{Context, Result, bail, ensure};
use cluster_core::collection::CollectionState;
use cluster_core::ids::{LeaseEpoch, MapVersion};
use cluster_core::invariants::{check_map, check_successor};
use cluster_core::map::{PartitionMap, ReplicaState};
use proto::v1::WatchMapRequest;
use proto::v1::coordinator_client::CoordinatorClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const RETRY_EVERY: Duration = Duration::from_millis(50);
const POLL_EVERY: Duration = Duration::from_millis(2);

type Maps = BTreeMap<(LeaseEpoch, MapVersion), PartitionMap>;

/// Coordinators leave out versions when they come too fast for a stream; from
/// three streams few are lost.
pub struct MapLog {
    seen: Arc<Mutex<Maps>>,
    following: Vec<JoinHandle<()>>,
}

impl MapLog {
    /// Inside a runtime.
    pub(crate) fn follow(coordinators: Vec<CoordinatorClient<Channel>>) -> Self {
        let seen = Arc::new(Mutex::new(Maps::new()));
        let following = coordinators
            .into_iter()
            .map(|coordinator| tokio::spawn(follow(coordinator, seen.clone())))
            .collect();
        Self { seen, following }
    }

    pub fn newest(&self) -> Option<PartitionMap> {
        let seen = self.seen.lock().expect("no panic while held");
        seen.last_key_value().map(|(_, map)| map.clone())
    }

    /// Waits until the newest map is as wanted.
    pub fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        is_wanted: impl Fn(&PartitionMap) -> bool,
    ) -> Result<PartitionMap> {
        let deadline = Instant::now() + limit;
        loop {
            match self.newest() {
                Some(map) if is_wanted(&map) => return Ok(map),
                _ if Instant::now() < deadline => std::thread::sleep(POLL_EVERY),
                None => bail!("no coordinator has shown a map within {limit:?}"),
                Some(map) => bail!("not within {limit:?}: {what}; {:#?}", map.partitions),
            }
        }
    }

    /// What holds of every map and of one after another, and that no partition of a finished collection
    /// ever had fewer than `replicas` that serve.
    pub fn assert_always_served(&self, replicas: usize) -> Result<()> {
        let seen = self.seen.lock().expect("no panic while held");
        ensure!(!seen.is_empty(), "no map was seen");
        for (before, after) in seen.values().zip(seen.values().skip(1)) {
            check_successor(before, after)?;
        }
        for ((epoch, version), map) in seen.iter() {
            check_map(map).with_context(|| format!("epoch {epoch}, version {version}"))?;
            for partition in map.partitions.values() {
                let is_ready = map
                    .collections
                    .get(&partition.collection)
                    .is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }));
                let serving = partition.in_state(ReplicaState::Serving).count();
                ensure!(
                    !is_ready || serving >= replicas,
                    "{serving} replicas serve in epoch {epoch}, version {version}: {partition:?}"
                );
            }
        }
        Ok(())
    }
}

impl Drop for MapLog {
    fn drop(&mut self) {
        for task in &self.following {
            task.abort();
        }
    }
}

async fn follow(mut coordinator: CoordinatorClient<Channel>, seen: Arc<Mutex<Maps>>) {
    loop {
        if let Ok(answer) = coordinator.watch_map(WatchMapRequest {}).await {
            let mut maps = answer.into_inner();
            while let Ok(Some(map)) = maps.message().await {
                let Ok(map) = PartitionMap::try_from(map) else {
                    break;
                };
                let mut seen = seen.lock().expect("no panic while held");
                seen.insert(map.stamp(), map);
            }
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}
