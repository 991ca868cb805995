//! Indexes that stand for another definition after a statement than before: their
//! table got a key, or another one, or the column's type was told anew and Postgres
//! kept the index's storage. Each is built anew in the statement's own transaction,
//! which costs a page: the cluster copies the rows beside the WAL.
//!
//! It never fails the statement for what it finds in an index, and it takes no lock
//! on a table that the statement does not hold already, but for a renamed label.

use super::{collections, hooks};
use crate::access_method;
use crate::access_method::definition::Definition;
use crate::access_method::metapage::Metapage;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int};

/// Builds those indexes of a table anew that can be followed and are not.
///
/// # Safety
/// The table is open; in a transaction that may write, which sees what the
/// statement did.
pub unsafe fn rebuild_changed(table: pg_sys::Relation) {
    let method = pg_sys::get_am_oid(access_method::NAME.as_ptr(), true);
    if method == pg_sys::InvalidOid {
        return;
    }
    for index_oid in oids(pg_sys::RelationGetIndexList(table)) {
        if has_changed(table, index_oid, method) {
            rebuild(index_oid);
        }
    }
}

/// An enum's label stands in row keys as it was written: once it is renamed, keys of
/// that type are told to the cluster anew.
///
/// # Safety
/// As above, without the table.
pub unsafe fn rebuild_with_key_of(kind: pg_sys::Oid) {
    for index_oid in collections::with_key_of(kind) {
        hooks::as_alter_table(|| rebuild(index_oid));
    }
}

unsafe fn has_changed(
    table: pg_sys::Relation,
    index_oid: pg_sys::Oid,
    method: pg_sys::Oid,
) -> bool {
    let index = pg_sys::index_open(index_oid, pg_sys::AccessShareLock as c_int);
    let form = (*index).rd_rel;
    let is_ours = (*form).relam == method
        && (*form).relkind == pg_sys::RELKIND_INDEX as c_char
        && (*(*index).rd_index).indisvalid;
    let has_changed = is_ours && {
        let definition = Definition::of(table, index);
        let metapage = Metapage::read(index);
        definition.key.is_ok()
            && !(metapage.stands_for(&definition)
                && collections::is_registered(index_oid, metapage.definition_generation))
    };
    pg_sys::index_close(index, pg_sys::AccessShareLock as c_int);
    has_changed
}

unsafe fn rebuild(index_oid: pg_sys::Oid) {
    let mut params = pg_sys::ReindexParams {
        options: 0,
        tablespaceOid: pg_sys::InvalidOid,
    };
    let persistence = pg_sys::get_rel_persistence(index_oid);
    pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    pg_sys::reindex_index(index_oid, false, persistence, &mut params);
    pg_sys::PopActiveSnapshot();
    pg_sys::CommandCounterIncrement();
}

unsafe fn oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    (0..(*list).length as usize)
        .map(|at| (*(*list).elements.add(at)).oid_value)
        .collect()
}
