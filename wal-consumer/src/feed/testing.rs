//! The consumer's side of two partitions on two nodes, for tests: nodes say what the test says.
#![allow(clippy::unwrap_used)]

use super::node::NodeFeed;
use super::progress::{Following, Progress, Promotions, RunEnd};
use super::queue::Report;
use super::router::Router;
use super::router_tests::{C, end, following, map, set_state};
use crate::config::Config;
use cluster_core::change::{Change, PositionedChange};
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::*;
use cluster_core::map::{PartitionMap, Replica, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use proto::v1::apply_request::Kind;
use std::sync::Arc;
use tokio::sync::mpsc;

pub(super) const P: PartitionId = PartitionId(1);
const S: SourceId = SourceId(1);

pub(super) struct World {
    pub(super) router: Router,
    pub(super) progress: Arc<Progress>,
    pub(super) ends: mpsc::Receiver<RunEnd>,
    pub(super) map: PartitionMap,
}

impl World {
    pub(super) fn new(config: Config, map: PartitionMap, promotions: Promotions) -> Self {
        Self::following(following(), config, map, promotions)
    }

    pub(super) fn following(
        following: Following,
        config: Config,
        map: PartitionMap,
        promotions: Promotions,
    ) -> Self {
        let (progress, ends) = Progress::new(following, promotions);
        let mut router = Router::new(Arc::new(config), progress.clone());
        router.add_collection(&map, C);
        let mut world = Self {
            router,
            progress,
            ends,
            map,
        };
        world.router.take_new_feeds();
        world
    }

    /// Both partitions on nodes 1 and 2, which are up and durable up to 10.
    pub(super) fn settled() -> Self {
        let world = Self::new(Config::default(), map(true), Promotions::default());
        for node in [1, 2] {
            let held = [(1, 10, false), (2, 10, false)];
            world.open(node, &held).unwrap();
        }
        world
    }

    pub(super) fn feed(&self, node: u64) -> Arc<NodeFeed> {
        self.router.feed(NodeId(node)).unwrap().clone()
    }

    /// The node answers, and holds partitions up to a position (0: with nothing in
    /// them), or learns them.
    pub(super) fn open(&self, node: u64, held: &[(u64, u64, bool)]) -> Result<(), String> {
        let partitions = held.iter().map(|(partition, lsn, is_learning)| {
            let durable = match lsn {
                0 => WalPosition::ZERO,
                lsn => end(*lsn),
            };
            let applied = match is_learning {
                true => WalPosition::ZERO,
                false => durable,
            };
            v1::PartitionWatermark {
                partition_id: *partition,
                generation: 1,
                applied: Some(applied.into()),
                durable: Some(durable.into()),
                is_learning: *is_learning,
            }
        });
        let partitions = partitions.collect();
        self.feed(node).take_opened(v1::ApplyOpened { partitions })
    }

    pub(super) fn reports(&self, node: u64, partition: u64, lsn: u64, is_learning: bool) {
        self.feed(node).report(Report {
            partition: PartitionId(partition),
            generation: Generation(1),
            applied: match is_learning {
                true => WalPosition::ZERO,
                false => end(lsn),
            },
            durable: end(lsn),
            is_learning,
        });
    }

    pub(super) fn all_durable(&self, nodes: &[u64], lsn: u64) {
        for node in nodes {
            for partition in [1, 2] {
                self.reports(*node, partition, lsn, false);
            }
        }
    }

    /// A TRUNCATE that commits at `lsn` concerns both partitions.
    pub(super) async fn commit(&mut self, lsn: u64) {
        let change = PositionedChange {
            position: WalPosition::new(Incarnation(1), Lsn(lsn), 1),
            xid: 700,
            change: Change::Truncate,
        };
        self.router.route(C, change).await;
        self.router.flush(Lsn(lsn)).await;
    }

    pub(super) fn rest(&self, lsn: u64) {
        self.router.nothing_else(Lsn(lsn), None);
    }

    /// What has been sent to a node of a partition, and of the rest.
    pub(super) fn sent(&self, node: u64, partition: u64) -> Vec<String> {
        let kinds = self.feed(node).drain_for_test();
        let lsn = |p: Option<v1::WalPosition>| WalPosition::from(p.unwrap()).commit_end.0;
        let described = |kind| match kind {
            Kind::Batch(b) if b.partition_id == partition => {
                Some(format!("{}..{}", lsn(b.previous), lsn(b.to)))
            }
            Kind::Attach(a) if a.partition_id == partition => {
                Some(format!("attach {} from {}", a.generation, lsn(a.from)))
            }
            Kind::NothingElse(n) => Some(match n.except_partition_ids.contains(&partition) {
                true => format!("not {}", lsn(n.to)),
                false => format!("rest {}", lsn(n.to)),
            }),
            _ => None,
        };
        kinds.into_iter().filter_map(described).collect()
    }

    pub(super) fn follow(&mut self) -> Result<(), CollectionId> {
        self.router.follow_map(&self.map, S)
    }

    pub(super) fn set(&mut self, node: u64, state: ReplicaState) {
        set_state(&mut self.map, P, node, state);
    }

    pub(super) fn add(&mut self, node: u64, generation: u64, state: ReplicaState) {
        let mut described = self.map.nodes[&NodeId(1)].clone();
        described.id = NodeId(node);
        self.map.nodes.insert(described.id, described);
        let replica = Replica {
            node: NodeId(node),
            generation: Generation(generation),
            state,
        };
        let partition = self.map.partitions.get_mut(&P).unwrap();
        partition.replicas.push(replica);
    }

    /// P learns on node 3, attached at 10.
    pub(super) fn learning() -> Self {
        let mut world = Self::settled();
        world.add(3, 1, ReplicaState::Learner);
        world.follow().unwrap();
        world.open(3, &[]).unwrap();
        world.rest(10);
        world
    }

    /// P on node 3 is counted and durable up to 20, like all.
    pub(super) async fn counted() -> Self {
        let mut world = Self::learning();
        world.commit(20).await;
        world.rest(20);
        world.all_durable(&[1, 2], 20);
        world.reports(3, 1, 20, false);
        assert_eq!(world.feed(3).counted(), [key(3)]);
        assert_eq!((world.router.learners(), world.router.counted()), (0, 1));
        world
    }

    pub(super) fn ended(&mut self) -> Option<String> {
        match self.ends.try_recv() {
            Ok(RunEnd::Restart { label, .. }) => Some(label.to_owned()),
            Ok(other) => Some(other.to_string()),
            Err(_) => None,
        }
    }
}

pub(super) fn key(node: u64) -> ReplicaKey {
    ReplicaKey {
        partition: P,
        node: NodeId(node),
        generation: Generation(1),
    }
}
