//! What a look at the publication says, case by case.

use super::*;
use crate::collection::{BackfillSnapshot, CollectionSpec, Metric, Reconcile};
use crate::ids::{BackfillId, Generation, NodeId, PartitionId};
use crate::map::{HashRange, Partition, Replica};

fn ours() -> Publication {
    Publication {
        oid: 5,
        definitions: Some(6),
        ..Publication::default()
    }
}

fn told(found: &Publication, known: Option<PublicationId>) -> String {
    gap("ruvector", Some(found), known).unwrap_or_default()
}

#[test]
fn p2_a_publication_that_was_made_again_under_its_name_is_another_one() {
    let known = ours().id();
    assert!(gap("ruvector", None, known).is_some_and(|why| why.contains("is gone")));
    assert_eq!(gap("ruvector", Some(&ours()), known), None);
    assert_eq!(gap("ruvector", Some(&ours()), None), None, "not noted yet");
    let again = Publication { oid: 7, ..ours() };
    assert!(told(&again, known).contains("made again"));
    let without = Publication {
        definitions: None,
        ..ours()
    };
    assert!(told(&without, known).contains("left publication"));
    let put_back = Publication {
        definitions: Some(8),
        ..ours()
    };
    assert!(told(&put_back, known).contains("put back"));
}

#[test]
fn p2_a_publication_that_publishes_less_than_all_is_named() {
    let silenced = Publication {
        silenced: vec!["UPDATE".to_owned(), "TRUNCATE".to_owned()],
        ..ours()
    };
    assert!(told(&silenced, ours().id()).contains("does not publish UPDATE, TRUNCATE"));
    let narrowed = Publication {
        narrowed: vec!["items".to_owned()],
        ..ours()
    };
    assert!(told(&narrowed, None).contains("column list for items"));
    let via_root = Publication {
        via_root: true,
        ..ours()
    };
    assert!(told(&via_root, None).contains("root"));
}

fn spec() -> CollectionSpec {
    CollectionSpec {
        source: SourceId(1),
        index_oid: 9,
        definition_generation: 1,
        table_oid: 7,
        schema_name: "public".into(),
        table_name: "items".into(),
        index_name: "i".into(),
        column_name: "embedding".into(),
        column_attnum: 3,
        key_attnums: vec![1],
        metric: Metric::L2,
        dimensions: 8,
        m: 16,
        ef_construction: 64,
    }
}

/// A collection on one node, filled under `membership`.
fn map(membership: Option<u32>, state: ReplicaState) -> PartitionMap {
    let id = CollectionId(1);
    let snapshot = BackfillSnapshot {
        membership,
        ..BackfillSnapshot::default()
    };
    let reason = String::new();
    let is_stale = state == ReplicaState::Stale;
    let collection = Collection {
        id,
        spec: spec(),
        state: CollectionState::Ready { snapshot },
        last_backfill: BackfillId(1),
        reconcile: is_stale.then_some(Reconcile {
            reason,
            since: None,
        }),
    };
    let partition = Partition {
        id: PartitionId(1),
        collection: id,
        range: HashRange::WHOLE,
        replicas: vec![Replica {
            node: NodeId(1),
            generation: Generation(1),
            state,
        }],
    };
    let mut map = PartitionMap::default();
    map.collections.insert(id, collection);
    map.partitions.insert(partition.id, partition);
    map
}

fn found(membership: Option<u32>) -> Memberships {
    Memberships {
        by_table: BTreeMap::from([(spec().table_oid, membership)]),
    }
}

#[test]
fn p2_a_table_that_left_the_publication_and_came_back_is_found_by_its_membership() {
    let serving = ReplicaState::Serving;
    let source = spec().source;
    let filled = map(Some(7), serving);
    let returned = |found: &Memberships, before: &PartitionMap, after: &PartitionMap| {
        found.returned([before, after], source)
    };
    let both = |found: &Memberships, map: &PartitionMap| returned(found, map, map);
    assert!(both(&found(Some(7)), &filled).is_empty());
    assert_eq!(both(&found(Some(8)), &filled), [CollectionId(1)]);
    // Filled once more while it was looked at.
    let again = map(Some(8), serving);
    assert!(returned(&found(Some(8)), &filled, &again).is_empty());
    // It is being mended.
    let stale = map(Some(7), ReplicaState::Stale);
    assert!(both(&found(Some(8)), &stale).is_empty());
    // Out, or not noted yet.
    assert!(both(&found(None), &filled).is_empty());
    let unnoted = map(None, serving);
    assert!(both(&found(Some(8)), &unnoted).is_empty());
    let noted = found(Some(8)).unnoted(&unnoted, source);
    assert_eq!(noted, BTreeMap::from([(CollectionId(1), 8)]));
    assert!(found(Some(8)).unnoted(&filled, source).is_empty());

    let lost = |found: &Memberships| found.lost([&filled, &filled], source);
    assert_eq!(lost(&found(None)), Some(CollectionId(1)));
    assert_eq!(lost(&found(Some(8))), None);
    let gone = Memberships {
        by_table: BTreeMap::new(),
    };
    assert_eq!(lost(&gone), None, "the stream tells of its end");
}
