#![allow(clippy::unwrap_used)]
use super::*;
use crate::replication::pgoutput::RelationColumn;
use bytes::Bytes;
use cluster_core::collection::Metric;
use cluster_core::ids::SourceId;

pub fn spec() -> CollectionSpec {
    CollectionSpec {
        source: SourceId(1),
        index_oid: 900,
        definition_generation: 1,
        table_oid: 9,
        schema_name: "public".into(),
        table_name: "items".into(),
        index_name: "items_embedding_idx".into(),
        column_name: "embedding".into(),
        column_attnum: 4,
        key_attnums: vec![1],
        metric: Metric::L2,
        dimensions: 2,
        m: 16,
        ef_construction: 64,
    }
}

fn relation(columns: &[(&str, bool)]) -> Relation {
    let columns = columns
        .iter()
        .map(|(name, is_key)| RelationColumn {
            is_key: *is_key,
            name: (*name).into(),
            type_oid: 20,
        })
        .collect();
    Relation {
        oid: 9,
        schema: "public".into(),
        name: "items".into(),
        replica_identity: b'd',
        columns,
    }
}

/// Attribute 2 was dropped.
fn live() -> Vec<LiveColumn> {
    [(1, "id"), (3, "label"), (4, "embedding")]
        .map(|(attnum, name)| LiveColumn {
            attnum,
            name: name.into(),
            type_oid: 20,
        })
        .to_vec()
}

fn items() -> ColumnMap {
    let relation = relation(&[("id", true), ("label", false), ("embedding", false)]);
    ColumnMap::new(&relation, &live(), &spec()).unwrap()
}

fn bin(bytes: &[u8]) -> Cell {
    Cell::Binary(Bytes::copy_from_slice(bytes))
}

fn key(bytes: &[u8]) -> RowKey {
    RowKey::from_columns([bytes]).unwrap()
}

fn v(x: f32) -> Cell {
    Cell::Binary(vector::encode(&[x, x]))
}

fn value(x: f32) -> VectorColumn {
    VectorColumn::Value(vec![x, x].into())
}

#[test]
fn a_renamed_column_is_found_while_another_change_is_on_its_way() {
    // The stream still shows the table of before a column was added.
    let mut live = live();
    live[2].name = "vec".into();
    let added = LiveColumn {
        attnum: 5,
        name: "embedding".into(),
        type_oid: 21,
    };
    live.push(added);
    let relation = relation(&[("id", true), ("embedding", false), ("vec", false)]);
    let columns = ColumnMap::new(&relation, &live, &spec()).unwrap();
    assert_eq!(columns.vector, 2);
}

#[test]
fn p2_a_whole_old_row_names_its_key_while_a_column_is_added() {
    // REPLICA IDENTITY FULL flags every column, and the catalog is ahead of the stream.
    let mut live = live();
    live.push(LiveColumn {
        attnum: 5,
        name: "note".into(),
        type_oid: 25,
    });
    let relation = relation(&[("id", true), ("label", true), ("embedding", true)]);
    let columns = ColumnMap::new(&relation, &live, &spec()).unwrap();
    assert_eq!((columns.keys, columns.vector), (vec![0], 2));
}

#[test]
fn p2_a_vector_renamed_twice_while_it_is_on_its_way_is_found_by_its_type() {
    let mut live = live();
    live[2] = LiveColumn {
        attnum: 4,
        name: "third".into(),
        type_oid: 9,
    };
    let mut relation = relation(&[("id", true), ("label", false), ("second", false)]);
    relation.columns[2].type_oid = 9;
    let columns = ColumnMap::new(&relation, &live, &spec()).unwrap();
    assert_eq!((columns.keys, columns.vector), (vec![0], 2));
    relation.columns[1].type_oid = 9;
    assert!(ColumnMap::new(&relation, &live, &spec()).is_err());
}

