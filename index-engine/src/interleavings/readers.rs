//! What readers may still look at is not written.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};

use super::{beside, in_every_order};
use crate::readers::Readers;
use crate::sync::Accessed;

#[derive(Default)]
struct Shelf {
    readers: Arc<Readers>,
    is_taken_away: AtomicBool,
}

fn read(shelf: &Shelf, row: &Accessed) {
    let _reader = shelf.readers.enter();
    if !shelf.is_taken_away.load(Ordering::Acquire) {
        row.read(0);
    }
}

#[test]
fn what_was_taken_away_is_written_once_all_have_left_who_came_before() {
    in_every_order(|| {
        let shelf = Arc::new((Shelf::default(), Accessed::new()));
        let readers = [(); 2].map(|()| beside(&shelf, |shelf| read(&shelf.0, &shelf.1)));
        let (
            Shelf {
                readers: entered,
                is_taken_away,
            },
            row,
        ) = &*shelf;
        is_taken_away.store(true, Ordering::Release);
        let moment = entered.now();
        if entered.have_left(moment) {
            row.written(0);
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(entered.have_left(moment));
    });
}
