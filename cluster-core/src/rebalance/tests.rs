//! One script a case: what is planned, in which order, what is given up.

use super::world::{DEAD_AFTER_MS, World};
use super::*;
use crate::collection::CollectionState;
use crate::control::{MoveReason, RebalanceMode};
use crate::ids::*;
use crate::lease::LeaseTerms;
use crate::map::ReplicaState::*;

fn n(node: u64) -> NodeId {
    NodeId(node)
}

/// One partition on each of the given lists of nodes.
fn world(zones: &[u8], replication_factor: u32, homes: &[&[u64]]) -> World {
    let mut world = World::new(zones, replication_factor);
    let collection = world.new_collection();
    for nodes in homes {
        let nodes: Vec<_> = nodes.iter().map(|node| n(*node)).collect();
        world.add_partition(collection, &nodes);
    }
    world
}

fn planned(partition: u64, from: Option<u64>, to: u64, reason: MoveReason) -> PlannedMove {
    PlannedMove {
        partition: PartitionId(partition),
        to: n(to),
        from: from.map(n),
        reason,
    }
}

const P: PartitionId = PartitionId(1);

#[test]
fn a_demoted_replica_returns_to_its_node_once_that_lives() {
    let mut world = world(&[0, 0, 0], 2, &[&[1, 2]]);
    world.set_state(P, n(2), Demoted);
    world.silence(n(2), 60_000);
    assert_eq!(world.plan().moves, [], "silent, not dead: wait");
    world.silence(n(2), 100);
    assert_eq!(
        world.plan().moves,
        [planned(1, None, 2, MoveReason::Repair)]
    );
}

#[test]
fn a_dead_nodes_replica_is_replaced_elsewhere() {
    for state in [Demoted, Serving] {
        let mut world = world(&[0, 0, 0], 2, &[&[1, 2]]);
        world.set_state(P, n(2), state);
        world.silence(n(2), DEAD_AFTER_MS);
        assert_eq!(world.plan().moves, [], "not for longer than the grace");
        world.silence(n(2), DEAD_AFTER_MS + 1);
        let plan = world.plan();
        assert_eq!(plan.moves, [planned(1, Some(2), 3, MoveReason::Repair)]);
        assert_eq!(plan.conflicts, []);
    }
}

#[test]
fn missing_replicas_come_when_nodes_do() {
    let mut world = world(&[0], 2, &[&[1], &[1]]);
    let plan = world.plan();
    assert_eq!(plan.moves, []);
    let few = Conflict::TooFewNodes {
        wanted: 2,
        nodes: 1,
    };
    assert_eq!(plan.conflicts, [few]);
    world.add_node(0);
    let add = |partition| planned(partition, None, 2, MoveReason::Repair);
    assert_eq!(world.plan().moves, [add(1), add(2)]);
}

#[test]
fn nothing_is_planned_that_has_nobody_to_copy_from() {
    let mut world = world(&[0, 0, 0], 2, &[&[1, 2]]);
    world.silence(n(1), 60_000);
    world.set_state(P, n(2), Demoted);
    assert_eq!(
        world.plan(),
        Plan::default(),
        "its only serving copy is silent"
    );
    world.silence(n(1), DEAD_AFTER_MS + 1);
    let plan = world.plan();
    assert_eq!(plan.moves, []);
    let lost = Conflict::Lost {
        partitions: 1,
        first: P,
    };
    assert_eq!(plan.conflicts, [lost]);
}

#[test]
fn the_partition_with_the_fewest_live_copies_is_repaired_first() {
    let mut world = world(&[0; 5], 3, &[&[1, 2], &[1, 2, 3], &[1]]);
    world.silence(n(3), DEAD_AFTER_MS + 1);
    let order: Vec<u64> = world.plan().moves.iter().map(|m| m.partition.0).collect();
    assert_eq!(order, [3, 1, 2]);
}

