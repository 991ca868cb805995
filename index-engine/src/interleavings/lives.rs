//! The states of a slot as threads see them that share nothing else.

use std::sync::Arc;

use super::{beside, in_every_order};
use crate::life::Lives;

/// One slot, its vector the first that was born.
fn alive() -> Arc<Lives> {
    let lives = Lives::new();
    lives.reserve(0);
    lives.begin(0, 1);
    Arc::new(lives)
}

#[test]
fn whoever_sees_a_new_life_sees_its_birth() {
    in_every_order(|| {
        let lives = alive();
        let reader = beside(&lives, |lives| {
            if lives.is_removed(0) {
                let is_old = lives.is_visible_before(0, 5, 1);
                assert!(!is_old, "the new one, as if it were old");
            }
        });
        lives.remove(0);
        lives.forget(0);
        lives.begin(0, 9);
        reader.join().unwrap();
        assert!(lives.is_visible_before(0, 10, 1) && !lives.is_visible_before(0, 9, 1));
    });
}

#[test]
fn a_vector_is_removed_once_and_for_good() {
    in_every_order(|| {
        let lives = alive();
        let ending = beside(&lives, |lives| {
            lives.end(0, 7);
            !lives.is_visible(0, 8)
        });
        let removing = beside(&lives, |lives| lives.remove(0));
        let removed_here = lives.remove(0);
        assert!(lives.is_removed(0));
        assert_ne!(removing.join().unwrap(), removed_here, "by one of them");
        assert!(ending.join().unwrap());
        assert!(lives.is_removed(0) && lives.removed_len() == 1);
    });
}

#[test]
fn of_two_ends_the_later_counts() {
    in_every_order(|| {
        let lives = alive();
        let other = beside(&lives, |lives| lives.end(0, 9));
        lives.end(0, 7);
        assert!(lives.is_visible(0, 7) && !lives.is_visible(0, 10));
        other.join().unwrap();
        assert!(lives.is_visible(0, 9) && !lives.is_visible(0, 10));
    });
}
