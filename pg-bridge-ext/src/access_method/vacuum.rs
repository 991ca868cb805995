//! Nothing to clean: the cluster learns of removed rows from the WAL.

use crate::error::guard;
use pgrx::pg_sys;

unsafe fn statistics(
    info: *mut pg_sys::IndexVacuumInfo,
    previous: *mut pg_sys::IndexBulkDeleteResult,
) -> *mut pg_sys::IndexBulkDeleteResult {
    let result = if previous.is_null() {
        pg_sys::palloc0(std::mem::size_of::<pg_sys::IndexBulkDeleteResult>()).cast()
    } else {
        previous
    };
    (*result).num_pages = 1;
    (*result).num_index_tuples = (*info).num_heap_tuples.max(0.0);
    // Says that the numbers are not for pg_class.
    (*result).estimated_count = true;
    result
}

pub unsafe extern "C-unwind" fn ambulkdelete(
    info: *mut pg_sys::IndexVacuumInfo,
    previous: *mut pg_sys::IndexBulkDeleteResult,
    _callback: pg_sys::IndexBulkDeleteCallback,
    _state: *mut std::ffi::c_void,
) -> *mut pg_sys::IndexBulkDeleteResult {
    guard(|| statistics(info, previous))
}

pub unsafe extern "C-unwind" fn amvacuumcleanup(
    info: *mut pg_sys::IndexVacuumInfo,
    previous: *mut pg_sys::IndexBulkDeleteResult,
) -> *mut pg_sys::IndexBulkDeleteResult {
    guard(|| {
        if (*info).analyze_only {
            previous
        } else {
            statistics(info, previous)
        }
    })
}
