//! Learners: attached, counted, promoted, or begun anew while the stream goes on.
#![allow(clippy::unwrap_used)]

use super::progress::Promotions;
use super::router_tests::{end, map, set_state};
use super::testing::{P, World, key};
use crate::config::Config;
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::Lsn;
use proto::v1;
use std::time::Duration;

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