#[test]
fn a_drain_keeps_the_zones_and_says_what_it_cannot_move() {
    let mut world = world(&[0, 1, 1, 0], 2, &[&[1, 2], &[1, 3]]);
    world.drain(n(1));
    let drain = |partition| planned(partition, Some(1), 4, MoveReason::Drain);
    assert_eq!(world.plan().moves, [drain(1), drain(2)]);
    world.drain(n(4));
    let cross = [
        planned(1, Some(1), 3, MoveReason::Drain),
        planned(2, Some(1), 2, MoveReason::Drain),
    ];
    assert_eq!(world.plan().moves, cross, "no node of its zone stays");
    world.drain(n(3));
    let plan = world.plan();
    assert_eq!(plan.moves, [planned(2, Some(1), 2, MoveReason::Drain)]);
    let stuck = Conflict::CannotDrain {
        node: n(1),
        replicas: 1,
    };
    assert!(plan.conflicts.contains(&stuck), "{:?}", plan.conflicts);
}

#[test]
fn a_demoted_replica_on_a_draining_node_learns_elsewhere() {
    let mut world = world(&[0; 3], 2, &[&[1, 2]]);
    world.set_state(P, n(2), Demoted);
    world.drain(n(2));
    assert_eq!(
        world.plan().moves,
        [planned(1, Some(2), 3, MoveReason::Drain)]
    );
}

#[test]
fn a_stale_replica_beside_one_that_serves_learns_anew() {
    let mut world = world(&[0; 3], 2, &[&[1, 2]]);
    world.set_state(P, n(2), Stale);
    let returns = planned(1, None, 2, MoveReason::Repair);
    assert_eq!(world.plan().moves, [returns]);
    world.silence(n(2), DEAD_AFTER_MS + 1);
    let replaced = planned(1, Some(2), 3, MoveReason::Repair);
    assert_eq!(world.plan().moves, [replaced]);
}

#[test]
fn what_is_only_stale_is_reported_and_moved_by_nobody() {
    let mut world = world(&[0; 3], 2, &[&[1, 2]]);
    world.set_state(P, n(1), Stale);
    world.set_state(P, n(2), Stale);
    let stale = Conflict::Stale {
        partitions: 1,
        first: P,
    };
    assert_eq!(world.plan().conflicts, std::slice::from_ref(&stale));
    world.drain(n(1));
    world.silence(n(2), DEAD_AFTER_MS + 1);
    let plan = world.plan();
    assert_eq!(plan.moves, []);
    assert!(plan.conflicts.contains(&stale), "{:?}", plan.conflicts);
    let asked = planned(1, Some(1), 3, MoveReason::Operator);
    assert!(is_void(&asked, &world.map, &world.moves));
}

#[test]
fn a_learner_whose_last_source_became_stale_is_given_up() {
    let mut world = world(&[0; 2], 1, &[&[1]]);
    world.start(&planned(1, Some(1), 2, MoveReason::Operator));
    let given_up =
        |world: &World| cancellations(&world.map, &world.moves, &world.nodes, DEAD_AFTER_MS).len();
    assert_eq!(given_up(&world), 0);
    world.set_state(P, n(1), Stale);
    assert_eq!(given_up(&world), 1);
}

#[test]
fn what_builds_or_moves_is_left_alone() {
    let mut world = world(&[0; 3], 1, &[&[1], &[1]]);
    world.drain(n(1));
    world.start(&planned(1, Some(1), 2, MoveReason::Drain));
    let moves = world.plan().moves;
    assert_eq!(moves, [planned(2, Some(1), 3, MoveReason::Drain)]);
    let collection = world.map.collections.values_mut().next().expect("one");
    collection.state = CollectionState::Building {
        backfill: BackfillId(2),
    };
    assert_eq!(world.plan().moves, []);
}

#[test]
fn copies_that_share_a_zone_part_when_another_zone_comes() {
    let mut world = world(&[0, 0], 2, &[&[1, 2][..]; 9]);
    world.add_node(1);
    let plan = world.plan();
    assert_eq!(plan.moves.len(), 6, "a third of 18 replicas");
    assert_eq!(plan.conflicts, [Conflict::SharedZone { partitions: 3 }]);
    world.carry_out(&plan);
    assert_eq!(world.sharing_a_zone(), 3);
    assert_eq!(world.plan().moves, []);
}

