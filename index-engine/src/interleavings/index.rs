//! Whole indexes of three vectors.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{beside, in_every_order, index_of, insert, numbers};
use crate::{PartitionIndex, VectorId};

/// Takes out what is removed, as far as that goes now.
fn repair(index: &PartitionIndex) {
    while index.repair(9) > 0 {}
}

/// Everything linked leads to something linked that was not repaired away.
fn assert_well_linked(index: &PartitionIndex, gone: &[u32]) {
    for id in (0..index.slots_len() as u32).filter(|id| !gone.contains(id)) {
        let links = index.hnsw.links_on(id, 0);
        assert!(!links.is_empty(), "{id} leads nowhere");
        assert!(
            !links.iter().any(|link| gone.contains(link)),
            "{id}: {links:?}"
        );
    }
}

#[test]
fn a_cursor_never_meets_what_was_inserted_after_it_opened() {
    in_every_order(|| {
        let index = index_of(&[1.0, 2.0, 3.0]);
        static INSERTS: AtomicBool = AtomicBool::new(false);
        INSERTS.store(false, Ordering::SeqCst);
        let searching = beside(&index, |index| {
            let mut cursor = index.cursor(&[0.0][..], 1, u64::MAX, false).unwrap();
            let is_before = !INSERTS.load(Ordering::SeqCst);
            let mut hits = Vec::new();
            loop {
                let page = cursor.next_page(index, 2);
                hits.extend(page.hits);
                if page.exhausted {
                    break;
                }
            }
            for (id, number) in &hits {
                let is_old = *number == f64::from(id.0 + 1);
                assert!(is_old || !is_before && *number == 7.0, "{id:?}: {number}");
            }
            assert!(hits.len() >= 2);
        });
        index.remove(VectorId(1));
        repair(&index);
        INSERTS.store(true, Ordering::SeqCst);
        let id = insert(&index, 7.0, 0);
        searching.join().unwrap();
        assert!([1, 3].contains(&id.0));
    });
}

#[test]
fn a_slot_is_taken_over_only_after_the_cursor_that_was_open() {
    in_every_order(|| {
        let index = index_of(&[1.0, 2.0, 3.0]);
        let mut cursor = index.cursor(&[0.0][..], 3, u64::MAX, false).unwrap();
        let searching = beside(&index, |index| {
            let page = cursor.next_page(index, 3);
            let is_old = |(id, number): &(VectorId, f64)| *number == f64::from(id.0 + 1);
            assert!(page.hits.len() >= 2 && page.hits.iter().all(is_old));
            cursor
        });
        index.remove(VectorId(1));
        repair(&index);
        let id = insert(&index, 7.0, 0);
        drop(searching.join().unwrap());
        assert_eq!(id, VectorId(3), "slot 1 was still looked at");
        repair(&index);
        assert_eq!(insert(&index, 8.0, 0), VectorId(1));
    });
}

#[test]
fn what_one_search_saw_the_next_one_sees() {
    in_every_order(|| {
        let index = index_of(&[1.0]);
        let all = [1.0, 2.0, 3.0];
        let searching = beside(&index, move |index| {
            let (first, second) = (numbers(index), numbers(index));
            assert!(!first.is_empty() && second.starts_with(&first) && all.starts_with(&second));
        });
        insert(&index, 2.0, 0);
        index.fold(1);
        insert(&index, 3.0, 0);
        searching.join().unwrap();
        assert_eq!(numbers(&index), all);
    });
}

#[test]
fn an_exact_search_beside_an_insertion_into_new_memory() {
    in_every_order(|| {
        // The third row is the first of its bucket.
        let index = index_of(&[1.0, 2.0]);
        let searching = beside(&index, |index| {
            let mut cursor = index.cursor(&[0.0][..], 9, u64::MAX, true).unwrap();
            let hits = cursor.next_page(index, 9).hits;
            assert!([2, 3].contains(&hits.len()));
        });
        insert(&index, 3.0, 0);
        searching.join().unwrap();
    });
}

