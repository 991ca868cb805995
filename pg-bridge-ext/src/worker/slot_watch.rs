//! Which slots of the cluster nobody streams from, though they retain much WAL: seen
//! in shared memory, every few seconds, by the worker's main thread. A slot that is
//! left alone for a while gets a guard ([`super::slot_guard`]), which looks closer in
//! the slot's own database.

use crate::settings;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Slots of ours are named so by the coordinators.
pub const NAME_PREFIX: &str = "ruvector_";
pub const PLUGIN: &str = "pgoutput";

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A consumer that starts over, or another one that takes over, is back much sooner.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(30);
/// Between two guards of one database; more and more while nothing comes of them, for a
/// transaction that goes on holds the WAL then, and each guard reads all of it.
const GUARD_EVERY: Duration = Duration::from_secs(10);
const GUARD_EVERY_MAX: Duration = Duration::from_secs(600);
/// A slot that retains less than this is not looked at closer, whatever its own limit.
const LOOK_CLOSER_BYTES: u64 = 64 << 20;
const BYPASS_ALLOWCONN: u32 = 1;

pub struct SlotWatch {
    looked_at: Option<Instant>,
    /// By name: since when nobody streams.
    alone_since: HashMap<String, Instant>,
    guarded: HashMap<u32, Guarded>,
    has_warned: bool,
}

/// The last guard of a database.
struct Guarded {
    at: Instant,
    /// Of the slot that it was started for.
    restart_lsn: u64,
    pause: Duration,
}

/// What shared memory says of a slot.
struct SeenSlot {
    name: String,
    database_oid: u32,
    is_active: bool,
    restart_lsn: u64,
}

impl SlotWatch {
    pub fn new() -> Self {
        Self {
            looked_at: None,
            alone_since: HashMap::new(),
            guarded: HashMap::new(),
            has_warned: false,
        }
    }

    /// Looks, if it is time to.
    ///
    /// # Safety
    /// On the worker's main thread, outside a transaction.
    pub unsafe fn look(&mut self) {
        let now = Instant::now();
        if self.looked_at.is_some_and(|at| now < at + LOOK_EVERY) {
            return;
        }
        self.looked_at = Some(now);
        // A standby's slots are not advanced: it cannot decode before 16.
        if pg_sys::RecoveryInProgress() {
            return;
        }
        let seen = seen_slots();
        let is_alone = |name: &String| seen.iter().any(|s| !s.is_active && s.name == *name);
        self.alone_since.retain(|name, _| is_alone(name));
        let flushed = pg_sys::GetFlushRecPtr(std::ptr::null_mut());
        for slot in seen.iter().filter(|slot| !slot.is_active) {
            let since = *self.alone_since.entry(slot.name.clone()).or_insert(now);
            let retained_bytes = flushed.saturating_sub(slot.restart_lsn);
            if now >= since + LEFT_ALONE_FOR && retained_bytes > look_closer_bytes() {
                self.guard(slot, now);
            }
        }
    }

    unsafe fn guard(&mut self, slot: &SeenSlot, now: Instant) {
        let database_oid = slot.database_oid;
        let last = self.guarded.get(&database_oid);
        if last.is_some_and(|last| now < last.at + last.pause) {
            return;
        }
        let in_vain = last.filter(|last| last.restart_lsn == slot.restart_lsn);
        let pause = in_vain.map_or(GUARD_EVERY, |last| (2 * last.pause).min(GUARD_EVERY_MAX));
        let guarded = Guarded {
            at: now,
            restart_lsn: slot.restart_lsn,
            pause,
        };
        self.guarded.insert(database_oid, guarded);
        let guard = BackgroundWorkerBuilder::new("ruvector slot guard")
            .set_type("ruvector slot guard")
            .set_library("ruvector")
            .set_function("ruvector_slot_guard_main")
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(None)
            .set_argument(Some(pg_sys::Datum::from(database_oid as usize)))
            .load_dynamic();
        match guard {
            Ok(_) => self.has_warned = false,
            Err(_) if self.has_warned => {}
            Err(_) => {
                self.has_warned = true;
                pgrx::warning!(
                    "a replication slot of the cluster may be over its limit, and no worker process \
                     is free to look: raise max_worker_processes"
                );
            }
        }
    }
}

fn look_closer_bytes() -> u64 {
    match settings::slot_hold_limit_bytes() {
        0 => LOOK_CLOSER_BYTES,
        limit => limit.min(LOOK_CLOSER_BYTES),
    }
}

/// Persistent slots of ours that still hold WAL, as `pg_replication_slots` lists them.
unsafe fn seen_slots() -> Vec<SeenSlot> {
    let mut seen = Vec::new();
    pg_sys::LWLockAcquire(control_lock(), pg_sys::LWLockMode::LW_SHARED);
    let slots = (&raw const (*pg_sys::ReplicationSlotCtl).replication_slots)
        .cast::<pg_sys::ReplicationSlot>();
    for at in 0..usize::try_from(pg_sys::max_replication_slots).unwrap_or(0) {
        let slot = slots.add(at);
        // Slots come and go under the lock alone. What a running one moves meanwhile is
        // a number read at once, and a moment old either way.
        if !(&raw const (*slot).in_use).read_volatile() {
            continue;
        }
        let data = (&raw const (*slot).data).read_volatile();
        let is_ours = name_of(&data.plugin) == PLUGIN
            && data.persistency == pg_sys::ReplicationSlotPersistency::RS_PERSISTENT
            && data.database != pg_sys::InvalidOid;
        let name = name_of(&data.name);
        if is_ours && name.starts_with(NAME_PREFIX) && data.restart_lsn != 0 {
            seen.push(SeenSlot {
                name,
                database_oid: data.database.to_u32(),
                is_active: (&raw const (*slot).active_pid).read_volatile() != 0,
                restart_lsn: data.restart_lsn,
            });
        }
    }
    pg_sys::LWLockRelease(control_lock());
    seen
}

fn name_of(name: &pg_sys::NameData) -> String {
    let bytes = name.data.iter().map(|byte| *byte as u8);
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `ReplicationSlotControlLock` is the 38th of the individual lock array
/// (lwlocknames.h).
unsafe fn control_lock() -> *mut pg_sys::LWLock {
    const REPLICATION_SLOT_CONTROL_LOCK: usize = 37;
    &raw mut (*pg_sys::MainLWLockArray.add(REPLICATION_SLOT_CONTROL_LOCK)).lock
}

/// Connects a guard to its database, also to one that takes no other connections.
///
/// # Safety
/// In a worker that has just started.
pub unsafe fn connect(database_oid: pg_sys::Oid) {
    let superuser = pg_sys::Oid::from_u32(pg_sys::BOOTSTRAP_SUPERUSERID);
    pg_sys::BackgroundWorkerInitializeConnectionByOid(database_oid, superuser, BYPASS_ALLOWCONN);
}
