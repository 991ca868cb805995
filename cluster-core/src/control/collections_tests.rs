//! Collections: where one is placed, filled, and replaced by a later one.

use super::tests::{Cluster, begin, finish, spec};
use super::*;
use crate::collection::*;
use crate::ids::*;
use crate::placement::{PlacementPolicy, place_collection};

#[test]
fn a_collection_waits_for_a_node() {
    let mut cluster = Cluster::ready(0);
    let create = cluster.create(1, 50, 1);
    assert_eq!(cluster.apply(create), Response::Refused(Refusal::NoNodes));
}

#[test]
fn a_collection_waits_while_every_node_drains() {
    let mut cluster = Cluster::ready(2);
    let drain = |node, is_draining| Command::SetDraining {
        node: NodeId(node),
        is_draining,
    };
    cluster.apply(drain(1, true));
    cluster.apply(drain(2, true));
    let create = cluster.create(1, 50, 1);
    let refused = Response::Refused(Refusal::AllDraining);
    assert_eq!(cluster.apply(create), refused);
    cluster.apply(drain(2, false));
    let create = cluster.create(1, 50, 1);
    let collection = CollectionId(1);
    assert_eq!(
        cluster.apply(create),
        Response::CollectionCreated { collection }
    );
    let partitions = cluster.map().partitions.values();
    assert!(
        partitions
            .flat_map(|p| &p.replicas)
            .all(|r| r.node == NodeId(2))
    );
}

#[test]
fn a_later_generation_replaces_the_earlier_once_it_is_ready() {
    let mut cluster = Cluster::ready(2);
    let first = cluster.create(1, 50, 1);
    assert_eq!(
        cluster.twice(first.clone()),
        Response::CollectionCreated {
            collection: CollectionId(1)
        }
    );
    cluster.apply(begin(1, 1));
    cluster.twice(finish(1, 1, 1));
    let second = cluster.create(1, 50, 2);
    cluster.twice(second.clone());
    cluster.apply(begin(1, 2));
    assert_eq!(
        cluster.map().collections.len(),
        2,
        "the old one answers until the new one can"
    );
    cluster.twice(finish(1, 2, 1));
    assert_eq!(
        cluster.map().collections.keys().collect::<Vec<_>>(),
        [&CollectionId(2)]
    );

    // A replayed stream makes the old one again; the later row removes it.
    cluster.apply(first);
    assert_eq!(cluster.map().collections.len(), 2);
    cluster.twice(second);
    assert_eq!(cluster.map().collections.len(), 1);
    cluster.twice(Command::DropCollection {
        token: ConsumerEpoch(1),
        source: SourceId(1),
        index_oid: 50,
        definition_generation: 2,
    });
    assert!(cluster.map().partitions.is_empty());
}

#[test]
fn a_backfill_voids_the_earlier_ones_and_ready_stays_ready() {
    let mut cluster = Cluster::ready(1);
    let create = cluster.create(1, 50, 1);
    cluster.apply(create);
    let void = |r: Response| matches!(r, Response::Refused(Refusal::BackfillVoid { .. }));
    assert!(void(cluster.apply(finish(1, 1, 0))), "none has begun");
    cluster.apply(begin(1, 1));
    assert_eq!(
        cluster.apply(begin(1, 1)),
        Response::BackfillBegun {
            backfill: BackfillId(2)
        }
    );
    assert!(void(cluster.apply(finish(1, 1, 1))));
    let failed = Command::FailCollection {
        token: ConsumerEpoch(1),
        collection: CollectionId(1),
        reason: "wrong dimension".into(),
    };
    cluster.twice(failed);
    assert!(
        void(cluster.apply(finish(1, 1, 2))),
        "it has failed meanwhile"
    );
    cluster.apply(begin(1, 1));
    cluster.twice(finish(1, 1, 3));
    assert!(matches!(
        cluster.apply(begin(1, 1)),
        Response::Refused(Refusal::Conflict { .. })
    ));
    let CollectionState::Ready { snapshot } = &cluster.map().collections[&CollectionId(1)].state
    else {
        panic!("not ready")
    };
    assert_eq!(
        snapshot.running,
        [80, 90],
        "searched by halves, hence sorted"
    );
}

#[test]
fn p7_a_placement_that_does_not_tile_or_names_strangers_is_refused() {
    let mut cluster = Cluster::ready(2);
    let good = place_collection(cluster.map(), PlacementPolicy::default(), 1);
    let mut gap = good.clone();
    gap.pop();
    let mut stranger = good.clone();
    stranger[0].nodes = vec![NodeId(99)];
    let mut twice = good.clone();
    twice[0].nodes = vec![NodeId(1), NodeId(1)];
    let mut nobody = good;
    nobody[0].nodes.clear();
    for placement in [gap, stranger, twice, nobody] {
        let refused = cluster.apply(Command::CreateCollection {
            token: ConsumerEpoch(1),
            spec: spec(50, 1),
            placement,
        });
        assert!(matches!(
            refused,
            Response::Refused(Refusal::PlacementOutdated { .. })
        ));
    }
}
