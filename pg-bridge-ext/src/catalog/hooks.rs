//! Hooks into the server: DROP of an index removes its row, a table that loses
//! its key leaves the cluster, ALTER TABLE is noticed (a rewrite may change what an
//! index holds), the end of a transaction clears what belonged to it.
//!
//! A hook calls the next one without a boundary in between, so that errors pass
//! through unchanged; its frame therefore holds nothing that needs a destructor.

use super::{collections, databases, refollow};
use crate::access_method::{self, definition};
use crate::error::guard;
use crate::scan::{exact_slots, own_writes};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};

static mut NEXT_OBJECT_ACCESS: pg_sys::object_access_hook_type = None;
static mut NEXT_PROCESS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

thread_local! {
    static ALTER_TABLE_DEPTH: Cell<u32> = const { Cell::new(0) };
    /// DROP INDEX CONCURRENTLY must not write before its own transactions are
    /// through: these rows go when the statement ends.
    static DROPPED_CONCURRENTLY: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    /// Tables whose key the running statement takes away, or replaces: which of
    /// the two is known when it ends.
    static KEY_CHANGED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    /// Tables that the running statement alters, and relations that it creates: a
    /// key may be among them, or an index that Postgres gave an old one's storage.
    static ALTERED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    static CREATED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    /// Open subtransactions, and the depth at which each began.
    static DEPTHS: RefCell<Vec<(pg_sys::SubTransactionId, u32)>> = const { RefCell::new(Vec::new()) };
}

