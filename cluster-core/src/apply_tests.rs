use super::*;
use crate::ids::Incarnation;
use crate::wal_position::Lsn;
use proptest::prelude::*;

fn at(lsn: u64) -> WalPosition {
    WalPosition::new(Incarnation(1), Lsn(lsn), 1)
}

fn v(x: f32) -> Box<[f32]> {
    vec![x].into()
}

fn value(x: f32) -> VectorColumn {
    VectorColumn::Value(v(x))
}

fn stored(state: &RowState) -> Option<&StoredVector> {
    state.row.as_ref().map(|r| &r.vector)
}

#[test]
fn p4_a_gap_is_refused_and_a_repeat_does_nothing() {
    assert_eq!(admit(at(10), at(10), at(20)), Admission::Apply);
    assert_eq!(admit(at(15), at(10), at(20)), Admission::Apply);
    assert_eq!(admit(at(20), at(10), at(20)), Admission::Duplicate);
    assert_eq!(admit(at(9), at(10), at(20)), Admission::Gap);
}

#[test]
fn unchanged_toast_keeps_the_stored_vector() {
    let first = upsert(RowState::default(), at(1), 7, value(1.0), false);
    let second = upsert(first.state, at(2), 8, VectorColumn::Unchanged, false);
    assert_eq!(stored(&second.state), Some(&StoredVector::Value(v(1.0))));
    assert!(!second.vector_changed);
    assert_eq!(second.former, None);
}

#[test]
fn a_pending_column_takes_the_backfills_value_and_keeps_its_position() {
    let pending = upsert(
        RowState::default(),
        at(20),
        8,
        VectorColumn::Unchanged,
        true,
    );
    assert_eq!(stored(&pending.state), Some(&StoredVector::Pending));
    let merged = backfill(pending.state, at(10), WalPosition::ZERO, v(1.0));
    let row = merged.state.row.expect("stays");
    assert_eq!(
        (row.position, row.vector),
        (at(20), StoredVector::Value(v(1.0)))
    );
}

#[test]
fn p3_a_backfill_never_brings_back_what_the_stream_removed_later() {
    let gone = delete(RowState::default(), at(20), 8, true);
    let merged = backfill(gone.state, at(10), WalPosition::ZERO, v(1.0));
    assert_eq!(merged.state.row, None);
    let former = merged
        .former
        .expect("P1: a snapshot between 10 and 20 sees the row");
    assert_eq!((former.ended, former.ended_xid), (at(20), 8));
}

#[test]
fn p3_a_backfill_older_than_a_truncate_is_void() {
    let merged = backfill(RowState::default(), at(10), at(20), v(1.0));
    assert_eq!(merged.state.row, None);
    let merged = backfill(RowState::default(), at(30), at(20), v(1.0));
    assert!(merged.state.row.is_some());
}

#[test]
fn a_stream_change_that_the_snapshot_saw_does_not_undo_the_backfill() {
    let filled = backfill(RowState::default(), at(10), WalPosition::ZERO, v(2.0));
    let replayed = upsert(filled.state.clone(), at(5), 3, value(1.0), true);
    assert_eq!(replayed.state, filled.state);
    let replayed = delete(filled.state.clone(), at(5), 3, true);
    assert_eq!(replayed.state, filled.state);
}

#[test]
fn p1_a_replaced_vector_stays_for_older_snapshots_until_slot_and_xmin_have_passed() {
    let first = upsert(RowState::default(), at(1), 7, value(1.0), false);
    let second = upsert(first.state, at(2), 8, value(2.0), false);
    let former = second.former.expect("kept");
    assert_eq!(
        (former.ended, former.ended_xid, &former.vector),
        (at(2), 8, &v(1.0))
    );
    assert!(
        former.is_needed(8, at(2)),
        "a snapshot with xmin 8 may see it"
    );
    assert!(former.is_needed(9, at(1)), "the slot may replay its end");
    assert!(!former.is_needed(9, at(2)));
}

#[test]
fn a_version_ended_twice_since_the_snapshot_bears_the_higher_transaction() {
    let one = upsert(RowState::default(), at(20), 9, value(2.0), true);
    let two = upsert(one.state, at(30), 8, value(3.0), true);
    let merged = backfill(two.state, at(10), WalPosition::ZERO, v(1.0));
    assert_eq!(merged.former.expect("kept").ended_xid, 9);
}

#[test]
fn a_vector_set_to_null_leaves_the_index() {
    let first = upsert(RowState::default(), at(1), 7, value(1.0), true);
    let second = upsert(first.state, at(2), 8, VectorColumn::Null, true);
    assert_eq!(second.state.row, None);
    assert!(second.former.is_some());
    assert!(second.state.tombstone.is_some());
}

#[derive(Clone, Debug)]
enum Op {
    Upsert(f32),
    Unchanged,
    Delete,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (0..3i8).prop_map(|x| Op::Upsert(f32::from(x))),
        Just(Op::Unchanged),
        Just(Op::Delete),
    ];
    prop::collection::vec(op, 1..12)
}

/// What Postgres's heap holds after each operation; operations that would not
/// occur (deleting what is not there) are dropped.
fn heap_history(ops: &[Op]) -> Vec<(VectorColumn, Option<f32>, bool)> {
    let mut heap: Option<f32> = None;
    let mut history = Vec::new();
    for op in ops {
        match (op, heap) {
            (Op::Upsert(x), _) => {
                heap = Some(*x);
                history.push((value(*x), heap, false));
            }
            (Op::Unchanged, Some(_)) => history.push((VectorColumn::Unchanged, heap, false)),
            (Op::Delete, Some(_)) => {
                heap = None;
                history.push((VectorColumn::Null, None, true));
            }
            _ => {}
        }
    }
    history
}

proptest! {
    /// P2, P3: wherever the snapshot falls in a history, whenever the backfill
    /// row arrives, and whatever part of the history was in the stream before,
    /// the replica ends with what the heap holds.
    #[test]
    fn backfill_and_stream_converge_on_the_heap(
        ops in ops(),
        published_from in 0usize..12,
        snapshot_after in 0usize..12,
        arrives_after in 0usize..12,
    ) {
        let history = heap_history(&ops);
        let snapshot_after = snapshot_after.min(history.len());
        let published_from = published_from.min(snapshot_after);
        let arrives_after = arrives_after.clamp(published_from, history.len());
        let snapshot = snapshot_after.checked_sub(1).and_then(|i| history[i].1);
        let stamp = at(snapshot_after as u64 * 10 + 5);
        let mut state = RowState::default();
        for i in published_from..=history.len() {
            if i == arrives_after && let Some(x) = snapshot {
                state = backfill(state, stamp, WalPosition::ZERO, v(x)).state;
            }
            if let Some((column, _, is_delete)) = history.get(i) {
                let position = at((i as u64 + 1) * 10);
                let xid = 100 + i as u64;
                state = if *is_delete {
                    delete(state, position, xid, true).state
                } else {
                    upsert(state, position, xid, column.clone(), true).state
                };
            }
        }
        let want = history.last().and_then(|h| h.1);
        let got = match stored(&state) {
            Some(StoredVector::Value(x)) => Some(x[0]),
            Some(StoredVector::Pending) => return Err(TestCaseError::fail("still pending")),
            None => None,
        };
        prop_assert_eq!(got, want);
    }
}
