//! Index scans. In reading order: the callbacks (here), how a scan is answered
//! ([`state`]), by the cluster ([`cluster`]) or exactly ([`exact`]), and what
//! both stand on: [`failure`], [`ranking`], [`key_lookup`], [`own_writes`], [`snapshot`],
//! [`freshness`], [`session_token`], [`exact_slots`], [`counters`], [`visibility`].

pub mod cluster;
pub mod counters;
pub mod exact;
pub mod exact_slots;
pub mod failure;
pub mod freshness;
pub mod key_lookup;
pub mod own_writes;
pub mod ranking;
pub mod session_token;
pub mod snapshot;
pub mod state;
pub mod visibility;

use crate::error::guard;
use pgrx::itemptr::u64_to_item_pointer;
use pgrx::pg_sys;
use state::ScanState;
use std::ffi::{c_int, c_void};

/// Lives in the scan's own memory context. When the query fails, nobody calls
/// [`amendscan`]; the context's callback then drops the state.
struct Holder {
    state: *mut ScanState,
    memory: pg_sys::MemoryContext,
    on_reset: pg_sys::MemoryContextCallback,
}

pub unsafe extern "C-unwind" fn ambeginscan(
    index: pg_sys::Relation,
    keys: c_int,
    order_bys: c_int,
) -> pg_sys::IndexScanDesc {
    guard(|| {
        let scan = pg_sys::RelationGetIndexScan(index, keys, order_bys);
        let memory = memory_context(pg_sys::CurrentMemoryContext, c"ruvector scan");
        let row_memory = memory_context(memory, c"ruvector row");
        let holder =
            pg_sys::MemoryContextAllocZero(memory, std::mem::size_of::<Holder>()).cast::<Holder>();
        (*holder).memory = memory;
        (*holder).state = Box::into_raw(Box::new(ScanState::new(row_memory)));
        (*holder).on_reset.func = Some(on_reset);
        (*holder).on_reset.arg = holder.cast();
        pg_sys::MemoryContextRegisterResetCallback(memory, &raw mut (*holder).on_reset);
        (*scan).opaque = holder.cast();
        scan
    })
}

pub unsafe fn memory_context(
    parent: pg_sys::MemoryContext,
    name: &'static std::ffi::CStr,
) -> pg_sys::MemoryContext {
    pg_sys::AllocSetContextCreateInternal(
        parent,
        name.as_ptr(),
        pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
        pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
        pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
    )
}

/// Frees what is Rust's. What is Postgres's (relations, buffers, files) the
/// failed transaction has freed already.
unsafe extern "C-unwind" fn on_reset(argument: *mut c_void) {
    guard(|| {
        let holder = argument.cast::<Holder>();
        let state = std::mem::replace(&mut (*holder).state, std::ptr::null_mut());
        if !state.is_null() {
            drop(Box::from_raw(state));
        }
    });
}

/// Runs with the scan's state, in the scan's memory.
unsafe fn with_state<R>(scan: pg_sys::IndexScanDesc, body: impl FnOnce(&mut ScanState) -> R) -> R {
    let holder = (*scan).opaque.cast::<Holder>();
    let caller = pg_sys::CurrentMemoryContext;
    pg_sys::CurrentMemoryContext = (*holder).memory;
    let result = body(&mut *(*holder).state);
    pg_sys::CurrentMemoryContext = caller;
    result
}

pub unsafe extern "C-unwind" fn amrescan(
    scan: pg_sys::IndexScanDesc,
    keys: pg_sys::ScanKey,
    _key_count: c_int,
    order_bys: pg_sys::ScanKey,
    _order_by_count: c_int,
) {
    guard(|| {
        with_state(scan, |state| state.reset());
        if !keys.is_null() && (*scan).numberOfKeys > 0 {
            std::ptr::copy(keys, (*scan).keyData, (*scan).numberOfKeys as usize);
        }
        if !order_bys.is_null() && (*scan).numberOfOrderBys > 0 {
            std::ptr::copy(
                order_bys,
                (*scan).orderByData,
                (*scan).numberOfOrderBys as usize,
            );
        }
    });
}

pub unsafe extern "C-unwind" fn amgettuple(
    scan: pg_sys::IndexScanDesc,
    _direction: pg_sys::ScanDirection::Type,
) -> bool {
    guard(|| {
        let Some(row) = with_state(scan, |state| state.next(scan)) else {
            return false;
        };
        u64_to_item_pointer(row.tid, &mut (*scan).xs_heaptid);
        // The row was ranked from the version that the executor will fetch.
        (*scan).xs_recheck = false;
        (*scan).xs_recheckorderby = false;
        true
    })
}

pub unsafe extern "C-unwind" fn amendscan(scan: pg_sys::IndexScanDesc) {
    guard(|| {
        with_state(scan, |state| state.reset());
        let holder = (*scan).opaque.cast::<Holder>();
        (*scan).opaque = std::ptr::null_mut();
        pg_sys::MemoryContextDelete((*holder).memory);
    });
}
