//! An inserted row reaches the cluster through the WAL. Until it commits, only
//! this backend knows of it: see [`crate::scan::own_writes`].

use crate::error::guard;
use crate::scan::own_writes;
use pgrx::pg_sys;

pub unsafe extern "C-unwind" fn aminsert(
    index: pg_sys::Relation,
    _values: *mut pg_sys::Datum,
    isnull: *mut bool,
    tid: pg_sys::ItemPointer,
    _table: pg_sys::Relation,
    _unique: pg_sys::IndexUniqueCheck::Type,
    _unchanged: bool,
    info: *mut pg_sys::IndexInfo,
) -> bool {
    guard(|| {
        // A concurrent build hands over every row of the table; the cluster
        // copies them by itself. NULL is not indexed.
        if !(*info).ii_Concurrent && !*isnull {
            own_writes::record((*index).rd_id, *tid);
        }
        false
    })
}
