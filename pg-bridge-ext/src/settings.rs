//! The settings of `ruvector.*`, with their defaults in one place.

use crate::scan::session_token;
use crate::worker;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys::{self, AsPgCStr};
use std::ffi::{CString, c_char, c_int};

/// How current an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum ReadConsistency {
    #[name = c"eventual"]
    Eventual,
    #[name = c"bounded"]
    Bounded,
    #[name = c"session"]
    Session,
    #[name = c"strong"]
    Strong,
}

/// What a scan does when the cluster cannot answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum OnUnavailable {
    #[name = c"exact"]
    Exact,
    #[name = c"error"]
    Error,
}

/// What happens to a row that is found after farther ones were returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum IterativeScan {
    #[name = c"relaxed_order"]
    Relaxed,
    #[name = c"strict_order"]
    Strict,
}

pub const COORDINATORS_DEFAULT: &str = "127.0.0.1:7401";
/// Slots for the count of exact scans, a bound on the setting.
pub const EXACT_SCANS_MAX: i32 = 64;

static COORDINATORS: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"127.0.0.1:7401"));
static ALLOW_PLAINTEXT_OFF_LOOPBACK: GucSetting<bool> = GucSetting::<bool>::new(false);
static EF_SEARCH: GucSetting<i32> = GucSetting::<i32>::new(100);
static READ_CONSISTENCY: GucSetting<ReadConsistency> =
    GucSetting::<ReadConsistency>::new(ReadConsistency::Session);
static MAX_LAG_MS: GucSetting<i32> = GucSetting::<i32>::new(100);
static SESSION_TOKEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ON_UNAVAILABLE: GucSetting<OnUnavailable> =
    GucSetting::<OnUnavailable>::new(OnUnavailable::Exact);
static EXACT_SCAN_MAX_ROWS: GucSetting<i32> = GucSetting::<i32>::new(100_000);
static EXACT_SCAN_MAX_CONCURRENT: GucSetting<i32> = GucSetting::<i32>::new(2);
/// As the consumer's `slot_hold_limit_bytes`.
static SLOT_HOLD_LIMIT_MB: GucSetting<i32> = GucSetting::<i32>::new(64 << 10);
static SEARCH_TIMEOUT_MS: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static ITERATIVE_SCAN: GucSetting<IterativeScan> =
    GucSetting::<IterativeScan>::new(IterativeScan::Relaxed);

/// Where the coordinators are, and how they may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinators {
    /// `host:port` each.
    pub addresses: Vec<String>,
    pub allow_plaintext_off_loopback: bool,
}

pub fn coordinators() -> Coordinators {
    Coordinators {
        addresses: addresses(),
        allow_plaintext_off_loopback: ALLOW_PLAINTEXT_OFF_LOOPBACK.get(),
    }
}

fn addresses() -> Vec<String> {
    let text = COORDINATORS.get().map_or_else(
        || COORDINATORS_DEFAULT.to_owned(),
        |text| text.to_string_lossy().into_owned(),
    );
    text.split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .map(str::to_owned)
        .collect()
}

pub fn ef_search() -> u32 {
    EF_SEARCH.get().unsigned_abs()
}

pub fn read_consistency() -> ReadConsistency {
    READ_CONSISTENCY.get()
}

pub fn max_lag_ms() -> u64 {
    u64::from(MAX_LAG_MS.get().unsigned_abs())
}

/// Empty for none.
pub fn session_token() -> String {
    SESSION_TOKEN
        .get()
        .map_or_else(String::new, |text| text.to_string_lossy().into_owned())
}

pub fn on_unavailable() -> OnUnavailable {
    ON_UNAVAILABLE.get()
}

pub fn exact_scan_rows_max() -> u64 {
    u64::from(EXACT_SCAN_MAX_ROWS.get().unsigned_abs())
}

pub fn exact_scans_max() -> u32 {
    EXACT_SCAN_MAX_CONCURRENT.get().unsigned_abs()
}

/// 0: none.
pub fn slot_hold_limit_bytes() -> u64 {
    u64::from(SLOT_HOLD_LIMIT_MB.get().unsigned_abs()) << 20
}

pub fn search_timeout_ms() -> u64 {
    u64::from(SEARCH_TIMEOUT_MS.get().unsigned_abs())
}

pub fn iterative_scan() -> IterativeScan {
    ITERATIVE_SCAN.get()
}

/// What the setting `ruvector.server_start` points to; shown from shared memory.
static mut SERVER_START: *mut c_char = std::ptr::null_mut();

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn show_server_start() -> *const c_char {
    worker::server_start().to_string().as_pg_cstr()
}

