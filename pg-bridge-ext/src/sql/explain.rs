//! EXPLAIN (ANALYZE) of a statement that scanned an index of ours ends with what
//! the scans did. Postgres 15 lets an extension add to the whole statement only,
//! so the counts are of all its scans together.

use crate::error::guard;
use crate::scan::counters::{self, Counters};
use pgrx::pg_sys::{self, AsPgCStr};
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

static mut NEXT: pg_sys::ExplainOneQuery_hook_type = None;

mod unguarded {
    use super::*;
    unsafe extern "C-unwind" {
        pub fn pg_plan_query(
            query: *mut pg_sys::Query,
            source: *const c_char,
            cursor_options: c_int,
            params: pg_sys::ParamListInfo,
        ) -> *mut pg_sys::PlannedStmt;
        pub fn ExplainOnePlan(
            plan: *mut pg_sys::PlannedStmt,
            into: *mut pg_sys::IntoClause,
            state: *mut pg_sys::ExplainState,
            source: *const c_char,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            planning_time: *const pg_sys::instr_time,
            buffers: *const pg_sys::BufferUsage,
        );
        pub fn BufferUsageAccumDiff(
            into: *mut pg_sys::BufferUsage,
            add: *const pg_sys::BufferUsage,
            subtract: *const pg_sys::BufferUsage,
        );
        pub static pgBufferUsage: pg_sys::BufferUsage;
    }
}

/// # Safety
/// Once per process, from `_PG_init`.
pub unsafe fn install() {
    NEXT = pg_sys::ExplainOneQuery_hook;
    pg_sys::ExplainOneQuery_hook = Some(on_explain);
}

/// Its frame holds nothing that needs a destructor: errors jump through it.
unsafe extern "C-unwind" fn on_explain(
    query: *mut pg_sys::Query,
    cursor_options: c_int,
    into: *mut pg_sys::IntoClause,
    state: *mut pg_sys::ExplainState,
    source: *const c_char,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
) {
    counters::reset();
    let next = NEXT;
    match next {
        Some(next) => next(
            query,
            cursor_options,
            into,
            state,
            source,
            params,
            environment,
        ),
        None => standard(
            query,
            cursor_options,
            into,
            state,
            source,
            params,
            environment,
        ),
    }
    if (*state).analyze {
        guard(|| show(state, &counters::snapshot()));
    }
}

/// What Postgres does where no hook is set (ExplainOneQuery in explain.c).
unsafe fn standard(
    query: *mut pg_sys::Query,
    cursor_options: c_int,
    into: *mut pg_sys::IntoClause,
    state: *mut pg_sys::ExplainState,
    source: *const c_char,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
) {
    let buffers_before = unguarded::pgBufferUsage;
    let started = now();
    let plan = unguarded::pg_plan_query(query, source, cursor_options, params);
    let planning_time = elapsed(started, now());
    let mut buffers: pg_sys::BufferUsage = MaybeUninit::zeroed().assume_init();
    let shown: *const pg_sys::BufferUsage = if (*state).buffers {
        unguarded::BufferUsageAccumDiff(
            &mut buffers,
            &raw const unguarded::pgBufferUsage,
            &buffers_before,
        );
        &buffers
    } else {
        std::ptr::null()
    };
    unguarded::ExplainOnePlan(
        plan,
        into,
        state,
        source,
        params,
        environment,
        &planning_time,
        shown,
    );
}

/// `instr_time` is a timespec of the monotonic clock.
unsafe fn now() -> pg_sys::instr_time {
    let mut time: libc::timespec = MaybeUninit::zeroed().assume_init();
    libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
    let mut result: pg_sys::instr_time = MaybeUninit::zeroed().assume_init();
    result.tv_sec = time.tv_sec;
    result.tv_nsec = time.tv_nsec;
    result
}

fn elapsed(start: pg_sys::instr_time, end: pg_sys::instr_time) -> pg_sys::instr_time {
    let mut difference = end;
    difference.tv_sec -= start.tv_sec;
    difference.tv_nsec -= start.tv_nsec;
    if difference.tv_nsec < 0 {
        difference.tv_sec -= 1;
        difference.tv_nsec += 1_000_000_000;
    }
    difference
}

unsafe fn show(state: *mut pg_sys::ExplainState, counters: &Counters) {
    if counters.scans == 0 {
        return;
    }
    if (*state).format == pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT {
        let line = text(counters).as_pg_cstr();
        pg_sys::appendStringInfoString((*state).str_, line);
        return;
    }
    let group = c"RuVector".as_ptr();
    pg_sys::ExplainOpenGroup(group, std::ptr::null(), true, state);
    for (name, value) in numbers(counters) {
        pg_sys::ExplainPropertyInteger(name.as_pg_cstr(), std::ptr::null(), value as i64, state);
    }
    pg_sys::ExplainPropertyText(c"Fallback".as_ptr(), fallback(counters).as_pg_cstr(), state);
    pg_sys::ExplainCloseGroup(group, std::ptr::null(), true, state);
}

fn numbers(counters: &Counters) -> [(&'static str, u64); 14] {
    [
        ("Scans", counters.scans),
        ("Partitions", counters.partitions),
        ("Pages", counters.pages),
        ("Rows Fetched", counters.rows_fetched),
        ("Rows Invisible", counters.rows_invisible),
        ("Rows Late", counters.rows_late),
        ("Own Rows", counters.own_rows),
        ("Tail Rows", counters.tail_rows),
        ("Distances", counters.distances),
        ("Retries", counters.retries),
        ("Hedges", counters.hedges),
        ("Stale Partitions", counters.stale_partitions),
        ("Waited Ms", counters.waited_ms),
        ("Exact Rows", counters.exact_rows),
    ]
}

fn fallback(counters: &Counters) -> &str {
    counters.fallback.as_deref().unwrap_or("none")
}

fn text(counters: &Counters) -> String {
    let mut text = String::from("RuVector:");
    for (name, value) in numbers(counters) {
        text.push_str(&format!(
            " {}={value}",
            name.to_lowercase().replace(' ', "_")
        ));
    }
    format!("{text}\n  Fallback: {}\n", fallback(counters))
}
