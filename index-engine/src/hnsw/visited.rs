//! Which vectors a search has met: two bits of memory per vector, reused
//! between searches without clearing.

use std::sync::Arc;

use parking_lot::Mutex;

/// Marks kept for reuse; more than this many at once are freed when done.
const POOLED_MAX: usize = 64;

/// One word per 32 ids: the epoch that wrote it above the 32 marks. A word of an
/// older epoch counts as empty, so a new search starts by counting up.
#[derive(Default)]
struct Marks {
    words: Vec<u64>,
    epoch: u32,
}

#[derive(Default)]
pub(crate) struct VisitedPool {
    free: Mutex<Vec<Marks>>,
}

impl VisitedPool {
    /// Of the marks that are kept, not of those in use.
    pub(crate) fn memory_bytes(&self) -> usize {
        let free = self.free.lock();
        let words = free.iter().map(|marks| marks.words.capacity());
        words.sum::<usize>() * size_of::<u64>()
    }

    /// An empty set with room for ids below `len`; it grows when needed.
    pub(crate) fn take(self: &Arc<Self>, len: u32) -> Visited {
        let mut marks = self.free.lock().pop().unwrap_or_default();
        marks.epoch = match marks.epoch.checked_add(1) {
            Some(epoch) => epoch,
            None => {
                marks.words.fill(0);
                1
            }
        };
        let words = (len as usize).div_ceil(32);
        if marks.words.len() < words {
            marks.words.resize(words, 0);
        }
        Visited {
            marks,
            pool: Arc::clone(self),
        }
    }
}

/// A set of ids; its memory goes back to the pool in the end.
pub(crate) struct Visited {
    marks: Marks,
    pool: Arc<VisitedPool>,
}

impl Visited {
    /// Adds the id; true if it was not in the set.
    #[inline]
    pub(crate) fn insert(&mut self, id: u32) -> bool {
        let at = (id / 32) as usize;
        if at >= self.marks.words.len() {
            self.marks.words.resize(at + 1, 0);
        }
        let word = &mut self.marks.words[at];
        if (*word >> 32) as u32 != self.marks.epoch {
            *word = u64::from(self.marks.epoch) << 32;
        }
        let bit = 1u64 << (id % 32);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Was the id added?
    #[inline]
    pub(crate) fn contains(&self, id: u32) -> bool {
        let word = self.marks.words.get((id / 32) as usize).copied();
        word.is_some_and(|word| {
            (word >> 32) as u32 == self.marks.epoch && word & (1u64 << (id % 32)) != 0
        })
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.marks.words.capacity() * size_of::<u64>()
    }

    /// Made by this pool?
    pub(crate) fn is_of(&self, pool: &Arc<VisitedPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }
}

impl Drop for Visited {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock();
        if free.len() < POOLED_MAX {
            free.push(std::mem::take(&mut self.marks));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_set_starts_empty_and_grows() {
        let pool = Arc::new(VisitedPool::default());
        for _ in 0..3 {
            let mut visited = pool.take(10);
            assert!(!visited.contains(3) && !visited.contains(1_000_000));
            assert!(visited.insert(3) && !visited.insert(3) && visited.contains(3));
            assert!(visited.insert(1_000_000) && !visited.insert(1_000_000));
        }
        let mut wrapped = pool.take(10);
        wrapped.insert(5);
        wrapped.marks.epoch = u32::MAX;
        drop(wrapped);
        assert!(pool.take(10).insert(5));
    }
}