mod unguarded {
    use super::*;
    unsafe extern "C-unwind" {
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            source: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            receiver: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

/// # Safety
/// Once per process, from `_PG_init`.
pub unsafe fn install() {
    NEXT_OBJECT_ACCESS = pg_sys::object_access_hook;
    pg_sys::object_access_hook = Some(on_object_access);
    NEXT_PROCESS_UTILITY = pg_sys::ProcessUtility_hook;
    pg_sys::ProcessUtility_hook = Some(on_process_utility);
    pg_sys::RegisterXactCallback(Some(on_transaction_event), std::ptr::null_mut());
    pg_sys::RegisterSubXactCallback(Some(on_subtransaction_event), std::ptr::null_mut());
}

/// Whether the build at hand is part of an ALTER TABLE.
pub fn in_alter_table() -> bool {
    ALTER_TABLE_DEPTH.get() > 0
}

/// Runs a build as if an ALTER TABLE asked for it: contents may have changed.
pub fn as_alter_table<R>(body: impl FnOnce() -> R) -> R {
    // An error leaves it to the end of the (sub)transaction.
    ALTER_TABLE_DEPTH.set(ALTER_TABLE_DEPTH.get() + 1);
    let result = body();
    ALTER_TABLE_DEPTH.set(ALTER_TABLE_DEPTH.get().saturating_sub(1));
    result
}

unsafe extern "C-unwind" fn on_process_utility(
    statement: *mut pg_sys::PlannedStmt,
    source: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // The tree may be gone when the statement is through.
    let node = (*statement).utilityStmt;
    let afterwards = guard(|| {
        databases::before(node);
        Afterwards::of(node)
    });
    let alters = (*node).type_ == pg_sys::NodeTag::T_AlterTableStmt;
    if alters {
        guard(|| before_alter_table((*statement).utilityStmt.cast()));
        ALTER_TABLE_DEPTH.set(ALTER_TABLE_DEPTH.get() + 1);
    }
    let next = NEXT_PROCESS_UTILITY;
    match next {
        Some(next) => next(
            statement,
            source,
            read_only_tree,
            context,
            params,
            environment,
            receiver,
            completion,
        ),
        None => unguarded::standard_ProcessUtility(
            statement,
            source,
            read_only_tree,
            context,
            params,
            environment,
            receiver,
            completion,
        ),
    }
    // An error skips this; the end of the (sub)transaction resets it.
    if alters {
        ALTER_TABLE_DEPTH.set(ALTER_TABLE_DEPTH.get().saturating_sub(1));
    }
    let owes = [&DROPPED_CONCURRENTLY, &KEY_CHANGED, &ALTERED, &CREATED]
        .into_iter()
        .any(|list| list.with_borrow(|oids| !oids.is_empty()));
    if ALTER_TABLE_DEPTH.get() == 0 && (owes || afterwards != Afterwards::Nothing) {
        guard(|| after_statement(afterwards));
    }
}

/// What a statement leaves to be done that no other hook tells of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Nothing,
    /// Something has another name.
    RefreshNames,
    /// A label of this enum has another name.
    LabelRenamed(pg_sys::Oid),
}

impl Afterwards {
    unsafe fn of(node: *const pg_sys::Node) -> Self {
        use pg_sys::NodeTag::*;
        match (*node).type_ {
            T_RenameStmt | T_AlterObjectSchemaStmt => Self::RefreshNames,
            // CONCURRENTLY builds another index, which then takes over the name.
            T_ReindexStmt if !(*node.cast::<pg_sys::ReindexStmt>()).params.is_null() => {
                Self::RefreshNames
            }
            T_AlterEnumStmt => {
                let alter = &*node.cast::<pg_sys::AlterEnumStmt>();
                if alter.oldVal.is_null() {
                    return Self::Nothing;
                }
                let name = pg_sys::makeTypeNameFromNameList(alter.typeName);
                let kind = pg_sys::LookupTypeNameOid(std::ptr::null_mut(), name, true);
                Self::LabelRenamed(kind)
            }
            _ => Self::Nothing,
        }
    }
}

/// What Postgres refuses for a published table, and does not tell of by a hook.
unsafe fn before_alter_table(statement: *const pg_sys::AlterTableStmt) {
    use pg_sys::AlterTableType::{AT_ReplicaIdentity, AT_SetUnLogged};
    let has = |kind| {
        let commands = (*statement).cmds;
        let count = if commands.is_null() {
            0
        } else {
            (*commands).length as usize
        };
        (0..count).any(|at| {
            let command = (*(*commands).elements.add(at)).ptr_value;
            (*command.cast::<pg_sys::AlterTableCmd>()).subtype == kind
        })
    };
    let (loses_wal, changes_key) = (has(AT_SetUnLogged), has(AT_ReplicaIdentity));
    let table = pg_sys::RangeVarGetRelidExtended(
        (*statement).relation,
        pg_sys::NoLock as c_int,
        pg_sys::RVROption::RVR_MISSING_OK,
        None,
        std::ptr::null_mut(),
    );
    // What the user may not do, the statement itself refuses.
    if table == pg_sys::InvalidOid
        || !is_permanent(table)
        || !pg_sys::pg_class_ownercheck(table, pg_sys::GetUserId())
    {
        return;
    }
    if loses_wal && !pg_sys::RecoveryInProgress() {
        collections::release_table(table);
    }
    if changes_key {
        KEY_CHANGED.with_borrow_mut(|changed| changed.push(table));
    }
    ALTERED.with_borrow_mut(|altered| altered.push(table));
}

unsafe fn after_statement(afterwards: Afterwards) {
    let (dropped, keyless) = (DROPPED_CONCURRENTLY.take(), distinct(KEY_CHANGED.take()));
    let (mut altered, created) = (ALTERED.take(), CREATED.take());
    // COMMIT, or what ran in pieces and failed in the last one.
    if !pg_sys::IsTransactionState() || pg_sys::IsBinaryUpgrade || pg_sys::RecoveryInProgress() {
        return;
    }
    for index in dropped {
        collections::remove(index);
    }
    // The relation cache then knows what the statement did.
    pg_sys::CommandCounterIncrement();
    for table in &keyless {
        let has_key = with_table(*table, |relation| {
            definition::row_key_index(relation).is_ok()
        });
        if has_key == Some(false) {
            collections::release_table(*table);
        }
    }
    altered.extend(keyless);
    altered.extend(created.into_iter().filter_map(|oid| table_of_index(oid)));
    for table in distinct(altered) {
        with_table(table, |relation| refollow::rebuild_changed(relation));
    }
    match afterwards {
        Afterwards::Nothing => {}
        Afterwards::RefreshNames => collections::refresh_names(),
        Afterwards::LabelRenamed(kind) => refollow::rebuild_with_key_of(kind),
    }
}

fn distinct(mut oids: Vec<pg_sys::Oid>) -> Vec<pg_sys::Oid> {
    oids.sort_unstable_by_key(|oid| oid.to_u32());
    oids.dedup();
    oids
}

/// Looks at a permanent table that is still there.
unsafe fn with_table<R>(oid: pg_sys::Oid, look: impl FnOnce(pg_sys::Relation) -> R) -> Option<R> {
    let relation = pg_sys::try_relation_open(oid, pg_sys::AccessShareLock as c_int);
    if relation.is_null() {
        return None;
    }
    let form = (*relation).rd_rel;
    let is_table = (*form).relkind == pg_sys::RELKIND_RELATION as c_char
        && (*form).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as c_char;
    let seen = is_table.then(|| look(relation));
    pg_sys::relation_close(relation, pg_sys::AccessShareLock as c_int);
    seen
}

unsafe fn table_of_index(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let kind = pg_sys::get_rel_relkind(relation) as u8;
    let table = (kind == pg_sys::RELKIND_INDEX).then(|| pg_sys::IndexGetRelation(relation, true));
    table.filter(|oid| *oid != pg_sys::InvalidOid)
}

unsafe fn is_permanent(relation: pg_sys::Oid) -> bool {
    pg_sys::get_rel_persistence(relation) == pg_sys::RELPERSISTENCE_PERMANENT as c_char
}

unsafe extern "C-unwind" fn on_object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    argument: *mut c_void,
) {
    let next = NEXT_OBJECT_ACCESS;
    if let Some(next) = next {
        next(access, class, object, part, argument);
    }
    if access == pg_sys::ObjectAccessType::OAT_DROP
        && class == pg_sys::RelationRelationId
        && part == 0
    {
        let concurrently = !argument.is_null()
            && (*argument.cast::<pg_sys::ObjectAccessDrop>()).dropflags
                & pg_sys::PERFORM_DELETION_CONCURRENTLY as c_int
                != 0;
        guard(|| on_drop(object, concurrently));
    }
    if access == pg_sys::ObjectAccessType::OAT_POST_CREATE
        && class == pg_sys::RelationRelationId
        && part == 0
        && !pg_sys::IsBinaryUpgrade
    {
        CREATED.with_borrow_mut(|created| created.push(object));
    }
}

