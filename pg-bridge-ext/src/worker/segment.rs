//! The shared memory between backends and the worker: a table of what the
//! cluster knows ([`super::view`]), samples of the log ([`super::samples`]), the
//! server's counters, and the slots of the queue.
//!
//! A slot's word holds a generation and a phase; whoever changes the phase owns
//! the slot's bytes until the next change:
//!
//! ```text
//! Free ─backend─► Claimed ─backend─► Submitted ─worker─► Running ─worker─► Answered ─backend─► Free
//!                                        └─backend─► Free    └─backend─► Abandoned ─worker─► Free
//! ```
//!
//! The generation rises with every claim, so that nobody acts on a slot that has
//! changed hands. Everything here is atomics and plain bytes: it can be used from
//! any thread, and an error may unwind through it at any point.

use super::samples::Samples;
use super::view::Table;
use crate::scan::visibility::VisibilityStats;
use cluster_core::ids::ServerStart;
use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Requests under way at one time, over all backends.
pub const SLOTS: usize = 64;
/// A vector of 16,000 dimensions and a header.
pub const REQUEST_BYTES: usize = 72 << 10;
/// What does not fit into an answer stays in the worker for the next one.
pub const RESPONSE_BYTES: usize = 192 << 10;

const NAME: &CStr = c"ruvector worker";
const PHASE_BITS: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Phase {
    Free = 0,
    Claimed = 1,
    Submitted = 2,
    Running = 3,
    Answered = 4,
    Abandoned = 5,
}

/// A claim of a slot; void once the slot's generation has moved on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub slot: usize,
    pub generation: u64,
}

/// All of it; zeroed bytes are a valid empty segment.
#[repr(C)]
pub struct Segment {
    /// The latch of the worker that runs; null while none does.
    worker_latch: AtomicPtr<pg_sys::Latch>,
    /// Counts the worker's starts.
    pub worker_starts: AtomicU64,
    /// Drawn when this memory was made: at each start of the server, and after a crash.
    server_start: AtomicU64,
    pub table: Table,
    pub samples: Samples,
    pub visibility: VisibilityStats,
    slots: [Slot; SLOTS],
}

#[repr(C)]
struct Slot {
    word: AtomicU64,
    /// In shared memory for the server's life; whoever owns it by then.
    backend_latch: AtomicPtr<pg_sys::Latch>,
    request_len: AtomicU32,
    response_len: AtomicU32,
    request: UnsafeCell<[u8; REQUEST_BYTES]>,
    response: UnsafeCell<[u8; RESPONSE_BYTES]>,
}

// SAFETY: the phases hand the bytes from one owner to the next.
unsafe impl Sync for Segment {}

static SEGMENT: AtomicPtr<Segment> = AtomicPtr::new(std::ptr::null_mut());

/// The segment; `None` where the library was not preloaded.
pub fn get() -> Option<&'static Segment> {
    // SAFETY: set once, by `start_up`, to memory that lives as long as the server.
    unsafe { SEGMENT.load(Ordering::Relaxed).as_ref() }
}

/// For the `shmem_request_hook`.
pub unsafe fn request() {
    pg_sys::RequestAddinShmemSpace(size_of::<Segment>());
}

/// For the `shmem_startup_hook`; again after a crash, with fresh memory.
pub unsafe fn start_up() {
    pg_sys::LWLockAcquire(addin_lock(), pg_sys::LWLockMode::LW_EXCLUSIVE);
    let mut found = false;
    let memory = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Segment>(), &mut found);
    if !found {
        std::ptr::write_bytes(memory.cast::<u8>(), 0, size_of::<Segment>());
        let mut start = 0u64;
        if !pg_sys::pg_strong_random((&raw mut start).cast(), size_of::<u64>()) {
            pgrx::error!("the server gives no random number to know this start by");
        }
        let segment = memory.cast::<Segment>();
        (*segment)
            .server_start
            .store(start.max(1), Ordering::Relaxed);
    }
    SEGMENT.store(memory.cast(), Ordering::Relaxed);
    pg_sys::LWLockRelease(addin_lock());
}

/// `AddinShmemInitLock` is the 22nd of the individual lock array (lwlocknames.h).
unsafe fn addin_lock() -> *mut pg_sys::LWLock {
    const ADDIN_SHMEM_INIT_LOCK: usize = 21;
    &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock
}

impl Segment {
    pub fn server_start(&self) -> ServerStart {
        ServerStart(self.server_start.load(Ordering::Relaxed))
    }

    // ------------------------------------------------------------------ backend

    /// Takes a free slot, if there is one, and writes the request into it.
    pub fn claim(&self, latch: *mut pg_sys::Latch, request: &[u8]) -> Option<Claim> {
        assert!(
            request.len() <= REQUEST_BYTES,
            "a request of {} bytes",
            request.len()
        );
        for (index, slot) in self.slots.iter().enumerate() {
            let word = slot.word.load(Ordering::Relaxed);
            if phase_of(word) != Phase::Free as u64 {
                continue;
            }
            let claim = Claim {
                slot: index,
                generation: generation_of(word).wrapping_add(1),
            };
            if !self.swap(index, word, word_of(claim, Phase::Claimed)) {
                continue;
            }
            slot.backend_latch.store(latch, Ordering::Relaxed);
            slot.request_len
                .store(request.len() as u32, Ordering::Relaxed);
            // SAFETY: a claimed slot's bytes are the claimer's.
            unsafe {
                let to = slot.request.get().cast::<u8>();
                std::ptr::copy_nonoverlapping(request.as_ptr(), to, request.len());
            }
            return Some(claim);
        }
        None
    }

