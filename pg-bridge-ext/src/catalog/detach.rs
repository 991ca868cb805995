//! `ruvector_detach_source()`: ends the following of this database from the inside,
//! so that it can be dropped, or left alone, whatever became of the cluster.
//!
//! The slots' names go into `ruvector.detachments` first. Every consumer looks there
//! before it makes a slot or takes one over, and the table is locked until this
//! transaction ends: who looked before is ended here, who looks later sees the row.
//! Nothing comes back behind the operator's back.
//!
//! Caveat: a slot that is dropped stays dropped if the transaction rolls back.

use super::collections::as_role;
use super::databases::sessions;
use crate::error::{SqlError, SqlState, sql_functions};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::Spi;
use std::ffi::c_long;
use std::time::{Duration, Instant};

/// How long ended walsenders may take to let go.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);
const POLL_MS: c_long = 20;

const LOCK: &str = "LOCK TABLE ruvector.detachments IN ACCESS EXCLUSIVE MODE";

const REMEMBER: &str = "
WITH dropped AS (
  INSERT INTO ruvector.detachments (slot_name, detached_by, detached_at)
  SELECT n.slot_name, pg_catalog.pg_get_userbyid($1), pg_catalog.clock_timestamp()
    FROM (SELECT s.slot_name
            FROM pg_catalog.pg_replication_slots s
           WHERE s.database OPERATOR(pg_catalog.=) pg_catalog.current_database()
             AND s.plugin OPERATOR(pg_catalog.=) 'pgoutput' AND NOT s.temporary
             AND s.slot_name OPERATOR(pg_catalog.~~) 'ruvector\\_%'
           UNION
          -- One that is gone already would be made again.
          SELECT noted.slot_name FROM ruvector.slots noted) n
  ON CONFLICT (slot_name) DO UPDATE
    SET detached_by = excluded.detached_by, detached_at = excluded.detached_at
  RETURNING 1)
SELECT pg_catalog.count(*) FROM dropped";

const PUBLICATIONS: &str = "
SELECT pg_catalog.count(*), pg_catalog.string_agg(pg_catalog.format('%I', p.pubname), ', ')
  FROM pg_catalog.pg_publication p
  JOIN pg_catalog.pg_publication_rel r ON r.prpubid OPERATOR(pg_catalog.=) p.oid
 WHERE r.prrelid OPERATOR(pg_catalog.=) 'ruvector.collections'::pg_catalog.regclass";

/// Ends whoever has one of the slots, and drops those that nobody has.
const END_HOLDERS: &str = "
SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(s.active_pid))
  FROM pg_catalog.pg_replication_slots s
  JOIN ruvector.detachments d ON d.slot_name OPERATOR(pg_catalog.=) s.slot_name
 WHERE s.active_pid IS NOT NULL
   AND s.database OPERATOR(pg_catalog.=) pg_catalog.current_database()";
const DROP_SLOTS: &str = "
SELECT pg_catalog.count(*) FROM (
  SELECT pg_catalog.pg_drop_replication_slot(s.slot_name)
    FROM pg_catalog.pg_replication_slots s
    JOIN ruvector.detachments d ON d.slot_name OPERATOR(pg_catalog.=) s.slot_name
   WHERE s.active_pid IS NULL
     AND s.database OPERATOR(pg_catalog.=) pg_catalog.current_database()) AS dropped";
const SLOTS_LEFT: &str = "
SELECT pg_catalog.count(*)
  FROM pg_catalog.pg_replication_slots s
  JOIN ruvector.detachments d ON d.slot_name OPERATOR(pg_catalog.=) s.slot_name
 WHERE s.database OPERATOR(pg_catalog.=) pg_catalog.current_database()";

sql_functions! {
    pg_finfo_ruvector_detach_source for ruvector_detach_source(_call) {
        pg_sys::PreventCommandDuringRecovery(c"ruvector_detach_source()".as_ptr());
        pg_sys::PreventCommandIfReadOnly(c"ruvector_detach_source()".as_ptr());
        let user = pg_sys::GetUserId();
        if !pg_sys::superuser() && !pg_sys::pg_database_ownercheck(pg_sys::MyDatabaseId, user) {
            SqlError::new(
                SqlState::NOT_AUTHORISED,
                "only the database's owner or a superuser ends the following of a database",
            )
            .raise();
        }
        let bootstrap = pg_sys::Oid::from_u32(pg_sys::BOOTSTRAP_SUPERUSERID);
        let dropped = as_role(bootstrap, || detach(user));
        pg_sys::Datum::from(dropped as i32)
    }
}

/// How many slots were dropped.
unsafe fn detach(user: pg_sys::Oid) -> i64 {
    run(LOCK);
    let slots = number(REMEMBER, &[user.into()]);
    let publications = publications();
    if slots == 0 && publications.is_none() {
        SqlError::new(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            "no cluster follows this database: there is neither a slot nor a publication of one",
        )
        .raise();
    }
    // They may hold locks on what is dropped next.
    end_sessions();
    if let Some(publications) = publications {
        run(&format!("DROP PUBLICATION {publications}"));
    }
    let give_up_at = Instant::now() + RELEASED_WITHIN;
    let mut dropped = 0;
    loop {
        end_sessions();
        dropped += number(DROP_SLOTS, &[]);
        let left = number(SLOTS_LEFT, &[]);
        if left == 0 && sessions(pg_sys::MyDatabaseId, false) == 0 {
            return dropped;
        }
        if Instant::now() >= give_up_at {
            SqlError::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("{left} slots are still in use"),
            )
            .hint("pg_replication_slots shows by which process (active_pid); end it and try again.")
            .raise();
        }
        pgrx::check_for_interrupts!();
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            POLL_MS,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

unsafe fn end_sessions() {
    sessions(pg_sys::MyDatabaseId, true);
    number(END_HOLDERS, &[]);
}

fn publications() -> Option<String> {
    let names = Spi::get_two::<i64, String>(PUBLICATIONS);
    match names {
        Ok((_, names)) => names,
        Err(error) => pgrx::error!("the publications cannot be read: {error}"),
    }
}

fn run(sql: &str) {
    if let Err(error) = Spi::run(sql) {
        pgrx::error!("{sql}: {error}");
    }
}

fn number(sql: &str, args: &[DatumWithOid<'_>]) -> i64 {
    let count = Spi::connect_mut(|client| {
        let rows = client.update(sql, Some(1), args)?;
        rows.first().get_one::<i64>()
    });
    match count {
        Ok(count) => count.unwrap_or(0),
        Err(error) => pgrx::error!("detaching: {error}"),
    }
}
