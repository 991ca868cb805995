//! A backend's side of the queue: one request at a time, waited for with a
//! deadline, given up when the statement is cancelled or the backend ends.

use super::ScanFailure;
use super::codec::{Request, Response};
use super::segment::{self, Claim, Segment};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_int, c_long};
use std::time::{Duration, Instant};

/// The worker answers at the deadline by itself; this is for its answer to arrive.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// How often a backend looks for a free slot while there is none.
const FREE_SLOT_POLL: Duration = Duration::from_millis(2);
/// How long a restarting worker is waited for.
const WORKER_START_POLL: Duration = Duration::from_millis(20);
/// Latches are set for many reasons; a lost wake-up costs no more than this.
const WAIT_MAX: Duration = Duration::from_secs(1);

thread_local! {
    static HELD: Cell<Option<Claim>> = const { Cell::new(None) };
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Gives the slot up when an error unwinds through the wait.
struct Held(&'static Segment);

impl Drop for Held {
    fn drop(&mut self) {
        give_up(self.0);
    }
}

/// Asks the worker and waits for its answer.
pub fn call(request: &Request, timeout: Duration) -> Result<Response, ScanFailure> {
    let segment = segment::get().ok_or_else(|| {
        ScanFailure::Unavailable("the extension is not in shared_preload_libraries".to_owned())
    })?;
    let bytes = request.encode();
    if bytes.len() > segment::REQUEST_BYTES {
        return Err(ScanFailure::Invalid(format!(
            "the request has {} bytes",
            bytes.len()
        )));
    }
    guard_exit();
    let deadline = Instant::now() + timeout;
    let held = Held(segment);
    let claim = claim(segment, &bytes, deadline)?;
    HELD.set(Some(claim));
    segment.submit(claim);
    wake_worker(segment);
    let answer = wait(segment, claim, deadline + ANSWER_MARGIN);
    drop(held);
    let response = Response::decode(&answer?)
        .map_err(|_| ScanFailure::Unavailable("the worker's answer does not decode".to_owned()))?;
    match response {
        Response::Failure(failure) => Err(failure),
        response => Ok(response),
    }
}

/// Sends what needs no answer, if there is a slot; called while errors unwind.
pub fn notify(request: &Request) {
    let Some(segment) = segment::get() else {
        return;
    };
    // SAFETY: reads this backend's own latch.
    let latch = unsafe { pg_sys::MyLatch };
    if let Some(claim) = segment.claim(latch, &request.encode()) {
        segment.submit(claim);
        wake_worker(segment);
    }
}

fn claim(segment: &Segment, bytes: &[u8], deadline: Instant) -> Result<Claim, ScanFailure> {
    loop {
        let is_running = !segment.worker_latch().is_null();
        // SAFETY: reads this backend's own latch.
        let latch = unsafe { pg_sys::MyLatch };
        if is_running && let Some(claim) = segment.claim(latch, bytes) {
            return Ok(claim);
        }
        if Instant::now() >= deadline {
            return Err(if is_running {
                ScanFailure::Throttled(format!(
                    "all {} slots of the background worker are taken",
                    segment::SLOTS
                ))
            } else {
                ScanFailure::Unavailable("the background worker is not running".to_owned())
            });
        }
        let poll = if is_running {
            FREE_SLOT_POLL
        } else {
            WORKER_START_POLL
        };
        sleep_on_latch(deadline.min(Instant::now() + poll));
    }
}

fn wait(segment: &Segment, claim: Claim, deadline: Instant) -> Result<Vec<u8>, ScanFailure> {
    loop {
        if let Some(answer) = segment.take_answer(claim) {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(ScanFailure::Unavailable(
                "the background worker did not answer in time".to_owned(),
            ));
        }
        sleep_on_latch(deadline);
    }
}

/// Returns when the latch is set or the time has come; raises what interrupts.
fn sleep_on_latch(until: Instant) {
    let left = until
        .saturating_duration_since(Instant::now())
        .min(WAIT_MAX);
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // At least 1 ms: the rest of a millisecond must not become a busy loop.
    let timeout = (left.as_millis() as c_long).max(1);
    // SAFETY: on the backend's main thread, in a transaction.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as c_int,
            timeout,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

fn wake_worker(segment: &Segment) {
    let latch = segment.worker_latch();
    if !latch.is_null() {
        // SAFETY: a latch in shared memory; at worst somebody else's by now.
        unsafe { pg_sys::SetLatch(latch) };
    }
}

fn give_up(segment: &Segment) {
    if let Some(claim) = HELD.take()
        && segment.abandon(claim)
    {
        wake_worker(segment);
    }
}

/// Frees the slot of a backend that is terminated while it waits: FATAL errors do
/// not unwind.
fn guard_exit() {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn at_exit(_code: c_int, _arg: pg_sys::Datum) {
        if let Some(segment) = segment::get() {
            give_up(segment);
        }
    }
    if !IS_GUARDED.replace(true) {
        // SAFETY: on the backend's main thread.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0usize)) };
    }
}
