//! A partition becomes two: one script per case.

use super::tests::{Cluster, TOKEN};
use super::{Command, MoveReason, Response};
use crate::ids::*;
use crate::map::{HashRange, Partition, ReplicaState};

const P: PartitionId = PartitionId(1);
const MIDDLE: u64 = u64::MAX / 2;

fn start(cluster: &mut Cluster, at: u64) -> Response {
    cluster.apply(Command::StartSplit { partition: P, at })
}

fn halves(cluster: &Cluster) -> [Partition; 2] {
    let split = &cluster.state.map().splits[&P];
    [split.low.clone(), split.high.clone()]
}

fn promote(cluster: &mut Cluster, half: &Partition, token: ConsumerEpoch) -> Vec<Response> {
    let replicas = half.replicas.iter();
    let promotions = replicas.map(|replica| Command::PromoteReplica {
        token,
        partition: half.id,
        node: replica.node,
        generation: replica.generation,
        waits_out: true,
    });
    let promotions: Vec<_> = promotions.collect();
    promotions.into_iter().map(|c| cluster.apply(c)).collect()
}

fn is_refused(response: &Response) -> bool {
    matches!(response, Response::Refused(_))
}

#[test]
fn p7_the_parent_serves_until_every_replica_of_both_halves_does() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    assert_eq!(start(&mut cluster, MIDDLE), Response::Done);
    assert_eq!(start(&mut cluster, MIDDLE), Response::Done);
    let [low, high] = halves(&cluster);
    assert!(P < low.id && low.id < high.id, "ids are never reused");
    assert_eq!(low.range, HashRange { lo: 0, hi: MIDDLE });
    let upper = HashRange {
        lo: MIDDLE + 1,
        hi: u64::MAX,
    };
    assert_eq!(high.range, upper);
    promote(&mut cluster, &low, TOKEN);
    promote(&mut cluster, &low, TOKEN);
    assert_eq!(cluster.state.map().partitions.keys().next(), Some(&P));
    promote(&mut cluster, &high, TOKEN);
    let map = cluster.state.map();
    assert_eq!(
        map.partitions.keys().copied().collect::<Vec<_>>(),
        [low.id, high.id]
    );
    assert!(map.splits.is_empty());
    let serving = map.partitions[&low.id].in_state(ReplicaState::Serving);
    assert_eq!(
        serving.map(|r| r.node).collect::<Vec<_>>(),
        [NodeId(1), NodeId(2)]
    );
    // The answer to the last promotion was lost.
    assert_eq!(
        promote(&mut cluster, &high, TOKEN),
        [Response::Done, Response::Done]
    );
}

#[test]
fn p5_only_the_current_token_brings_a_split_about() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    start(&mut cluster, MIDDLE);
    let [low, _] = halves(&cluster);
    cluster.hand_over();
    assert!(is_refused(&promote(&mut cluster, &low, TOKEN)[0]));
}

#[test]
fn a_range_is_divided_inside_and_one_change_at_a_time() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    assert!(is_refused(&start(&mut cluster, u64::MAX)));
    let to = |node| Command::StartMove {
        partition: P,
        to: NodeId(node),
        from: None,
        reason: MoveReason::Operator,
    };
    cluster.apply(to(2));
    assert!(is_refused(&start(&mut cluster, MIDDLE)));
    let generation = cluster.state.moves()[&P].generation;
    cluster.apply(Command::CancelMove {
        partition: P,
        generation,
    });
    start(&mut cluster, MIDDLE);
    assert!(is_refused(&start(&mut cluster, 7)), "another cut");
    assert!(is_refused(&cluster.apply(to(3))));
    assert!(is_refused(
        &cluster.apply(Command::RemoveNode { node: NodeId(1) })
    ));
}

#[test]
fn a_cancelled_split_leaves_the_parent_as_it_was() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    let before = cluster.state.map().partitions.clone();
    start(&mut cluster, MIDDLE);
    let [low, _] = halves(&cluster);
    promote(&mut cluster, &low, TOKEN);
    cluster.apply(Command::CancelSplit { partition: P });
    assert_eq!(cluster.state.map().partitions, before);
    assert!(is_refused(&promote(&mut cluster, &low, TOKEN)[0]));
}

#[test]
fn p2_a_half_that_holds_the_slot_ends_the_split() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    start(&mut cluster, MIDDLE);
    let [low, _] = halves(&cluster);
    promote(&mut cluster, &low, TOKEN);
    let demote = Command::DemoteReplica {
        token: TOKEN,
        partition: low.id,
        node: NodeId(1),
        generation: low.replicas[0].generation,
        min_required: 1,
    };
    assert_eq!(cluster.apply(demote), Response::Done);
    assert!(cluster.state.map().splits.is_empty());
    assert!(cluster.state.map().partitions.contains_key(&P));
}

#[test]
fn a_dropped_collection_takes_its_split_with_it() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    start(&mut cluster, MIDDLE);
    cluster.drop_collection();
    assert!(cluster.state.map().splits.is_empty());
}

#[test]
fn a_building_collection_is_not_split() {
    let mut cluster = Cluster::with_building_collection(1, &[1]);
    assert!(is_refused(&start(&mut cluster, MIDDLE)));
}
