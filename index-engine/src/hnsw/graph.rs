//! The links: for every vector and level a list of fixed size.
//!
//! Readers walk lists without locks. A list is an array of `id + 1`, ended by
//! the first zero; while a writer replaces one in place, a reader may see some
//! old and some new links, each of which leads to a published, fully linked
//! vector. That is all that greedy search asks for.
//!
//! Identical vectors are one node: the first is linked, the others hang on it as
//! its copies. A crowd of equal vectors would otherwise fill each other's lists,
//! and searches would never find the way out of it.

use crate::arena::{AsBytes, Segments, ZeroIsValid, prefetch};
#[cfg(loom)]
use crate::region::Region;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Four bits beside the list number. With m = 16 level 15 takes 16^15 vectors.
pub(crate) const LEVEL_MAX: u8 = 15;
const LIST_BITS: u32 = 28;
/// Writers of different nodes rarely meet on a stripe.
pub(super) const STRIPES: usize = if cfg!(loom) { 2 } else { 1024 };

/// Where a vector's lists are: written before it is published, then constant.
#[derive(Default)]
pub(super) struct Place(AtomicU32);

// SAFETY: wraps an atomic integer.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for Place {
    #[cfg(loom)]
    fn zeroed(len: usize) -> Region<Self> {
        Region::of_defaults(len)
    }
}

// SAFETY: as above, and any bits are a place.
#[allow(unsafe_code)]
unsafe impl AsBytes for Place {
    unsafe fn copy(&self, into: &mut [u8]) {
        // SAFETY: the same contract.
        unsafe { self.0.copy(into) };
    }
}

pub(crate) struct Graph {
    m: usize,
    /// Level 0's links are here, not beside codes.
    pub(super) has_base: bool,
    pub(super) base: Segments<AtomicU32>,
    pub(super) upper: Segments<AtomicU32>,
    pub(super) upper_lists: AtomicU32,
    /// Lists of released vectors: for each level the first ones of so many.
    pub(super) upper_free: Mutex<[Vec<u32>; LEVEL_MAX as usize + 1]>,
    pub(super) places: Segments<Place>,
    /// Head of a node's copies, and for a copy the next one: `id + 1`, zero ends.
    pub(super) copies: Segments<AtomicU32>,
    /// `level << 32 | id + 1`; zero while nothing is linked.
    pub(super) entry: AtomicU64,
    stripes: Box<[Mutex<()>]>,
}

impl Graph {
    pub(crate) fn new(m: usize, has_base: bool) -> Self {
        Self {
            m,
            has_base,
            base: Segments::new(2 * m),
            upper: Segments::new(m),
            upper_lists: AtomicU32::new(0),
            upper_free: Mutex::default(),
            places: Segments::new(1),
            copies: Segments::new(1),
            entry: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        }
    }

    pub(crate) fn m(&self) -> usize {
        self.m
    }

    /// Links that a node may hold on a level.
    #[inline]
    pub(crate) fn capacity(&self, level: u8) -> usize {
        if level == 0 { 2 * self.m } else { self.m }
    }

    /// Reserves the lists of a vector about to be published, empty ones. One writer at
    /// a time.
    pub(crate) fn reserve(&self, id: u32, level: u8) {
        assert!(level <= LEVEL_MAX, "level {level} of vector {id}");
        if self.has_base {
            self.base.ensure(id);
        }
        self.places.ensure(id);
        self.copies.ensure(id);
        let (level, first) = self.reserve_upper(level);
        self.places.row(id)[0]
            .0
            .store(u32::from(level) << LIST_BITS | first, Ordering::Relaxed);
        self.copies.row(id)[0].store(0, Ordering::Relaxed);
        for level in u8::from(!self.has_base)..=level {
            self.set(id, level, []);
        }
    }

    /// Lists for levels above 0, and the level that they suffice for.
    fn reserve_upper(&self, level: u8) -> (u8, u32) {
        if let Some(first) = self.upper_free.lock()[usize::from(level)].pop() {
            return (level, first);
        }
        let first = self.upper_lists.load(Ordering::Relaxed);
        // Out of list numbers: the graph goes on growing at its base.
        let level = if first + u32::from(level) < 1 << LIST_BITS {
            level
        } else {
            0
        };
        for list in first..first + u32::from(level) {
            self.upper.ensure(list);
        }
        self.upper_lists
            .store(first + u32::from(level), Ordering::Relaxed);
        (level, first)
    }