#[test]
fn a_node_above_the_bound_for_its_zones_sake_is_reported() {
    let world = world(
        &[0, 1, 1, 1],
        2,
        &[&[1, 2], &[1, 3], &[1, 4], &[1, 2], &[1, 3]],
    );
    let plan = world.plan();
    assert_eq!(plan.moves, []);
    let over = Conflict::OverBound {
        node: n(1),
        replicas: 5,
        bound: 3,
    };
    assert_eq!(plan.conflicts, [over]);
}

/// Each zone holds every partition, so a node gets its part from its zone alone.
#[test]
fn a_node_that_joins_a_large_zone_gets_an_even_part_of_it() {
    let homes: Vec<[u64; 2]> = (0..40).map(|i| [i % 2 + 1, i % 4 + 3]).collect();
    let homes: Vec<&[u64]> = homes.iter().map(|home| &home[..]).collect();
    let mut world = world(&[0, 0, 1, 1, 1, 1], 2, &homes);
    let joined = world.add_node(1);
    let plan = world.plan();
    assert_eq!(plan.moves.len(), 8);
    world.carry_out(&plan);
    assert_eq!(
        world.load(joined),
        8,
        "a fifth of forty, below the mean of all"
    );
    assert_eq!(world.plan().moves, []);
}

#[test]
fn a_silent_node_neither_takes_nor_gives() {
    let mut world = world(&[0; 3], 1, &[&[1][..]; 9]);
    world.silence(n(2), 60_000);
    let takers: Vec<_> = world.plan().moves.iter().map(|m| m.to).collect();
    assert_eq!(takers, [n(3); 4], "up to the bound of all three");
    world.silence(n(1), 60_000);
    assert_eq!(world.plan().moves, []);
}

#[test]
fn modes_and_the_throttle_decide_what_starts() {
    let mut world = world(&[0; 4], 2, &[&[1, 2], &[1], &[1, 2], &[1, 2]]);
    world.drain(n(2));
    let plan = world.plan();
    let asked = [planned(4, Some(1), 3, MoveReason::Operator)];
    let reasons = |mode| {
        let moves = wanted(mode, &plan, &asked);
        moves
            .iter()
            .map(|m| (m.partition.0, m.reason))
            .collect::<Vec<_>>()
    };
    let expected = [
        (2, MoveReason::Repair),
        (1, MoveReason::Drain),
        (3, MoveReason::Drain),
        (4, MoveReason::Drain),
    ];
    assert_eq!(reasons(RebalanceMode::Auto), expected);
    assert_eq!(reasons(RebalanceMode::Manual), expected);
    assert_eq!(reasons(RebalanceMode::Paused), []);

    let throttle = Throttle {
        moves_max: 3,
        moves_per_node_max: 2,
    };
    let all = wanted(RebalanceMode::Auto, &plan, &asked);
    let first = admit(&all, &world.map, &world.moves, &world.nodes, throttle);
    assert_eq!(first, all[..3]);
    let roomy = Throttle {
        moves_max: 10,
        ..throttle
    };
    let of_node_2 = admit(&all, &world.map, &world.moves, &world.nodes, roomy);
    assert_eq!(of_node_2, all[..3], "node 2 gives two at once");
    world.start(&all[0]);
    world.start(&all[1]);
    let more = admit(&all, &world.map, &world.moves, &world.nodes, throttle);
    assert_eq!(more, all[2..3], "one is left, and node 2 gives one more");
    world.start(&all[2]);
    assert_eq!(
        admit(&all, &world.map, &world.moves, &world.nodes, throttle),
        []
    );
}

#[test]
fn only_auto_balances_and_an_operator_is_always_heard() {
    let world = world(&[0; 2], 1, &[&[1][..]; 6]);
    let plan = world.plan();
    assert_eq!(World::of_reason(&plan, MoveReason::Balance).len(), 3);
    assert_eq!(wanted(RebalanceMode::Auto, &plan, &[]).len(), 3);
    assert_eq!(wanted(RebalanceMode::Manual, &plan, &[]), []);
    let asked = planned(6, Some(1), 2, MoveReason::Operator);
    assert_eq!(wanted(RebalanceMode::Manual, &plan, &[asked]), [asked]);
    assert_eq!(wanted(RebalanceMode::Paused, &plan, &[asked]), []);
}

