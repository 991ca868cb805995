//! Which vectors are linked into the graph, and which are still the tail.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Every id below `linked_upto` is linked; the rest is scanned exactly. Several
/// threads fold at once and finish out of order: `finished` holds what is linked
/// above the first gap, at most one id per folding thread and the slowest's lead.
#[derive(Default)]
pub(crate) struct Tail {
    claimed: AtomicU32,
    linked_upto: AtomicU32,
    finished: Mutex<BTreeSet<u32>>,
}

impl Tail {
    pub(crate) fn linked_upto(&self) -> u32 {
        self.linked_upto.load(Ordering::Acquire)
    }

    /// The next id to link, for one caller only.
    pub(crate) fn claim(&self, published: u32) -> Option<u32> {
        self.claimed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                (next < published).then_some(next + 1)
            })
            .ok()
    }

    /// The claimed id is linked.
    pub(crate) fn finish(&self, id: u32) {
        let mut finished = self.finished.lock();
        let fresh = finished.insert(id);
        let mut upto = self.linked_upto.load(Ordering::Relaxed);
        assert!(fresh && id >= upto, "id {id} folded twice, below {upto}");
        while finished.remove(&upto) {
            upto += 1;
        }
        self.linked_upto.store(upto, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_stops_at_the_first_gap() {
        let tail = Tail::default();
        assert_eq!(
            [tail.claim(3), tail.claim(3), tail.claim(3), tail.claim(3)],
            [Some(0), Some(1), Some(2), None]
        );
        for (id, upto) in [(2, 0), (0, 1), (1, 3)] {
            tail.finish(id);
            assert_eq!(tail.linked_upto(), upto);
        }
    }
}