    /// Gives back the lists of a vector that nobody can reach any more.
    pub(crate) fn release(&self, id: u32) {
        if self.has_base {
            self.set(id, 0, []);
        }
        let place = self.places.row(id)[0].0.swap(0, Ordering::Relaxed);
        let (level, first) = ((place >> LIST_BITS) as u8, place & ((1 << LIST_BITS) - 1));
        if level > 0 {
            self.upper_free.lock()[usize::from(level)].push(first);
        }
    }

    pub(crate) fn level(&self, id: u32) -> u8 {
        self.place(id).0
    }

    /// A vector's level and the first of its upper lists.
    #[inline]
    pub(super) fn place(&self, id: u32) -> (u8, u32) {
        let place = self.places.row(id)[0].0.load(Ordering::Relaxed);
        ((place >> LIST_BITS) as u8, place & ((1 << LIST_BITS) - 1))
    }

    #[inline]
    pub(super) fn list(&self, id: u32, level: u8) -> &[AtomicU32] {
        if level == 0 {
            return self.base.row(id);
        }
        let (levels, first) = self.place(id);
        assert!(level <= levels, "vector {id} has no level {level}");
        self.upper.row(first + u32::from(level) - 1)
    }

    /// The neighbours as they are now.
    #[inline]
    pub(crate) fn neighbours(&self, id: u32, level: u8) -> impl Iterator<Item = u32> + '_ {
        self.list(id, level)
            .iter()
            .map(|link| link.load(Ordering::Acquire))
            .take_while(|link| *link != 0)
            .map(|link| link - 1)
    }

    /// Serialises writers of a node's lists. Never hold two.
    pub(crate) fn lock(&self, id: u32) -> MutexGuard<'_, ()> {
        self.stripes[id as usize % STRIPES].lock()
    }

    /// Replaces a list. Holds the node's lock, or nobody can reach the node yet.
    pub(crate) fn set(&self, id: u32, level: u8, neighbours: impl IntoIterator<Item = u32>) {
        let mut links = self.list(id, level).iter();
        for neighbour in neighbours {
            let link = links.next().expect("no more neighbours than capacity");
            link.store(neighbour + 1, Ordering::Release);
        }
        for link in links {
            link.store(0, Ordering::Release);
        }
    }

    /// Appends where there is room. The caller holds the node's lock.
    pub(crate) fn push(&self, id: u32, level: u8, neighbour: u32) -> bool {
        let list = self.list(id, level);
        let free = list.iter().find(|link| link.load(Ordering::Relaxed) == 0);
        if let Some(link) = free {
            link.store(neighbour + 1, Ordering::Release);
        }
        free.is_some()
    }

    /// Hangs a vector on the node that it equals.
    pub(crate) fn add_copy(&self, node: u32, copy: u32) {
        let _guard = self.lock(node);
        let head = &self.copies.row(node)[0];
        let next = head.load(Ordering::Relaxed);
        self.copies.row(copy)[0].store(next, Ordering::Relaxed);
        head.store(copy + 1, Ordering::Release);
    }

    /// A hint that `copies` will be asked.
    #[inline]
    pub(crate) fn prefetch_copies(&self, node: u32) {
        prefetch(&self.copies.row(node)[0]);
    }

    /// A hint that the node's links will be read.
    #[inline]
    pub(crate) fn prefetch_links(&self, node: u32, level: u8) {
        const LINE_LINKS: usize = 16;
        for line in self.list(node, level).chunks(LINE_LINKS) {
            prefetch(&line[0]);
        }
    }

    /// The vectors equal to this node's.
    #[inline]
    pub(crate) fn copies(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let next = |id: u32| {
            let link = self.copies.row(id)[0].load(Ordering::Acquire);
            link.checked_sub(1)
        };
        std::iter::successors(next(node), move |copy| next(*copy))
    }

    /// Takes copies off a node, and says which. What a reader holds of them leads on.
    pub(crate) fn drop_copies(&self, node: u32, is_dropped: impl Fn(u32) -> bool) -> Vec<u32> {
        if !self.copies(node).any(&is_dropped) {
            return Vec::new();
        }
        let _guard = self.lock(node);
        let (dropped, kept) = self
            .copies(node)
            .partition::<Vec<u32>, _>(|c| is_dropped(*c));
        let mut last = node;
        for copy in kept {
            self.copies.row(last)[0].store(copy + 1, Ordering::Release);
            last = copy;
        }
        self.copies.row(last)[0].store(0, Ordering::Release);
        dropped
    }

    /// Takes all copies off a node.
    pub(crate) fn cut_copies(&self, node: u32) {
        let _guard = self.lock(node);
        self.copies.row(node)[0].store(0, Ordering::Release);
    }

    /// Where searches start: the highest level and a node on it.
    pub(crate) fn entry(&self) -> Option<(u8, u32)> {
        let entry = self.entry.load(Ordering::Acquire);
        (entry != 0).then(|| ((entry >> 32) as u8, entry as u32 - 1))
    }

    /// Makes the node the entry if there is none yet.
    pub(crate) fn found(&self, level: u8, id: u32) -> bool {
        self.entry
            .compare_exchange(0, packed(level, id), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Makes the node the entry if its level is above the present one's.
    pub(crate) fn raise(&self, level: u8, id: u32) -> bool {
        self.entry
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
                (entry >> 32 < u64::from(level)).then(|| packed(level, id))
            })
            .is_ok()
    }

    /// Makes a node the entry in place of another, unless a higher one came.
    pub(crate) fn replace_entry(&self, old: u32, new: u32) {
        let new = packed(self.level(new), new);
        let _ = self
            .entry
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
                (entry as u32 == old + 1).then_some(new)
            });
    }

    pub(crate) fn memory_bytes(&self, vectors: u32) -> usize {
        let base = match self.has_base {
            true => self.base.resident_bytes(vectors),
            false => 0,
        };
        let upper_lists = self.upper_lists.load(Ordering::Relaxed);
        base + self.upper.resident_bytes(upper_lists)
            + self.places.resident_bytes(vectors)
            + self.copies.resident_bytes(vectors)
    }
}

