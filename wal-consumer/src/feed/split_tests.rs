//! A partition that is split while the stream goes on.
#![allow(clippy::unwrap_used)]

use super::testing::World;
use cluster_core::ids::*;
use cluster_core::map::{HashRange, Partition, Replica, ReplicaState, Split};

const P: PartitionId = PartitionId(1);
const LOW: PartitionId = PartitionId(11);
const HIGH: PartitionId = PartitionId(12);

/// Partition 1 is being split, on node 1 and 2.
fn splitting() -> World {
    let mut world = World::settled();
    let HashRange { lo, hi } = world.map.partitions[&P].range;
    let at = lo + (hi - lo) / 2;
    let half = |id, range| Partition {
        id,
        collection: world.map.partitions[&P].collection,
        range,
        replicas: [1, 2]
            .map(|node| Replica {
                node: NodeId(node),
                generation: Generation(1),
                state: ReplicaState::Learner,
            })
            .to_vec(),
    };
    let low = half(LOW, HashRange { lo, hi: at });
    let high = half(HIGH, HashRange { lo: at + 1, hi });
    world.map.splits.insert(P, Split { low, high });
    world.follow().unwrap();
    world
}

/// The last promotion has put the halves in the partition's place.
fn split(world: &mut World) {
    let Split { mut low, mut high } = world.map.splits.remove(&P).unwrap();
    for replica in low.replicas.iter_mut().chain(&mut high.replicas) {
        replica.state = ReplicaState::Serving;
    }
    world.map.partitions.remove(&P);
    world.map.partitions.insert(LOW, low);
    world.map.partitions.insert(HIGH, high);
}

#[tokio::test]
async fn halves_are_attached_and_get_what_the_partition_gets() {
    let mut world = splitting();
    world.rest(20);
    assert_eq!(world.sent(1, LOW.0), ["attach 1 from 20", "rest 20"]);
    world.commit(30).await;
    assert_eq!(world.sent(1, P.0), ["20..30"]);
    world.commit(40).await;
    assert_eq!(world.sent(1, LOW.0), ["30..40"]);
}

#[tokio::test]
async fn p1_nothing_else_does_not_speak_for_a_partition_that_was_split() {
    let mut world = splitting();
    world.rest(20);
    world.commit(30).await;
    for (node, half) in [(1, LOW), (1, HIGH), (2, LOW), (2, HIGH)] {
        world.reports(node, half.0, 30, false);
    }
    world.sent(1, P.0);
    split(&mut world);
    world.follow().unwrap();
    world.commit(40).await;
    world.rest(40);
    // A node on an older map would take it for all there is, and lack the commit.
    assert_eq!(world.sent(1, P.0), ["not 40"]);
    let fed = world.router.partition_for(super::router_tests::C, 0);
    assert_eq!(fed.unwrap().id, LOW);
}

#[tokio::test]
async fn a_split_that_is_given_up_leaves_the_partition_fed() {
    let mut world = splitting();
    world.rest(20);
    world.map.splits.clear();
    world.follow().unwrap();
    world.sent(1, P.0);
    world.commit(30).await;
    assert_eq!(world.sent(1, P.0), ["20..30"]);
    world.commit(40).await;
    assert_eq!(world.sent(1, LOW.0), Vec::<String>::new());
}
