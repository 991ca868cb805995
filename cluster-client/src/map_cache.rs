//! The partition map as this process knows it. It only ever gets newer (P6).

use arc_swap::ArcSwap;
use cluster_core::invariants::check_successor;
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

    /// Takes a map if it supersedes the one held; answers whether it did. One
    /// that takes a source's tokens back cannot come from the same cluster.
    pub fn offer(&self, map: PartitionMap) -> bool {
        let map = Arc::new(map);
        // The watch's lock orders concurrent offers.
        self.changes.send_if_modified(|held| {
            if !held.is_superseded_by(&map) {
                return false;
            }
            if let Err(violation) = check_successor(held, &map) {
                tracing::error!(%violation, "map refused; the one held stays");
                return false;
            }
            *held = map.clone();
            self.current.store(map.clone());
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_core::ids::{
        ConsumerEpoch, DsnVersion, Incarnation, LeaseEpoch, MapVersion, SourceId,
    };
    use cluster_core::map::Source;

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
        assert_eq!(watch.borrow().epoch, LeaseEpoch(3));
        assert_eq!(cache.get().epoch, LeaseEpoch(3));
    }

    #[test]
    fn p6_a_newer_map_that_takes_a_token_back_is_refused() {
        let with_token = |version, token| {
            let source = Source {
                id: SourceId(1),
                name: String::new(),
                incarnation: Incarnation(1),
                slot: None,
                slot_name: String::new(),
                publication_name: String::new(),
                server_start: None,
                slot_hold_limit_bytes: None,
                problem: String::new(),
                consumer: None,
                consumer_epoch: ConsumerEpoch(token),
                is_paused: false,
                dsn_version: DsnVersion(0),
            };
            let mut map = map(1, version);
            map.sources.insert(source.id, source);
            map
        };
        let cache = MapCache::default();
        assert!(cache.offer(with_token(1, 5)));
        assert!(!cache.offer(with_token(2, 4)));
        assert_eq!(cache.get().version, MapVersion(1));
        assert!(cache.offer(with_token(3, 5)));
    }
}