unsafe fn on_drop(relation: pg_sys::Oid, concurrently: bool) {
    if pg_sys::IsBinaryUpgrade || pg_sys::RecoveryInProgress() {
        return;
    }
    let method = pg_sys::get_am_oid(access_method::NAME.as_ptr(), true);
    if method == pg_sys::InvalidOid {
        return;
    }
    match dropped_index(relation) {
        Some((index_method, _)) if index_method == method && concurrently => {
            DROPPED_CONCURRENTLY.with_borrow_mut(|dropped| dropped.push(relation));
        }
        Some((index_method, _)) if index_method == method => {
            collections::remove(relation);
        }
        Some((_, Some(table))) => KEY_CHANGED.with_borrow_mut(|changed| changed.push(table)),
        _ => {}
    }
}

/// The access method of a permanent index, and its table if it names rows.
unsafe fn dropped_index(relation: pg_sys::Oid) -> Option<(pg_sys::Oid, Option<pg_sys::Oid>)> {
    let tuple = pg_sys::SearchSysCache1(
        pg_sys::SysCacheIdentifier::RELOID as c_int,
        pg_sys::Datum::from(relation),
    );
    if tuple.is_null() {
        return None;
    }
    let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
    let permanent = (*form).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as c_char;
    let is_index = (*form).relkind == pg_sys::RELKIND_INDEX as c_char;
    let method = (*form).relam;
    pg_sys::ReleaseSysCache(tuple);
    if !permanent || !is_index {
        return None;
    }
    let tuple = pg_sys::SearchSysCache1(
        pg_sys::SysCacheIdentifier::INDEXRELID as c_int,
        pg_sys::Datum::from(relation),
    );
    if tuple.is_null() {
        return Some((method, None));
    }
    let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>();
    let names_rows = (*form).indisprimary || (*form).indisreplident;
    let table = names_rows.then_some((*form).indrelid);
    pg_sys::ReleaseSysCache(tuple);
    Some((method, table))
}

unsafe extern "C-unwind" fn on_transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut c_void,
) {
    use pg_sys::XactEvent::*;
    if matches!(
        event,
        XACT_EVENT_COMMIT
            | XACT_EVENT_PARALLEL_COMMIT
            | XACT_EVENT_ABORT
            | XACT_EVENT_PARALLEL_ABORT
            | XACT_EVENT_PREPARE
    ) {
        ALTER_TABLE_DEPTH.set(0);
        guard(|| {
            DEPTHS.take();
            own_writes::end_of_transaction();
            exact_slots::release();
            // DROP INDEX CONCURRENTLY commits on its way.
            if event == XACT_EVENT_ABORT {
                DROPPED_CONCURRENTLY.take();
                KEY_CHANGED.take();
                ALTERED.take();
                CREATED.take();
            }
        });
    }
}

unsafe extern "C-unwind" fn on_subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    guard(|| match event {
        SUBXACT_EVENT_START_SUB => {
            let depth = ALTER_TABLE_DEPTH.get();
            DEPTHS.with_borrow_mut(|depths| depths.push((subtransaction, depth)));
            own_writes::start_of_subtransaction(subtransaction);
        }
        SUBXACT_EVENT_COMMIT_SUB => {
            depth_before(subtransaction);
            own_writes::commit_of_subtransaction(subtransaction);
        }
        SUBXACT_EVENT_ABORT_SUB => {
            if let Some(depth) = depth_before(subtransaction) {
                ALTER_TABLE_DEPTH.set(depth);
            }
            own_writes::abort_of_subtransaction(subtransaction);
            exact_slots::release();
        }
        _ => {}
    });
}

/// The depth at which a subtransaction that ends now began.
fn depth_before(subtransaction: pg_sys::SubTransactionId) -> Option<u32> {
    DEPTHS
        .with_borrow_mut(|depths| depths.pop_if(|begun| begun.0 == subtransaction))
        .map(|begun| begun.1)
}
