//! Replicas that come, go and fall behind while the stream goes on.
#![allow(clippy::unwrap_used)]

use super::progress::{Following, Promotions, RunEnd};
use super::router_tests::{C, end, following, map, set_state};
use super::testing::{P, World, key};
use crate::config::Config;
use cluster_core::ids::*;
use cluster_core::map::{HashRange, ReplicaState};
use cluster_core::wal_position::Lsn;

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
async fn p2_one_that_is_being_filled_and_lacks_what_leads_to_the_slot_is_left_out() {
    let mut world = World::new(Config::default(), map(false), Promotions::default());
    world.open(1, &[(1, 10, false), (2, 10, false)]).unwrap();
    // The second has nothing yet, and lacks nothing.
    world.open(2, &[(1, 9, false), (2, 0, false)]).unwrap();
    assert_eq!(world.feed(2).below_slot(), [(key(2), end(9), end(10))]);
    assert!(world.ends.try_recv().is_err(), "the others go on");
    world.commit(20).await;
    assert_eq!(world.sent(1, 1), ["0..20"]);
    assert!(world.sent(2, 1).is_empty());
    world.commit(30).await;
    assert_eq!(world.sent(2, 2), ["20..30"]);
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