    /// Hands the request to the worker; wakes it only when asked to.
    pub fn submit(&self, claim: Claim) {
        self.step(claim, Phase::Claimed, Phase::Submitted);
    }

    /// The answer, once it is there; the slot is free then.
    pub fn take_answer(&self, claim: Claim) -> Option<Vec<u8>> {
        let slot = &self.slots[claim.slot];
        if slot.word.load(Ordering::Acquire) != word_of(claim, Phase::Answered) {
            return None;
        }
        let len = (slot.response_len.load(Ordering::Relaxed) as usize).min(RESPONSE_BYTES);
        let mut answer = vec![0; len];
        // SAFETY: an answered slot's bytes are the backend's.
        unsafe {
            let from = slot.response.get().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, answer.as_mut_ptr(), len);
        }
        self.step(claim, Phase::Answered, Phase::Free);
        Some(answer)
    }

    /// Gives up a claim in whatever phase it is; answers whether the worker must
    /// hear of it.
    pub fn abandon(&self, claim: Claim) -> bool {
        for phase in [Phase::Claimed, Phase::Submitted] {
            if self.step(claim, phase, Phase::Free) {
                return false;
            }
        }
        let is_running = self.step(claim, Phase::Running, Phase::Abandoned);
        if !is_running {
            self.step(claim, Phase::Answered, Phase::Free);
        }
        is_running
    }

    pub fn worker_latch(&self) -> *mut pg_sys::Latch {
        self.worker_latch.load(Ordering::Acquire)
    }

    // ------------------------------------------------------------------- worker

    pub fn set_worker_latch(&self, latch: *mut pg_sys::Latch) {
        self.worker_latch.store(latch, Ordering::Release);
    }

    /// Takes a submitted request.
    pub fn take_request(&self, index: usize) -> Option<(Claim, Vec<u8>)> {
        let slot = &self.slots[index];
        let word = slot.word.load(Ordering::Acquire);
        let claim = Claim {
            slot: index,
            generation: generation_of(word),
        };
        let is_submitted = phase_of(word) == Phase::Submitted as u64;
        if !is_submitted || !self.step(claim, Phase::Submitted, Phase::Running) {
            return None;
        }
        let len = (slot.request_len.load(Ordering::Relaxed) as usize).min(REQUEST_BYTES);
        let mut request = vec![0; len];
        // SAFETY: a running slot's bytes are the worker's.
        unsafe {
            let from = slot.request.get().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, request.as_mut_ptr(), len);
        }
        Some((claim, request))
    }

    pub fn is_abandoned(&self, claim: Claim) -> bool {
        let word = self.slots[claim.slot].word.load(Ordering::Acquire);
        word == word_of(claim, Phase::Abandoned)
    }

    /// Answers a running request, with the latch to set; `None` when the backend
    /// has left, and the slot is free.
    pub fn answer(&self, claim: Claim, response: &[u8]) -> Option<*mut pg_sys::Latch> {
        assert!(
            response.len() <= RESPONSE_BYTES,
            "a response of {} bytes",
            response.len()
        );
        let slot = &self.slots[claim.slot];
        let word = slot.word.load(Ordering::Acquire);
        let is_ours = [Phase::Running, Phase::Abandoned]
            .into_iter()
            .any(|phase| word == word_of(claim, phase));
        if !is_ours {
            // Answered already, or somebody else's by now.
            return None;
        }
        let latch = slot.backend_latch.load(Ordering::Relaxed);
        slot.response_len
            .store(response.len() as u32, Ordering::Relaxed);
        // SAFETY: a running or abandoned slot's bytes are the worker's.
        unsafe {
            let to = slot.response.get().cast::<u8>();
            std::ptr::copy_nonoverlapping(response.as_ptr(), to, response.len());
        }
        if self.step(claim, Phase::Running, Phase::Answered) {
            return Some(latch);
        }
        self.step(claim, Phase::Abandoned, Phase::Free);
        None
    }

    /// Frees a running request that nobody waits for.
    pub fn release(&self, claim: Claim) {
        if !self.step(claim, Phase::Running, Phase::Free) {
            self.step(claim, Phase::Abandoned, Phase::Free);
        }
    }

    /// What a worker that has gone left under way.
    pub fn orphans(&self) -> impl Iterator<Item = Claim> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let word = slot.word.load(Ordering::Acquire);
            let phase = phase_of(word);
            let is_orphan = phase == Phase::Running as u64 || phase == Phase::Abandoned as u64;
            is_orphan.then(|| Claim {
                slot: index,
                generation: generation_of(word),
            })
        })
    }

    fn step(&self, claim: Claim, from: Phase, to: Phase) -> bool {
        self.swap(claim.slot, word_of(claim, from), word_of(claim, to))
    }

    fn swap(&self, index: usize, from: u64, to: u64) -> bool {
        let word = &self.slots[index].word;
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

fn word_of(claim: Claim, phase: Phase) -> u64 {
    (claim.generation << PHASE_BITS) | phase as u64
}

fn generation_of(word: u64) -> u64 {
    word >> PHASE_BITS
}

fn phase_of(word: u64) -> u64 {
    word & ((1 << PHASE_BITS) - 1)
}
