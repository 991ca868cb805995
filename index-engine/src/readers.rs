//! Who may still read what was taken away.
//!
//! A reader enters before it looks at anything that is shared, and leaves when it
//! holds nothing of it any more. What nobody can come to from a [`Moment`] on may be
//! written anew once every reader that had entered by then has left. (Epochs, as of
//! Fraser, "Practical lock-freedom", with every reader in one of its own.)
//!
//! Entering and leaving take a lock for some ten instructions; reading takes none.

use std::sync::Arc;

use crate::sync::Mutex;

/// A point in the order of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

#[derive(Default)]
struct Entered {
    last: u64,
    /// Who has not left, in the order of entry.
    open: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct Readers {
    entered: Mutex<Entered>,
}

impl Readers {
    pub(crate) fn enter(self: &Arc<Self>) -> Reader {
        let mut entered = self.entered.lock();
        entered.last += 1;
        let number = entered.last;
        entered.open.push(number);
        Reader {
            readers: Arc::clone(self),
            number,
        }
    }

    /// After every entry so far.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.entered.lock().last)
    }

    /// Is nobody left who had entered by then?
    pub(crate) fn have_left(&self, moment: Moment) -> bool {
        let entered = self.entered.lock();
        entered.open.first().is_none_or(|first| *first > moment.0)
    }
}

/// One reader; it leaves when it is dropped.
pub(crate) struct Reader {
    readers: Arc<Readers>,
    number: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let open = &mut self.readers.entered.lock().open;
        let at = open.binary_search(&self.number);
        let at = at.expect("a reader leaves once");
        open.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_over_when_all_have_left_that_came_before() {
        let readers = Arc::new(Readers::default());
        let before = readers.now();
        assert!(readers.have_left(before));
        let (first, second) = (readers.enter(), readers.enter());
        let moment = readers.now();
        let later = readers.enter();
        assert!(readers.have_left(before) && !readers.have_left(moment));
        drop(first);
        assert!(!readers.have_left(moment), "the second is still there");
        drop(second);
        assert!(readers.have_left(moment), "the later one came after it");
        assert!(!readers.have_left(readers.now()));
        drop(later);
        assert!(readers.have_left(readers.now()));
    }
}
