//! Which vectors are linked into the graph, and which are still the tail.
//!
//! Every vector is *born* once: births are numbered in the order of insertion, and a
//! slot that is used again is born again. The tail is the queue of the births that
//! are not linked yet, with the slot of each.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Births whose slots lie in one piece of memory.
const CHUNK: u64 = if cfg!(loom) { 2 } else { 1_024 };

/// The slots of `CHUNK` births. An entry is written before its birth is told.
struct Chunk([AtomicU32; CHUNK as usize]);

impl Chunk {
    fn empty() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

/// Every birth before `linked` is linked; the rest is scanned exactly. Several threads
/// fold at once and finish out of order.
#[derive(Default)]
pub(crate) struct Tail {
    queue: Mutex<Queue>,
    linked: AtomicU64,
    /// The birth of the next vector.
    next: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// From the chunk of `linked` on.
    chunks: VecDeque<Arc<Chunk>>,
    claimed: u64,
    /// What is linked beyond the first gap: at most one birth per folding thread and
    /// the slowest's lead.
    finished: BTreeSet<u64>,
}

/// The tail as it was.
#[derive(Default)]
pub(crate) struct TailPart {
    chunks: Vec<Arc<Chunk>>,
    births: Range<u64>,
}

impl Tail {
    /// All births before `linked` are linked; those from there on are in these slots.
    pub(crate) fn restored(linked: u64, slots: impl IntoIterator<Item = u32>) -> Self {
        let mut queue = Queue {
            claimed: linked,
            ..Queue::default()
        };
        if !linked.is_multiple_of(CHUNK) {
            queue.chunks.push_back(Arc::new(Chunk::empty()));
        }
        let tail = Self {
            queue: Mutex::new(queue),
            linked: AtomicU64::new(linked),
            next: AtomicU64::new(linked),
        };
        slots.into_iter().for_each(|slot| tail.push(slot));
        tail
    }

    /// All births before this one are linked.
    pub(crate) fn linked(&self) -> u64 {
        self.linked.load(Ordering::Acquire)
    }

    /// The birth of the next vector. Only the writer may count on it.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// A vector is born into the slot. One writer at a time.
    pub(crate) fn push(&self, slot: u32) {
        let mut queue = self.queue.lock();
        let birth = self.next.load(Ordering::Relaxed);
        let first = first_of_chunks(self.linked.load(Ordering::Relaxed));
        if birth - first == queue.chunks.len() as u64 * CHUNK {
            queue.chunks.push_back(Arc::new(Chunk::empty()));
        }
        let (chunk, at) = place(birth, first);
        queue.chunks[chunk].0[at].store(slot, Ordering::Relaxed);
        self.next.store(birth + 1, Ordering::Release);
    }

    /// The tail as it is now.
    pub(crate) fn part(&self) -> TailPart {
        let queue = self.queue.lock();
        let births = self.linked()..self.next();
        let chunks = match births.is_empty() {
            true => Vec::new(),
            false => queue.chunks.iter().cloned().collect(),
        };
        TailPart { chunks, births }
    }

    /// The next vector to link, its birth and its slot, for one caller only.
    pub(crate) fn claim(&self) -> Option<(u64, u32)> {
        let mut queue = self.queue.lock();
        let birth = queue.claimed;
        if birth == self.next.load(Ordering::Relaxed) {
            return None;
        }
        queue.claimed += 1;
        let (chunk, at) = place(birth, first_of_chunks(self.linked.load(Ordering::Relaxed)));
        let slot = queue.chunks[chunk].0[at].load(Ordering::Relaxed);
        Some((birth, slot))
    }

    /// The claimed vector is linked.
    pub(crate) fn finish(&self, birth: u64) {
        let mut queue = self.queue.lock();
        let fresh = queue.finished.insert(birth);
        let before = self.linked.load(Ordering::Relaxed);
        let is_claimed = birth >= before && birth < queue.claimed;
        assert!(fresh && is_claimed, "birth {birth} folded twice");
        let mut linked = before;
        while queue.finished.remove(&linked) {
            linked += 1;
        }
        let passed = first_of_chunks(linked) - first_of_chunks(before);
        queue.chunks.drain(..(passed / CHUNK) as usize);
        self.linked.store(linked, Ordering::Release);
    }
}

impl TailPart {
    /// Linked before this one, the rest not.
    pub(crate) fn births(&self) -> Range<u64> {
        self.births.clone()
    }

    /// In the order of birth.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let first = first_of_chunks(self.births.start);
        self.births.clone().map(move |birth| {
            let (chunk, at) = place(birth, first);
            self.chunks[chunk].0[at].load(Ordering::Relaxed)
        })
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Arc<Chunk>>()
    }
}

/// The first birth that the chunks hold when this is the first that is not linked.
fn first_of_chunks(linked: u64) -> u64 {
    linked - linked % CHUNK
}

/// The chunk of a birth, and where in it.
fn place(birth: u64, first: u64) -> (usize, usize) {
    let offset = birth - first;
    ((offset / CHUNK) as usize, (offset % CHUNK) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_stops_at_the_first_gap() {
        let tail = Tail::default();
        (7..10).for_each(|slot| tail.push(slot));
        let claims = [tail.claim(), tail.claim(), tail.claim(), tail.claim()];
        assert_eq!(claims, [Some((0, 7)), Some((1, 8)), Some((2, 9)), None]);
        for (birth, linked) in [(2, 0), (0, 1), (1, 3)] {
            tail.finish(birth);
            assert_eq!(tail.linked(), linked);
        }
    }

    #[test]
    fn a_restored_tail_goes_on_where_it_was() {
        for linked in [0, 5, 1_023, 1_024, 3_000] {
            let tail = Tail::restored(linked, 0..2_000);
            tail.push(7_000);
            assert_eq!((tail.linked(), tail.next()), (linked, linked + 2_001));
            let slots: Vec<u32> = tail.part().slots().collect();
            assert!(slots.into_iter().eq((0..2_000).chain([7_000])));
            while let Some((birth, slot)) = tail.claim() {
                assert!(u64::from(slot) == birth - linked || slot == 7_000);
                tail.finish(birth);
            }
            assert_eq!(tail.linked(), linked + 2_001);
        }
    }

    #[test]
    fn a_part_stays_as_it_was_while_the_tail_goes_on() {
        let tail = Tail::default();
        let slot = |birth: u64| (birth * 7 % 5_000) as u32;
        let mut parts = vec![tail.part()];
        for birth in 0..4_000 {
            tail.push(slot(birth));
            if birth % 3 > 0 {
                let (birth, _) = tail.claim().expect("one is left");
                tail.finish(birth);
            }
            if birth % 500 == 0 {
                parts.push(tail.part());
            }
        }
        for part in &parts {
            let expected: Vec<u32> = part.births().map(slot).collect();
            assert_eq!(part.slots().collect::<Vec<_>>(), expected);
        }
        assert!(
            parts
                .last()
                .is_some_and(|part| part.births().count() > 1_000)
        );
        while let Some((birth, _)) = tail.claim() {
            tail.finish(birth);
        }
        assert_eq!((tail.linked(), tail.next()), (4_000, 4_000));
        // The chunk that the next birth goes to is there at most.
        assert!(tail.queue.lock().chunks.len() <= 1);
    }
}
