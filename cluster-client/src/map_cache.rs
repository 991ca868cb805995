//! The partition map as this process knows it. It only ever gets newer (P6).

use arc_swap::ArcSwap;
use cluster_core::ids::{LeaseEpoch, MapVersion};
use cluster_core::map::PartitionMap;
use std::sync::Arc;
use tokio::sync::watch;

pub struct MapCache {
    // Read on every search: a pointer load, where the watch takes a lock.
    current: ArcSwap<PartitionMap>,
    changes: watch::Sender<Arc<PartitionMap>>,
}

impl Default for MapCache {
    fn default() -> Self {
        let empty = Arc::new(PartitionMap::default());
        Self {
            current: ArcSwap::new(empty.clone()),
            changes: watch::Sender::new(empty),
        }
    }
}

impl MapCache {
    pub fn get(&self) -> Arc<PartitionMap> {
        self.current.load_full()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.changes.subscribe()
    }

    /// Takes a map if it supersedes the one held; answers whether it did.
    pub fn offer(&self, map: PartitionMap) -> bool {
        let map = Arc::new(map);
        // The watch's lock orders concurrent offers.
        self.changes.send_if_modified(|held| {
            let is_newer = held.is_superseded_by(&map);
            if is_newer {
                *held = map.clone();
                self.current.store(map.clone());
            }
            is_newer
        })
    }

    pub fn is_at_least(&self, wanted: (LeaseEpoch, MapVersion)) -> bool {
        let held = self.current.load();
        (held.epoch, held.version) >= wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(epoch: u64, version: u64) -> PartitionMap {
        PartitionMap {
            epoch: LeaseEpoch(epoch),
            version: MapVersion(version),
            ..PartitionMap::default()
        }
    }

    #[test]
    fn p6_only_superseding_maps_are_taken() {
        let cache = MapCache::default();
        let watch = cache.watch();
        assert!(cache.offer(map(2, 7)));
        assert!(!cache.offer(map(2, 7)));
        assert!(!cache.offer(map(2, 6)));
        assert!(!cache.offer(map(1, 99)));
        assert!(cache.offer(map(3, 7)));
        assert!(cache.is_at_least((LeaseEpoch(3), MapVersion(7))));
        assert!(!cache.is_at_least((LeaseEpoch(3), MapVersion(8))));
        assert_eq!(watch.borrow().epoch, LeaseEpoch(3));
        assert_eq!(cache.get().epoch, LeaseEpoch(3));
    }
}