#[test]
fn a_move_to_a_dead_or_draining_node_is_given_up_while_it_learns() {
    let mut world = world(&[0; 3], 1, &[&[1]]);
    world.start(&planned(1, Some(1), 2, MoveReason::Operator));
    let given_up =
        |world: &World| cancellations(&world.map, &world.moves, &world.nodes, DEAD_AFTER_MS);
    world.silence(n(2), DEAD_AFTER_MS);
    assert_eq!(given_up(&world), []);
    let because = |reason| Cancellation {
        partition: P,
        generation: world.moves[&P].generation,
        reason,
    };
    let [dead, leaving, not_ready] =
        [Hopeless::Dead, Hopeless::Leaving, Hopeless::NotReady].map(because);
    world.silence(n(2), DEAD_AFTER_MS + 1);
    assert_eq!(given_up(&world), [dead]);
    world.silence(n(2), 0);
    let building = CollectionState::Building {
        backfill: BackfillId(1),
    };
    let collection = world.map.collections.values_mut().next().unwrap();
    let ready = std::mem::replace(&mut collection.state, building);
    assert_eq!(given_up(&world), [not_ready]);
    world.map.collections.values_mut().next().unwrap().state = ready;
    world.drain(n(2));
    assert_eq!(given_up(&world), [leaving]);
    world.set_state(P, n(2), Serving);
    assert_eq!(given_up(&world), [], "it serves");
}

#[test]
fn p5_a_release_is_over_by_the_nodes_word_or_its_leases_end() {
    let mut world = world(&[0; 3], 1, &[&[1]]);
    world.start(&planned(1, Some(1), 2, MoveReason::Operator));
    world.set_state(P, n(1), Releasing);
    let made_by = (LeaseEpoch(3), MapVersion(40));
    let known: BTreeMap<_, _> = tend::releasing(&world.map, &world.moves)
        .map(|release| (release, made_by))
        .collect();
    assert_eq!(known.len(), 1);
    let is_over = |silent_ms, map: Option<(u64, u64)>| {
        let view = NodeView {
            silent_ms,
            is_live: true,
            map: map.map(|(epoch, version)| (LeaseEpoch(epoch), MapVersion(version))),
        };
        let nodes = Liveness([(n(1), view)].into());
        !releases(&known, &nodes, LeaseTerms::default()).is_empty()
    };
    assert!(!is_over(0, None));
    assert!(!is_over(0, Some((3, 39))));
    assert!(!is_over(0, Some((2, 99))));
    assert!(is_over(0, Some((3, 40))));
    assert!(is_over(0, Some((4, 40))));
    assert!(!is_over(11_000, Some((3, 39))));
    assert!(is_over(11_001, Some((3, 39))));
}

#[test]
fn an_operators_plan_is_void_once_it_can_never_begin() {
    let mut world = world(&[0; 3], 1, &[&[1], &[2]]);
    let asked = planned(1, Some(1), 2, MoveReason::Operator);
    let void = |world: &World, m: &PlannedMove| is_void(m, &world.map, &world.moves);
    assert!(!void(&world, &asked));
    world.silence(n(2), 60_000);
    assert!(!void(&world, &asked), "it waits for its node");
    world.start(&planned(1, Some(1), 3, MoveReason::Operator));
    assert!(!void(&world, &asked), "it waits for the other move");
    world.end(P);
    assert!(void(&world, &asked), "node 1 has nothing to give any more");
    assert!(
        void(&world, &planned(1, None, 3, MoveReason::Operator)),
        "done"
    );
    let other = planned(2, Some(2), 1, MoveReason::Operator);
    assert!(!void(&world, &other));
    world.drain(n(1));
    assert!(void(&world, &other));
}
