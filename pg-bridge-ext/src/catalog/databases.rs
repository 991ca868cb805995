//! Statements about a whole database, which Postgres refuses while anybody is
//! connected to it: the consumer of a followed one always is. Its sessions are ended
//! first, behind the lock that the statement takes anyway, so that it cannot come back
//! before the statement is through.
//!
//! Sessions of others are left alone: what the statement says about them is what it
//! says without us.

use super::collections::as_role;
use crate::error::SqlError;
use crate::pause::pause;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::Spi;
use std::ffi::{CStr, c_char, c_int};
use std::time::{Duration, Instant};

const RELEASED_WITHIN: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Whether the user may do what the statement asks for; if not, it says so itself.
const MAY_COPY: &str = "
SELECT r.rolsuper OR r.rolcreatedb
       AND (d.datistemplate OR pg_catalog.pg_has_role(r.oid, d.datdba, 'USAGE'))
  FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
 WHERE r.oid OPERATOR(pg_catalog.=) $2 AND d.oid OPERATOR(pg_catalog.=) $1";
const IS_OWNER: &str = "
SELECT pg_catalog.pg_has_role($2, d.datdba, 'USAGE')
  FROM pg_catalog.pg_database d WHERE d.oid OPERATOR(pg_catalog.=) $1";

/// Ends the consumer's sessions and says how many there still were. Statistics are
/// of the transaction's first look otherwise.
const END_SESSIONS: &str = "
SELECT count(pg_catalog.pg_terminate_backend(a.pid))
  FROM pg_catalog.pg_stat_activity a
 WHERE a.datid OPERATOR(pg_catalog.=) $1
   AND a.application_name OPERATOR(pg_catalog.=) 'ruvector-consumer'";

/// # Safety
/// Before the utility statement runs, in its transaction.
pub unsafe fn before(statement: *mut pg_sys::Node) {
    if pg_sys::IsBinaryUpgrade || pg_sys::RecoveryInProgress() {
        return;
    }
    match (*statement).type_ {
        pg_sys::NodeTag::T_DropdbStmt => {
            let drop = &*statement.cast::<pg_sys::DropdbStmt>();
            let lock = pg_sys::AccessExclusiveLock;
            release(drop.dbname, IS_OWNER, lock as c_int);
        }
        pg_sys::NodeTag::T_CreatedbStmt => {
            let create = &*statement.cast::<pg_sys::CreatedbStmt>();
            let template = template_of(create.options);
            release(template, MAY_COPY, pg_sys::ShareLock as c_int);
        }
        pg_sys::NodeTag::T_RenameStmt => {
            let rename = &*statement.cast::<pg_sys::RenameStmt>();
            if rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                let lock = pg_sys::AccessExclusiveLock;
                release(rename.subname, IS_OWNER, lock as c_int);
            }
        }
        _ => {}
    }
}

/// Null without the option: `template1`, which nobody follows.
unsafe fn template_of(options: *mut pg_sys::List) -> *const c_char {
    let count = if options.is_null() {
        0
    } else {
        (*options).length as usize
    };
    for at in 0..count {
        let option = (*(*options).elements.add(at))
            .ptr_value
            .cast::<pg_sys::DefElem>();
        if CStr::from_ptr((*option).defname) == c"template" && !(*option).arg.is_null() {
            return pg_sys::defGetString(option);
        }
    }
    std::ptr::null()
}

unsafe fn release(name: *const c_char, is_allowed: &str, lock: c_int) {
    // In a transaction block the statement is refused.
    if name.is_null() || pg_sys::IsTransactionBlock() {
        return;
    }
    let database = pg_sys::get_database_oid(name, true);
    // One's own database can be copied, but neither dropped nor renamed.
    let is_refused = database == pg_sys::MyDatabaseId && lock != pg_sys::ShareLock as c_int;
    if database == pg_sys::InvalidOid || is_refused {
        return;
    }
    let args = [
        DatumWithOid::from(database),
        DatumWithOid::from(pg_sys::GetUserId()),
    ];
    let bootstrap = pg_sys::Oid::from_u32(pg_sys::BOOTSTRAP_SUPERUSERID);
    let is_allowed = as_role(bootstrap, || {
        Spi::get_one_with_args::<bool>(is_allowed, &args)
    });
    if !matches!(is_allowed, Ok(Some(true))) {
        return;
    }
    if as_role(bootstrap, || sessions(database, false)) == 0 {
        return;
    }
    // A consumer that comes back waits here, and finds what the statement left.
    pg_sys::LockSharedObject(pg_sys::DatabaseRelationId, database, 0, lock as _);
    let give_up_at = Instant::now() + RELEASED_WITHIN;
    while as_role(bootstrap, || sessions(database, true)) > 0 && Instant::now() < give_up_at {
        pause(POLL_EVERY);
    }
}

/// How many sessions the consumer has in a database; ended, if asked to.
pub(super) unsafe fn sessions(database: pg_sys::Oid, ends: bool) -> i64 {
    pg_sys::pgstat_clear_snapshot();
    let counting = END_SESSIONS.replace("pg_catalog.pg_terminate_backend(a.pid)", "*");
    let sql = if ends {
        END_SESSIONS
    } else {
        counting.as_str()
    };
    match Spi::get_one_with_args::<i64>(sql, &[DatumWithOid::from(database)]) {
        Ok(count) => count.unwrap_or(0),
        Err(error) => {
            SqlError::new(
                crate::error::SqlState::WARNING,
                format!("the sessions of the cluster's consumer cannot be ended: {error}"),
            )
            .warn();
            0
        }
    }
}