#[test]
fn two_threads_fold_and_lose_no_link() {
    in_every_order(|| {
        let index = index_of(&[2.0]);
        insert(&index, 1.0, 0);
        insert(&index, 3.0, 0);
        let other = beside(&index, |index| index.fold(1));
        let folded = index.fold(1) + other.join().unwrap();
        assert_eq!((folded, index.tail_len()), (2, 0));
        let mut links = index.hnsw.links_on(0, 0);
        links.sort_unstable();
        assert_eq!(links, [1, 2]);
        assert_well_linked(&index, &[]);
    });
}

#[test]
fn two_threads_fold_the_first_vectors() {
    in_every_order(|| {
        let index = index_of(&[]);
        insert(&index, 1.0, 1);
        insert(&index, 2.0, 0);
        let other = beside(&index, |index| index.fold(1));
        index.fold(1);
        other.join().unwrap();
        assert_well_linked(&index, &[]);
    });
}

#[test]
fn what_is_born_while_another_thread_folds_is_linked() {
    in_every_order(|| {
        let index = index_of(&[1.0]);
        let folding = beside(&index, |index| index.fold(1));
        insert(&index, 2.0, 0);
        let folded = folding.join().unwrap();
        assert_eq!(folded + index.fold(1), 1);
        assert_well_linked(&index, &[]);
    });
}

#[test]
fn a_search_beside_the_linking_of_a_higher_node() {
    in_every_order(|| {
        let index = index_of(&[2.0, 3.0]);
        let searching = beside(&index, |index| {
            let numbers = numbers(index);
            assert!(numbers.ends_with(&[2.0, 3.0]), "{numbers:?}");
        });
        insert(&index, 1.0, 1);
        index.fold(1);
        searching.join().unwrap();
        assert_eq!(numbers(&index), [1.0, 2.0, 3.0]);
    });
}

#[test]
fn nothing_links_to_what_is_repaired_away() {
    in_every_order(|| {
        let index = index_of(&[1.0, 3.0]);
        insert(&index, 4.0, 0);
        index.remove(VectorId(1));
        let linking = beside(&index, |index| index.fold(1));
        repair(&index);
        assert_eq!(linking.join().unwrap(), 1);
        repair(&index);
        assert_well_linked(&index, &[1]);
        assert_eq!(insert(&index, 7.0, 0), VectorId(1));
    });
}

#[test]
fn a_slot_is_not_taken_over_from_a_thread_that_links() {
    in_every_order(|| {
        let index = index_of(&[1.0, 3.0]);
        insert(&index, 4.0, 0);
        let linking = beside(&index, |index| index.fold(1));
        index.remove(VectorId(1));
        repair(&index);
        insert(&index, 7.0, 0);
        linking.join().unwrap();
        assert_eq!(numbers(&index), [1.0, 4.0, 7.0]);
    });
}

#[test]
fn what_is_being_linked_is_not_repaired_away() {
    in_every_order(|| {
        let index = index_of(&[1.0, 3.0]);
        insert(&index, 4.0, 0);
        let linking = beside(&index, |index| index.fold(1));
        index.remove(VectorId(2));
        repair(&index);
        let id = insert(&index, 7.0, 0);
        linking.join().unwrap();
        index.fold(2);
        repair(&index);
        assert_eq!(numbers(&index), [1.0, 3.0, 7.0]);
        assert_well_linked(&index, if id.0 == 3 { &[2] } else { &[] });
    });
}

#[test]
fn two_threads_repair_and_free_a_slot_once() {
    in_every_order(|| {
        let index = index_of(&[1.0, 2.0, 3.0]);
        index.remove(VectorId(1));
        let other = beside(&index, |index| {
            index.remove(VectorId(1));
            repair(index);
        });
        repair(&index);
        other.join().unwrap();
        repair(&index);
        assert_eq!((index.removed_len(), index.total_len()), (0, 2));
        assert_well_linked(&index, &[1]);
    });
}

#[test]
fn the_entry_leaves_while_a_search_starts_there() {
    in_every_order(|| {
        let index = index_of(&[1.0, 2.0, 3.0]);
        let searching = beside(&index, |index| {
            let mut numbers = numbers(index);
            numbers.retain(|number| *number != 1.0 && *number != 7.0);
            assert_eq!(numbers, [2.0, 3.0]);
        });
        index.remove(VectorId(0));
        repair(&index);
        let id = insert(&index, 7.0, 0);
        searching.join().unwrap();
        assert!([0, 3].contains(&id.0));
    });
}