#[test]
fn columns_are_found_by_attribute_number_past_dropped_ones() {
    let op = items()
        .insert(&vec![bin(b"k"), Cell::Null, v(1.0)])
        .unwrap();
    assert_eq!(
        op,
        RowOp::Upsert {
            key: key(b"k"),
            vector: value(1.0)
        }
    );
}

#[test]
fn a_renamed_column_is_found_by_number_and_an_old_relation_by_name() {
    let mut renamed_live = live();
    renamed_live[2].name = "e2".into();
    let now = relation(&[("id", true), ("label", false), ("e2", false)]);
    assert_eq!(
        ColumnMap::new(&now, &renamed_live, &spec()).unwrap(),
        items()
    );
    let replayed = relation(&[("id", true), ("label", false), ("embedding", false)]);
    assert_eq!(
        ColumnMap::new(&replayed, &renamed_live, &spec()).unwrap(),
        items()
    );
}

#[test]
fn a_dropped_column_or_another_replica_identity_stops_the_collection_by_name() {
    let gone = relation(&[("id", true), ("label", false)]);
    let reason = ColumnMap::new(&gone, &live()[..2], &spec())
        .unwrap_err()
        .to_string();
    assert_eq!(reason, "column embedding of public.items is gone");
    let other = relation(&[("id", false), ("label", true), ("embedding", false)]);
    let reason = ColumnMap::new(&other, &live(), &spec())
        .unwrap_err()
        .to_string();
    assert!(reason.contains("replica identity"), "{reason}");
}

#[test]
fn null_in_a_key_only_old_tuple_is_not_a_null_vector() {
    let old = OldTuple::Key(vec![bin(b"a"), Cell::Null, Cell::Null]);
    let new = vec![bin(b"b"), Cell::Null, Cell::Unchanged];
    let op = items().update(Some(&old), &new).unwrap();
    let want = RowOp::Move {
        old: key(b"a"),
        new: key(b"b"),
        vector: VectorColumn::Unchanged,
    };
    assert_eq!(op, want);
    assert_eq!(
        items().delete(&old).unwrap(),
        RowOp::Delete { key: key(b"a") }
    );
}

#[test]
fn unchanged_toast_is_not_null_and_a_full_old_tuple_supplies_it() {
    let new = vec![bin(b"a"), Cell::Null, Cell::Unchanged];
    let op = items().update(None, &new).unwrap();
    assert_eq!(
        op,
        RowOp::Upsert {
            key: key(b"a"),
            vector: VectorColumn::Unchanged
        }
    );
    let old = OldTuple::Full(vec![bin(b"a"), Cell::Null, v(3.0)]);
    let op = items().update(Some(&old), &new).unwrap();
    assert_eq!(
        op,
        RowOp::Upsert {
            key: key(b"a"),
            vector: value(3.0)
        }
    );
}

#[test]
fn an_unchanged_key_column_out_of_line_is_read_from_the_old_tuple() {
    let old = OldTuple::Key(vec![bin(b"long"), Cell::Null, Cell::Null]);
    let new = vec![Cell::Unchanged, Cell::Null, v(1.0)];
    let op = items().update(Some(&old), &new).unwrap();
    assert_eq!(
        op,
        RowOp::Upsert {
            key: key(b"long"),
            vector: value(1.0)
        }
    );
    assert!(items().update(None, &new).is_err());
}

#[test]
fn a_null_vector_and_an_impossible_one_are_told_apart() {
    let op = items()
        .insert(&vec![bin(b"a"), Cell::Null, Cell::Null])
        .unwrap();
    assert_eq!(
        op,
        RowOp::Upsert {
            key: key(b"a"),
            vector: VectorColumn::Null
        }
    );
    let wrong = vec![bin(b"a"), Cell::Null, Cell::Binary(vector::encode(&[1.0]))];
    let reason = items().insert(&wrong).unwrap_err().to_string();
    assert_eq!(reason, "expected 2 dimensions, not 1");
    assert!(
        items().insert(&vec![bin(b"a")]).is_err(),
        "a row of another shape"
    );
}
