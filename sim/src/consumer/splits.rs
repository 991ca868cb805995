//! Partitions that are being split: what goes to one goes to its halves too, until
//! they take its place or are given up. As the shell's router follows them.

use super::replicas::is_fed;
use super::run::Run;
use cluster_core::ids::{CollectionId, PartitionId};
use cluster_core::map::{HashRange, PartitionMap};

pub(super) type Ranges = Vec<(HashRange, PartitionId)>;

pub(super) fn ranges_of(map: &PartitionMap, id: CollectionId) -> Ranges {
    let partitions = map.partitions_of(id).into_iter();
    partitions.map(|p| (p.range, p.id)).collect()
}

impl Run {
    /// Halves take the place of what was split, or are given up. Both have been sent
    /// everything since they were attached, so that the stream goes on.
    pub(super) fn follow_splits(&mut self, map: &PartitionMap) {
        for parent in self.halves.keys().copied().collect::<Vec<_>>() {
            if map.splits.contains_key(&parent) {
                continue;
            }
            let halves = self.halves.remove(&parent).unwrap_or_default();
            if map.partitions.contains_key(&parent) {
                halves
                    .iter()
                    .for_each(|(_, half)| self.remove_partition(*half));
                continue;
            }
            self.remove_partition(parent);
            let is_of_it = |ranges: &&mut Ranges| ranges.iter().any(|(_, id)| *id == parent);
            if let Some(ranges) = self.collections.values_mut().find(is_of_it) {
                ranges.retain(|(_, known)| *known != parent);
                ranges.extend(halves);
                ranges.sort();
            }
        }
        let mut collections = self.collections.iter();
        if collections.any(|(id, ranges)| is_fed(map, *id) && *ranges != ranges_of(map, *id)) {
            self.end("the map has other partitions");
        }
        self.take_halves(map);
    }

    /// Notes the halves that the map has of what is routed.
    pub(super) fn take_halves(&mut self, map: &PartitionMap) {
        for (parent, split) in &map.splits {
            if self.collections.contains_key(&split.low.collection) {
                let halves = split.halves().into_iter();
                let halves = halves.map(|half| (half.range, half.id)).collect();
                self.halves.insert(*parent, halves);
            }
        }
    }

    pub(super) fn remove_partition(&mut self, id: PartitionId) {
        self.buffers.remove(&id);
        self.sent_to.remove(&id);
        for feed in self.feeds.values_mut() {
            feed.remove(id);
        }
    }

    /// Those in force, and halves of those.
    pub(super) fn routed_partitions(&self) -> Vec<PartitionId> {
        let in_force = self.collections.values().flatten();
        let halves = self.halves.values().flatten();
        in_force.chain(halves).map(|(_, id)| *id).collect()
    }
}