/// The consumer reads it where it streams from, and tells the cluster which server
/// its searches come from.
unsafe fn define_server_start() {
    pg_sys::DefineCustomStringVariable(
        c"ruvector.server_start".as_ptr(),
        c"A random number that the server drew when it started.".as_ptr(),
        c"A copy of the server's files never has the same one; 0 where the library is not preloaded."
            .as_ptr(),
        &raw mut SERVER_START,
        c"".as_ptr(),
        GucContext::Internal as pg_sys::GucContext::Type,
        (pg_sys::GUC_NOT_IN_SAMPLE | pg_sys::GUC_DISALLOW_IN_FILE) as c_int,
        None,
        None,
        Some(show_server_start),
    );
}

/// Defines the settings; called once per process, at load.
pub fn register() {
    // SAFETY: in _PG_init, like everything here.
    unsafe { define_server_start() };
    let none = GucFlags::default();
    GucRegistry::define_string_guc(
        c"ruvector.coordinators",
        c"Coordinators of the cluster, as host:port,host:port.",
        c"The background worker reads it again when the configuration is reloaded.",
        &COORDINATORS,
        GucContext::Sighup,
        none,
    );
    GucRegistry::define_bool_guc(
        c"ruvector.allow_plaintext_off_loopback",
        c"Whether coordinators and nodes on other machines are reached in plaintext.",
        c"Only in a network where nobody else listens; without it they are not reached at all.",
        &ALLOW_PLAINTEXT_OFF_LOOPBACK,
        GucContext::Sighup,
        none,
    );
    GucRegistry::define_int_guc(
        c"ruvector.ef_search",
        c"Candidates that a search keeps; each partition keeps its part of them.",
        c"More finds more true neighbours, and takes longer.",
        &EF_SEARCH,
        1,
        1000,
        GucContext::Userset,
        none,
    );
    GucRegistry::define_enum_guc(
        c"ruvector.read_consistency",
        c"How current an answer must be.",
        c"eventual takes what is there, bounded waits for commits older than ruvector.max_lag_ms, session for this session's own commits, strong for every commit before the query.",
        &READ_CONSISTENCY,
        GucContext::Userset,
        none,
    );
    define_freshness();
    GucRegistry::define_enum_guc(
        c"ruvector.on_unavailable",
        c"What a scan does when the cluster cannot answer.",
        c"exact scans the table, within ruvector.exact_scan_max_rows; error fails with RV003, or with RV002 where the index only lags.",
        &ON_UNAVAILABLE,
        GucContext::Userset,
        none,
    );
    GucRegistry::define_int_guc(
        c"ruvector.exact_scan_max_rows",
        c"Rows of the largest table that is scanned exactly while the cluster is unavailable.",
        c"Scans that the index cannot serve in principle are not bounded.",
        &EXACT_SCAN_MAX_ROWS,
        0,
        i32::MAX,
        GucContext::Userset,
        none,
    );
    GucRegistry::define_int_guc(
        c"ruvector.exact_scan_max_concurrent",
        c"Exact scans at one time, in the whole server, while the cluster is unavailable.",
        c"Beyond it a scan fails with RV003 rather than load the primary.",
        &EXACT_SCAN_MAX_CONCURRENT,
        0,
        EXACT_SCANS_MAX,
        GucContext::Sighup,
        none,
    );
    GucRegistry::define_int_guc(
        c"ruvector.slot_hold_limit",
        c"WAL that a slot of the cluster may retain while nobody streams from it; 0 for any amount.",
        c"Past it the slot is advanced to save the disk, and its indexes are stale until they are reconciled. What the consumer noted for the source comes first.",
        &SLOT_HOLD_LIMIT_MB,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"ruvector.search_timeout_ms",
        c"The longest that one page of a search may take.",
        c"When it is over, ruvector.on_unavailable decides.",
        &SEARCH_TIMEOUT_MS,
        1,
        600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_enum_guc(
        c"ruvector.iterative_scan",
        c"What happens to a row that is found after farther ones were returned.",
        c"relaxed_order returns it late, strict_order leaves it out.",
        &ITERATIVE_SCAN,
        GucContext::Userset,
        none,
    );
}

fn define_freshness() {
    GucRegistry::define_int_guc(
        c"ruvector.max_lag_ms",
        c"How old what a bounded answer lacks may be at most.",
        c"Counted from when a commit was on disk; 0 asks for all that is on disk.",
        &MAX_LAG_MS,
        0,
        worker::LAG_MS_MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    // SAFETY: the hook is guarded.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"ruvector.session_token",
            c"A token of ruvector_session_token() whose commit session searches wait for.",
            c"For clients whose statements run on changing connections; empty for none.",
            &SESSION_TOKEN,
            GucContext::Userset,
            GucFlags::default(),
            Some(session_token::check),
            None,
            None,
        );
    }
}
