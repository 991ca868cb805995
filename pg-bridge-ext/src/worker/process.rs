//! The worker process. Its main thread alone calls Postgres: it waits for its
//! latch, which backends set, and for an eventfd, which the runtime's threads
//! write; takes requests out of the slots; sets the latches of those that were
//! answered; and wakes every 10 ms to sample the log.

use super::samples::SAMPLE_EVERY;
use super::segment::{self, Claim, SLOTS, Segment};
use super::service::Service;
use super::slot_watch::SlotWatch;
use super::view::ServerIdentity;
use super::{ScanFailure, codec::Response, view};
use crate::scan::freshness;
use crate::settings;
use cluster_core::freshness::samples::Sample;
use parking_lot::Mutex;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys;
use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const RUNTIME_THREADS: usize = 2;
const RUNTIME_STOP_MAX: Duration = Duration::from_secs(1);
/// Without a request, a reload or a sample to take.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// Latches to set, of backends whose answers are there.
struct Answered {
    latches: Mutex<Vec<Latch>>,
    eventfd: OwnedFd,
}

/// Points into shared memory, and is used by the main thread only.
struct Latch(*mut pg_sys::Latch);

// SAFETY: only carried from thread to thread, see above.
unsafe impl Send for Latch {}

impl Answered {
    fn new() -> std::io::Result<Self> {
        // SAFETY: a plain system call, whose result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and is nobody else's.
        Ok(Self {
            latches: Mutex::default(),
            eventfd: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    fn push(&self, latch: Latch) {
        self.latches.lock().push(latch);
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes of our own; a full counter is a wake-up too.
        unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    fn take(&self) -> Vec<Latch> {
        let mut count = [0u8; 8];
        // SAFETY: reads into eight bytes of our own; an empty counter says so.
        unsafe {
            libc::read(
                self.eventfd.as_raw_fd(),
                count.as_mut_ptr().cast(),
                count.len(),
            )
        };
        std::mem::take(&mut *self.latches.lock())
    }
}

#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ruvector_worker_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let Some(segment) = segment::get() else {
        pgrx::error!("the shared memory of the ruvector worker is missing");
    };
    pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0usize));
    let runtime = match with_signals_blocked(start_runtime) {
        Ok(runtime) => runtime,
        Err(problem) => pgrx::error!("the ruvector worker cannot start its runtime: {problem}"),
    };
    let answered = match Answered::new() {
        Ok(answered) => Arc::new(answered),
        Err(problem) => pgrx::error!("the ruvector worker cannot make an eventfd: {problem}"),
    };
    fail_orphans(segment);
    let mut coordinators = settings::coordinators();
    let start = segment.worker_starts.fetch_add(1, Ordering::Relaxed) + 1;
    let server = ServerIdentity {
        system_identifier: pg_sys::GetSystemIdentifier(),
        start: segment.server_start(),
        started_ms: view::boot_ms().saturating_sub(super::uptime().as_millis() as u64),
    };
    let mut slots = SlotWatch::new();
    let service = {
        let _inside = runtime.enter();
        Service::start(segment, server, start, coordinators.clone())
    };
    segment.set_worker_latch(pg_sys::MyLatch);
    let waiting = wait_set(&answered);
    let mut running: [Option<(Claim, CancellationToken)>; SLOTS] = [const { None }; SLOTS];
    while !BackgroundWorker::sigterm_received() {
        pgrx::check_for_interrupts!();
        if BackgroundWorker::sighup_received() {
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
            let now = settings::coordinators();
            if now != coordinators {
                let _inside = runtime.enter();
                service.reconnect(now.clone());
                coordinators = now;
            }
        }
        for latch in answered.take() {
            pg_sys::SetLatch(latch.0);
        }
        let pause = sample(segment);
        slots.look();
        take_requests(segment, &runtime, &service, &answered, &mut running);
        let mut event = pg_sys::WaitEvent::default();
        let timeout = pause.as_millis() as c_long;
        pg_sys::WaitEventSetWait(waiting, timeout, &mut event, 1, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    segment.set_worker_latch(std::ptr::null_mut());
    runtime.shutdown_timeout(RUNTIME_STOP_MAX);
    fail_orphans(segment);
    // Not 0: the postmaster would not start it again.
    pg_sys::proc_exit(1);
}

/// Takes a sample of how far the log is on disk, if it is time to. Answers when the
/// next is due. A standby's log is another server's, and without an index nobody
/// bounds the age of an answer: the worker then sleeps.
unsafe fn sample(segment: &Segment) -> Duration {
    if segment.table.is_empty() || pg_sys::RecoveryInProgress() {
        return IDLE_PAUSE;
    }
    let now = view::boot_micros();
    if segment.samples.is_due(now) {
        // The time was read first: see the samples' module.
        segment.samples.take(Sample {
            at: now,
            flushed: freshness::flushed(),
        });
    }
    SAMPLE_EVERY
}

/// Takes what was submitted, and tells tasks whose backends have left.
fn take_requests(
    segment: &'static Segment,
    runtime: &Runtime,
    service: &Arc<Service>,
    answered: &Arc<Answered>,
    running: &mut [Option<(Claim, CancellationToken)>; SLOTS],
) {
    for (index, running) in running.iter_mut().enumerate() {
        if let Some((claim, stop)) = running
            && segment.is_abandoned(*claim)
        {
            stop.cancel();
            *running = None;
        }
        let Some((claim, request)) = segment.take_request(index) else {
            continue;
        };
        let stop = CancellationToken::new();
        *running = Some((claim, stop.clone()));
        let (service, answered) = (service.clone(), answered.clone());
        runtime.spawn(async move {
            // A task of its own, so that a panic there leaves no backend waiting.
            let work = async move { service.serve(claim, request, stop).await.map(Latch) };
            let latch = tokio::spawn(work).await.unwrap_or_else(|_| {
                let text = "the background worker failed on this request; see the server's log";
                segment.answer(claim, &unavailable(text)).map(Latch)
            });
            if let Some(latch) = latch {
                answered.push(latch);
            }
        });
    }
}

/// Answers what a worker that is gone had under way.
unsafe fn fail_orphans(segment: &Segment) {
    let response = unavailable("the background worker restarted");
    for claim in segment.orphans() {
        if let Some(latch) = segment.answer(claim, &response) {
            pg_sys::SetLatch(latch);
        }
    }
}

fn unavailable(text: &str) -> Vec<u8> {
    Response::Failure(ScanFailure::Unavailable(text.to_owned())).encode()
}

unsafe fn wait_set(answered: &Answered) -> *mut pg_sys::WaitEventSet {
    let set = pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, 3);
    let none = std::ptr::null_mut();
    let no_socket = pg_sys::PGINVALID_SOCKET;
    pg_sys::AddWaitEventToSet(set, pg_sys::WL_LATCH_SET, no_socket, pg_sys::MyLatch, none);
    let exit = pg_sys::WL_EXIT_ON_PM_DEATH;
    pg_sys::AddWaitEventToSet(set, exit, no_socket, std::ptr::null_mut(), none);
    let readable = pg_sys::WL_SOCKET_READABLE;
    let eventfd = answered.eventfd.as_raw_fd();
    pg_sys::AddWaitEventToSet(set, readable, eventfd, std::ptr::null_mut(), none);
    set
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: c_int, _arg: pg_sys::Datum) {
    if let Some(segment) = segment::get() {
        segment.set_worker_latch(std::ptr::null_mut());
    }
}

fn start_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("ruvector")
        .enable_all()
        .build()
}

/// Runs `start` with all signals blocked: threads inherit the mask, and signals
/// are then handled by the main thread alone.
fn with_signals_blocked<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are filled before they are read.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let started = start();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        started
    }
}
