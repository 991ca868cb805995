//! Rows that the current transaction has written: the cluster learns of them
//! when it commits, this transaction sees them at once.
//!
//! Entries stand in the order of writing, and subtransactions nest, so that what
//! an aborted one wrote is the end of the list.

use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys;
use std::cell::RefCell;

/// Beyond this a transaction's scans are exact: merging would cost as much.
const OWN_WRITES_MAX: usize = 100_000;

#[derive(Default)]
struct OwnWrites {
    entries: Vec<(pg_sys::Oid, u64)>,
    /// Open subtransactions, and where their entries begin.
    starts: Vec<(pg_sys::SubTransactionId, usize)>,
    overflowed: bool,
    /// Indexes built here: their recorded rows may be of an older table file,
    /// and the cluster does not have the new definition yet.
    built: Vec<pg_sys::Oid>,
}

thread_local! {
    static OWN_WRITES: RefCell<OwnWrites> = RefCell::default();
}

pub fn record(index: pg_sys::Oid, tid: pg_sys::ItemPointerData) {
    OWN_WRITES.with_borrow_mut(|own| {
        if own.entries.len() >= OWN_WRITES_MAX {
            own.overflowed = true;
        } else if !own.overflowed {
            own.entries.push((index, item_pointer_to_u64(tid)));
        }
    });
}

/// Scans of this index are exact until the transaction ends.
pub fn scan_exactly(index: pg_sys::Oid) {
    OWN_WRITES.with_borrow_mut(|own| {
        if !own.built.contains(&index) {
            own.built.push(index);
        }
    });
}

/// Whether the index was built in this transaction.
pub fn is_built(index: pg_sys::Oid) -> bool {
    OWN_WRITES.with_borrow(|own| own.built.contains(&index))
}

/// Heap TIDs written into the index by this transaction; or why they are not known.
pub fn of(index: pg_sys::Oid) -> Result<Vec<u64>, &'static str> {
    OWN_WRITES.with_borrow(|own| {
        if own.built.contains(&index) {
            return Err("the index was built in this transaction");
        }
        if own.overflowed {
            return Err("this transaction has written too many rows to merge");
        }
        Ok(own
            .entries
            .iter()
            .filter(|entry| entry.0 == index)
            .map(|entry| entry.1)
            .collect())
    })
}

pub fn end_of_transaction() {
    OWN_WRITES.with_borrow_mut(|own| {
        if !own.entries.is_empty() || !own.built.is_empty() || !own.starts.is_empty() {
            *own = OwnWrites::default();
        }
        own.overflowed = false;
    });
}

pub fn start_of_subtransaction(id: pg_sys::SubTransactionId) {
    OWN_WRITES.with_borrow_mut(|own| {
        let start = own.entries.len();
        own.starts.push((id, start));
    });
}

pub fn commit_of_subtransaction(id: pg_sys::SubTransactionId) {
    OWN_WRITES.with_borrow_mut(|own| {
        own.starts.pop_if(|start| start.0 == id);
    });
}

pub fn abort_of_subtransaction(id: pg_sys::SubTransactionId) {
    OWN_WRITES.with_borrow_mut(|own| {
        if let Some((_, start)) = own.starts.pop_if(|start| start.0 == id) {
            own.entries.truncate(start);
        }
    });
}
