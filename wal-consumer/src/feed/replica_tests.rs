//! Replicas that come, go, learn and fall behind while the stream goes on.
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
use cluster_core::map::{HashRange, PartitionMap, Replica, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use proto::v1::apply_request::Kind;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const P: PartitionId = PartitionId(1);
const S: SourceId = SourceId(1);

pub(super) struct World {
    pub(super) router: Router,
    progress: Arc<Progress>,
    ends: mpsc::Receiver<RunEnd>,
    pub(super) map: PartitionMap,
}

impl World {
    fn new(config: Config, map: PartitionMap, promotions: Promotions) -> Self {
        Self::following(following(), config, map, promotions)
    }

    fn following(
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

    fn feed(&self, node: u64) -> Arc<NodeFeed> {
        self.router.feed(NodeId(node)).unwrap().clone()
    }

    /// The node answers, and holds partitions up to a position, or learns them.
    fn open(&self, node: u64, held: &[(u64, u64, bool)]) -> Result<(), String> {
        let partitions = held.iter().map(|(partition, lsn, is_learning)| {
            let applied = match is_learning {
                true => WalPosition::ZERO,
                false => end(*lsn),
            };
            v1::PartitionWatermark {
                partition_id: *partition,
                generation: 1,
                applied: Some(applied.into()),
                durable: Some(end(*lsn).into()),
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

    fn all_durable(&self, nodes: &[u64], lsn: u64) {
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

    fn set(&mut self, node: u64, state: ReplicaState) {
        set_state(&mut self.map, P, node, state);
    }

    fn add(&mut self, node: u64, generation: u64, state: ReplicaState) {
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
    fn learning() -> Self {
        let mut world = Self::settled();
        world.add(3, 1, ReplicaState::Learner);
        world.follow().unwrap();
        world.open(3, &[]).unwrap();
        world.rest(10);
        world
    }

    /// P on node 3 is counted and durable up to 20, like all.
    async fn counted() -> Self {
        let mut world = Self::learning();
        world.commit(20).await;
        world.rest(20);
        world.all_durable(&[1, 2], 20);
        world.reports(3, 1, 20, false);
        assert_eq!(world.feed(3).counted(), [key(3)]);
        assert_eq!((world.router.learners(), world.router.counted()), (0, 1));
        world
    }

    fn ended(&mut self) -> Option<String> {
        match self.ends.try_recv() {
            Ok(RunEnd::Restart { label, .. }) => Some(label.to_owned()),
            Ok(other) => Some(other.to_string()),
            Err(_) => None,
        }
    }
}

fn key(node: u64) -> ReplicaKey {
    ReplicaKey {
        partition: P,
        node: NodeId(node),
        generation: Generation(1),
    }
}

#[tokio::test]
async fn p4_a_new_learner_is_attached_where_everything_has_been_routed() {
    let mut world = World::settled();
    world.commit(20).await;
    world.add(3, 1, ReplicaState::Learner);
    world.follow().unwrap();
    assert_eq!(world.router.take_new_feeds().len(), 1);
    assert_eq!((world.router.learners(), world.router.counted()), (1, 0));
    // Its node is not reached yet.
    world.rest(20);
    world.commit(30).await;
    assert!(!world.router.can_attach());
    world.open(3, &[]).unwrap();
    assert!(world.router.can_attach());
    world.rest(30);
    world.commit(40).await;
    assert_eq!(
        world.sent(3, 1),
        ["not 20", "attach 1 from 30", "rest 30", "30..40"]
    );
    assert_eq!(
        world.sent(1, 1),
        ["10..20", "rest 20", "20..30", "rest 30", "30..40"]
    );
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p2_the_slot_waits_for_a_learner_once_it_is_counted_and_not_before() {
    let mut world = World::learning();
    world.commit(20).await;
    world.rest(20);
    world.all_durable(&[1, 2], 20);
    world.reports(3, 1, 15, true);
    assert_eq!(world.progress.confirmed(), Lsn(20));
    // What it has logged is not what it has.
    world.reports(3, 1, 20, true);
    assert!(world.feed(3).counted().is_empty());
    world.reports(3, 1, 20, false);
    assert_eq!(world.feed(3).counted(), [key(3)]);
    assert!(world.progress.is_being_promoted(key(3)));
    world.commit(30).await;
    world.rest(30);
    world.all_durable(&[1, 2], 30);
    assert_eq!(world.progress.confirmed(), Lsn(20));
    world.reports(3, 1, 30, false);
    assert_eq!(world.progress.confirmed(), Lsn(30));
}

#[tokio::test]
async fn p2_confirmation_pauses_for_a_learner_that_is_nearly_there_but_not_for_ever() {
    let mut world = World::learning();
    world.commit(20).await;
    world.rest(20);
    world.all_durable(&[1, 2], 20);
    world.reports(3, 1, 15, false);
    world.commit(30).await;
    world.rest(30);
    world.all_durable(&[1, 2], 30);
    assert_eq!(world.progress.confirmed(), Lsn(20));
    world.feed(3).review_learners(Duration::from_secs(60));
    assert_eq!(world.progress.confirmed(), Lsn(20));
    world.feed(3).review_learners(Duration::ZERO);
    assert_eq!(world.progress.confirmed(), Lsn(30));
    assert!(world.feed(3).counted().is_empty());
    world.reports(3, 1, 30, false);
    assert_eq!(world.feed(3).counted(), [key(3)]);
}

#[tokio::test]
async fn p2_a_promoted_learner_takes_the_place_of_one_that_is_fed_on_and_then_let_go() {
    let mut world = World::counted().await;
    world.set(3, ReplicaState::Serving);
    world.set(1, ReplicaState::Releasing);
    world.follow().unwrap();
    assert!(!world.progress.is_being_promoted(key(3)));
    assert!(world.feed(3).counted().is_empty());
    world.sent(1, 1);
    world.commit(30).await;
    world.rest(30);
    assert_eq!(world.sent(1, 1), ["20..30", "rest 30"]);
    world.reports(1, 2, 30, false);
    world.all_durable(&[2], 30);
    assert_eq!(world.progress.confirmed(), Lsn(20), "waits for node 3");
    world.sent(3, 1);
    world.reports(3, 1, 30, false);
    assert_eq!(world.progress.confirmed(), Lsn(30), "not for node 1");
    let replicas = &mut world.map.partitions.get_mut(&P).unwrap().replicas;
    replicas.retain(|r| r.node != NodeId(1));
    world.follow().unwrap();
    world.commit(40).await;
    world.rest(40);
    assert_eq!(world.sent(1, 1), ["not 40"]);
    // A new stream needs no attaching.
    world.open(3, &[(1, 30, false)]).unwrap();
    assert_eq!(world.sent(3, 1), ["30..40", "rest 40"]);
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p2_whoever_takes_a_place_is_waited_for_before_the_other_is_let_go() {
    let mut world = World::learning();
    world.commit(20).await;
    world.rest(20);
    world.all_durable(&[2], 20);
    world.reports(1, 2, 20, false);
    world.reports(3, 1, 15, true);
    assert_eq!(world.progress.confirmed(), Lsn(10), "waits for node 1");
    // Promoted, as this run learns by the map alone.
    world.set(3, ReplicaState::Serving);
    world.set(1, ReplicaState::Releasing);
    world.follow().unwrap();
    assert_eq!(world.progress.confirmed(), Lsn(10), "waits for node 3");
    world.reports(3, 1, 20, false);
    assert_eq!(world.progress.confirmed(), Lsn(20));
}

#[tokio::test]
async fn p2_a_learner_that_stands_where_it_is_attached_is_counted_without_a_word_more() {
    let mut world = World::settled();
    world.add(3, 1, ReplicaState::Learner);
    world.follow().unwrap();
    world.open(3, &[(1, 10, false)]).unwrap();
    world.feed(3).review_learners(Duration::from_secs(60));
    assert!(world.feed(3).counted().is_empty(), "not attached");
    world.rest(10);
    world.feed(3).review_learners(Duration::from_secs(60));
    assert_eq!(world.feed(3).counted(), [key(3)]);
}

#[tokio::test]
async fn p2_what_a_learner_held_before_it_was_attached_anew_does_not_count() {
    let mut world = World::learning();
    world.commit(20).await;
    // Live, but its queue is dropped before it was seen so.
    let feed = world.feed(3);
    feed.detach(&mut feed.state.lock(), P);
    world.rest(20);
    world.reports(3, 1, 15, false);
    assert!(world.feed(3).counted().is_empty());
    assert_eq!(world.progress.confirmed(), Lsn(10));
    world.all_durable(&[1, 2], 20);
    assert_eq!(world.progress.confirmed(), Lsn(20), "nor pauses anything");
}

#[tokio::test]
async fn p2_a_refused_promotion_is_counted_no_longer_and_not_tried_again() {
    let mut world = World::counted().await;
    world.feed(3).promotion_refused(key(3));
    world.commit(30).await;
    world.rest(30);
    world.all_durable(&[1, 2], 30);
    assert_eq!(world.progress.confirmed(), Lsn(30));
    world.reports(3, 1, 30, false);
    assert!(world.feed(3).counted().is_empty());
}

#[tokio::test]
async fn p2_what_may_have_been_promoted_is_counted_by_the_next_run() {
    let mut begun = map(true);
    let replicas = &mut begun.partitions.get_mut(&P).unwrap().replicas;
    replicas[1].state = ReplicaState::Learner;
    let promotions = Promotions::default();
    promotions.lock().insert(key(2));
    let world = World::new(Config::default(), begun.clone(), promotions.clone());
    world.open(1, &[(1, 10, false), (2, 10, false)]).unwrap();
    world.open(2, &[(1, 10, false), (2, 10, false)]).unwrap();
    assert_eq!(world.feed(2).counted(), [key(2)]);
    world.rest(20);
    world.all_durable(&[1], 20);
    world.reports(2, 2, 20, false);
    assert_eq!(world.progress.confirmed(), Lsn(10));
    set_state(&mut begun, P, 2, ReplicaState::Serving);
    world.progress.settle_promotions(&begun);
    assert!(promotions.lock().is_empty());
}

#[tokio::test]
async fn p4_a_run_that_begins_with_a_learner_attaches_it_at_its_start() {
    let mut begun = map(true);
    set_state(&mut begun, P, 2, ReplicaState::Learner);
    let mut world = World::new(Config::default(), begun, Promotions::default());
    world.commit(20).await;
    world.rest(20);
    world.open(2, &[(1, 5, true), (2, 10, false)]).unwrap();
    assert_eq!(world.sent(2, 1), ["attach 1 from 10", "10..20", "rest 20"]);
    world.open(1, &[(1, 10, false), (2, 10, false)]).unwrap();
    world.all_durable(&[1], 20);
    world.reports(2, 2, 20, false);
    assert_eq!(world.progress.confirmed(), Lsn(20), "nobody waits for it");
    assert_eq!(world.ended(), None, "nor misses what it lacks");
}

#[tokio::test]
async fn p2_a_demoted_replica_is_neither_fed_nor_waited_for_and_learns_anew() {
    let mut world = World::settled();
    world.sent(2, 1);
    world.commit(20).await;
    world.rest(20);
    world.all_durable(&[1], 20);
    world.reports(2, 2, 20, false);
    assert_eq!(world.progress.confirmed(), Lsn(10));
    world.set(2, ReplicaState::Demoted);
    world.follow().unwrap();
    assert_eq!(world.progress.confirmed(), Lsn(20));
    world.commit(30).await;
    world.rest(30);
    assert_eq!(world.sent(2, 1), ["not 20", "not 30"]);
    // The same node, another generation.
    let replicas = &mut world.map.partitions.get_mut(&P).unwrap().replicas;
    replicas.retain(|r| r.node != NodeId(2));
    world.add(2, 7, ReplicaState::Learner);
    world.follow().unwrap();
    world.reports(2, 1, 90, false);
    world.rest(30);
    assert_eq!(world.sent(2, 1), ["attach 7 from 30", "rest 30"]);
    assert!(world.feed(2).counted().is_empty(), "an older generation");
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p11_the_slot_passes_a_stale_replica_which_is_of_no_interest_when_it_is_back() {
    let mut world = World::settled();
    world.sent(2, 1);
    world.commit(20).await;
    world.rest(20);
    world.reports(1, 1, 10, false);
    world.reports(1, 2, 20, false);
    world.reports(2, 2, 20, false);
    assert_eq!(world.progress.confirmed(), Lsn(10));
    let held = |world: &World, node| -> Vec<u64> {
        let holders = world.feed(node).holders(Lsn(20));
        holders.iter().map(|holder| holder.held_bytes).collect()
    };
    assert_eq!(
        (held(&world, 1), held(&world, 2)),
        (vec![10, 0], vec![10, 0])
    );
    // The map shows one; of the other the consumer has heard the answer.
    world.set(1, ReplicaState::Stale);
    world.follow().unwrap();
    assert_eq!(
        world.progress.confirmed(),
        Lsn(10),
        "the other still counts"
    );
    world.feed(2).retire(P, Generation(1));
    assert_eq!(world.progress.confirmed(), Lsn(20));
    world.set(2, ReplicaState::Stale);
    world.follow().unwrap();
    assert_eq!((held(&world, 1), held(&world, 2)), (vec![0], vec![0]));
    world.commit(30).await;
    world.rest(30);
    assert_eq!(world.sent(2, 1), ["not 20", "not 30"]);
    // Their nodes answer again, far behind.
    world.open(2, &[(1, 5, false), (2, 20, false)]).unwrap();
    world.reports(2, 1, 5, false);
    world.all_durable(&[1, 2], 30);
    assert_eq!(world.progress.confirmed(), Lsn(30));
    assert!(world.feed(2).below_slot().is_empty());
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p11_a_run_whose_partition_has_only_stale_replicas_feeds_the_others() {
    let mut begun = map(true);
    for node in [1, 2] {
        set_state(&mut begun, P, node, ReplicaState::Stale);
    }
    let mut world = World::new(Config::default(), begun, Promotions::default());
    for node in [1, 2] {
        world.open(node, &[(1, 5, false), (2, 10, false)]).unwrap();
    }
    world.commit(20).await;
    world.rest(20);
    assert_eq!(world.sent(1, 1), ["not 20"]);
    world.all_durable(&[1, 2], 20);
    assert_eq!(world.progress.confirmed(), Lsn(20));
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p2_a_run_that_begins_with_a_demoted_replica_excepts_it() {
    let mut begun = map(true);
    set_state(&mut begun, P, 2, ReplicaState::Demoted);
    let mut world = World::new(Config::default(), begun, Promotions::default());
    world.commit(20).await;
    world.rest(20);
    assert_eq!(world.sent(2, 1), ["not 20"]);
    assert_eq!(world.sent(1, 1), ["10..20", "rest 20"]);
}

#[tokio::test]
async fn only_what_this_run_has_never_fed_makes_the_source_start_over() {
    let mut world = World::settled();
    world.add(3, 1, ReplicaState::Serving);
    assert_eq!(world.follow(), Err(C));

    let mut world = World::settled();
    let replicas = &mut world.map.partitions.get_mut(&P).unwrap().replicas;
    replicas[0].generation = Generation(2);
    assert_eq!(world.follow(), Err(C));

    let mut world = World::settled();
    world.map.partitions.get_mut(&P).unwrap().range = HashRange { lo: 0, hi: 7 };
    assert_eq!(world.follow(), Err(C));

    // It was never attached, and yet it serves.
    let mut world = World::settled();
    world.add(3, 1, ReplicaState::Learner);
    world.follow().unwrap();
    world.set(3, ReplicaState::Serving);
    assert_eq!(world.follow(), Err(C));
}

#[tokio::test]
async fn the_feed_of_a_node_that_holds_nothing_more_is_ended() {
    let mut world = World::learning();
    let feed = world.feed(3);
    let feeds = world.router.watch_feeds();
    assert_eq!(feeds.borrow().len(), 3);
    let replicas = &mut world.map.partitions.get_mut(&P).unwrap().replicas;
    replicas.retain(|r| r.node != NodeId(3));
    world.follow().unwrap();
    assert!(world.router.feed(NodeId(3)).is_none());
    assert!(feed.ended.is_cancelled());
    assert_eq!(feeds.borrow().len(), 2);
}

#[tokio::test]
async fn p10_a_learner_whose_node_is_away_fills_its_share_and_begins_anew() {
    let mut begun = map(true);
    set_state(&mut begun, P, 2, ReplicaState::Learner);
    let config = Config {
        learner_queue_bytes: 4_000,
        ..Config::default()
    };
    let mut world = World::new(config, begun, Promotions::default());
    for lsn in 20..40 {
        world.commit(lsn).await;
        let queued = world.feed(2).state.lock().queue.learner_bytes();
        assert!(queued < 3_000, "{queued}");
    }
    // Partition 2 on the same node is not given up with it.
    world.rest(39);
    world.open(2, &[(1, 15, true), (2, 10, false)]).unwrap();
    world.rest(39);
    world.commit(50).await;
    let sent = world.sent(2, 2);
    assert_eq!(sent.first().unwrap(), "10..20");
    assert_eq!(world.ended(), None);
    world.open(2, &[(1, 39, true), (2, 10, false)]).unwrap();
    let sent = world.sent(2, 1);
    assert_eq!(sent, ["attach 1 from 39", "rest 39", "rest 39", "39..50"]);
}

#[tokio::test]
async fn a_gap_of_a_learner_leads_to_a_new_beginning_and_not_to_the_sources() {
    let mut world = World::learning();
    let gap = |partition| v1::ApplyGap {
        partition_id: partition,
        watermark: Some(end(5).into()),
        previous: Some(end(10).into()),
    };
    assert!(world.feed(3).take_gap(gap(1)).is_err(), "a new stream");
    assert_eq!(world.ended(), None);
    world.commit(20).await;
    world.open(3, &[(1, 5, true)]).unwrap();
    world.rest(20);
    assert_eq!(world.sent(3, 1).last().unwrap(), "rest 20");
    world.open(3, &[(1, 5, true)]).unwrap();
    assert_eq!(world.sent(3, 1), ["attach 1 from 20", "rest 10", "rest 20"]);
    // Whoever is required has a gap that only the source can fill.
    assert!(world.feed(1).take_gap(gap(1)).is_err());
    assert_eq!(world.ended().as_deref(), Some("gap"));
    world.set(2, ReplicaState::Releasing);
    world.follow().unwrap();
    assert!(world.feed(2).take_gap(gap(1)).is_ok());
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p2_a_replica_below_the_slot_is_left_out_and_the_others_go_on() {
    let mut world = World::new(Config::default(), map(true), Promotions::default());
    world.commit(20).await;
    world.open(2, &[(1, 9, false), (2, 10, false)]).unwrap();
    assert_eq!(world.feed(2).below_slot(), [(key(2), end(9), end(10))]);
    assert_eq!(world.sent(2, 1), Vec::<String>::new());
    world.open(2, &[(1, 9, false), (2, 10, false)]).unwrap();
    assert_eq!(world.sent(2, 2), ["10..20"]);
    world.reports(2, 1, 30, false);
    assert_eq!(world.ended(), None);
    world.open(1, &[(1, 10, false), (2, 10, false)]).unwrap();
    world.rest(20);
    world.all_durable(&[1], 20);
    world.reports(2, 2, 20, false);
    assert_eq!(world.progress.confirmed(), Lsn(10), "the slot waits");
    // As when the coordinators have demoted it.
    world.feed(2).retire(P, Generation(1));
    assert_eq!(world.progress.confirmed(), Lsn(20));
    assert!(world.feed(2).below_slot().is_empty());
}

#[tokio::test]
async fn p2_a_replica_that_gives_its_place_when_the_run_begins_is_told_nothing() {
    // The slot has passed it, perhaps: "nothing else" would call it complete, and
    // whoever copies from it would miss rows.
    let mut map = map(true);
    set_state(&mut map, P, 1, ReplicaState::Releasing);
    let mut world = World::new(Config::default(), map, Promotions::default());
    world.open(1, &[(1, 5, false), (2, 10, false)]).unwrap();
    world.commit(20).await;
    world.rest(20);
    assert_eq!(world.sent(1, 1), ["not 20"]);
    world.open(1, &[(1, 5, false), (2, 10, false)]).unwrap();
    assert_eq!(world.sent(1, 2), ["10..20", "rest 20"]);
    // As little as one that was left behind before it gave its place.
    world.set(2, ReplicaState::Demoted);
    world.follow().unwrap();
    world.set(2, ReplicaState::Releasing);
    world.follow().unwrap();
    world.open(2, &[(1, 10, false), (2, 10, false)]).unwrap();
    world.commit(30).await;
    world.rest(30);
    assert!(world.sent(2, 1).iter().all(|sent| sent.starts_with("not ")));
    assert_eq!(world.ended(), None);
}

#[tokio::test]
async fn p10_a_full_queue_of_a_node_that_is_away_is_given_up_until_it_answers() {
    let config = Config {
        node_queue_bytes: 4_000,
        ..Config::default()
    };
    let mut world = World::new(config, map(true), Promotions::default());
    for lsn in 20..40 {
        world.commit(lsn).await;
        assert!(world.feed(2).state.lock().queue.bytes() < 3_000);
    }
    let observed = world.feed(2).observe(Lsn(40));
    assert!(observed.iter().all(|seen| seen.has_work && !seen.is_up));
    assert_eq!(world.ended(), None);
    world.open(2, &[(1, 10, false), (2, 10, false)]).unwrap();
    assert_eq!(world.ended().as_deref(), Some("replica_back"));
}

#[tokio::test]
async fn a_replica_that_its_node_does_not_hold_is_missed_and_demotion_ends_that() {
    let mut world = World::settled();
    world.open(2, &[(2, 10, false)]).unwrap();
    world.commit(20).await;
    world.rest(20);
    assert_eq!(world.sent(2, 1), ["not 20"]);
    let seen = world.feed(2).observe(Lsn(20));
    assert!(seen.iter().any(|s| s.replica == key(2) && s.has_work));
    world.set(2, ReplicaState::Demoted);
    world.follow().unwrap();
    assert!(
        world
            .feed(2)
            .observe(Lsn(20))
            .iter()
            .all(|s| s.replica != key(2))
    );
    // Back, and of no interest.
    world.reports(2, 1, 10, false);
    assert_eq!(world.ended(), None);
}

/// The server was put back while a node was away: what the node has is of another history.
#[tokio::test]
async fn p3_a_node_that_answers_late_with_more_than_the_server_had_ends_the_run() {
    let following = Following {
        flushed: Lsn(15),
        ..following()
    };
    let open = |routed: Option<u64>, held: u64| {
        let (config, promotions) = (Config::default(), Promotions::default());
        let mut world = World::following(following, config, map(true), promotions);
        if let Some(end) = routed {
            world.progress.routes(Lsn(end));
        }
        let opened = world.open(1, &[(1, held, false), (2, 10, false)]);
        (opened.is_ok(), world.ends.try_recv().ok())
    };
    assert!(matches!(open(None, 15), (true, None)));
    let (is_open, end) = open(None, 16);
    assert!(
        !is_open && matches!(end, Some(RunEnd::Restart { .. })),
        "{end:?}"
    );
    // A part of a transaction that this run is routing.
    assert!(matches!(open(Some(20), 20), (true, None)));
}