fn packed(level: u8, id: u32) -> u64 {
    u64::from(level) << 32 | u64::from(id + 1)
}

/// A level such that each holds one in `m` of the one below. From a hash of the
/// row's key rather than from chance, so that a rebuild makes the same levels.
pub(crate) fn level_of(level_hash: u64, m: usize) -> u8 {
    // SplitMix64's finaliser: callers may pass hashes with poor low bits.
    let mut h = level_hash.wrapping_add(0x9E37_79B9_7F4A_7C15);
    h = (h ^ h >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ h >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^= h >> 31;
    let mut level = 0;
    while level < LEVEL_MAX && h.is_multiple_of(m as u64) {
        h /= m as u64;
        level += 1;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_holds_one_in_m_of_the_one_below() {
        for m in [2usize, 16, 100] {
            let rows = 200_000u64;
            let raised = (0..rows).filter(|h| level_of(*h, m) > 0).count();
            let expected = rows as f64 / m as f64;
            assert!(
                (raised as f64 / expected - 1.0).abs() < 0.1,
                "m {m}: {raised}"
            );
            assert!((0..rows).all(|h| level_of(h, m) <= LEVEL_MAX));
        }
    }

    #[test]
    fn lists_of_all_levels_are_apart() {
        let graph = Graph::new(3, true);
        for id in 0..2_000u32 {
            graph.reserve(id, (id % 5) as u8);
        }
        for id in 0..2_000u32 {
            assert_eq!(graph.level(id), (id % 5) as u8);
            for level in 0..=graph.level(id) {
                graph.set(id, level, [id, u32::from(level)]);
                assert!(graph.push(id, level, 7));
                assert_eq!(graph.push(id, level, 8), level == 0);
            }
        }
        for id in 0..2_000u32 {
            for level in 0..=graph.level(id) {
                let list: Vec<u32> = graph.neighbours(id, level).take(3).collect();
                assert_eq!(list, [id, u32::from(level), 7]);
            }
        }
    }

    #[test]
    fn the_entry_only_rises() {
        let graph = Graph::new(4, true);
        assert_eq!(graph.entry(), None);
        assert!(graph.found(1, 5) && !graph.found(3, 6));
        for (level, id, expected) in [(1, 7, (1, 5)), (3, 8, (3, 8)), (2, 9, (3, 8))] {
            graph.raise(level, id);
            assert_eq!(graph.entry(), Some(expected));
        }
    }
}
