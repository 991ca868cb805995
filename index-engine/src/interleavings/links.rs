//! Lists, copies and the entry: written under locks, read without.

use std::sync::Arc;

use super::{M, beside, in_every_order};
use crate::hnsw::Graph;
use crate::sync::Accessed;

/// A graph of so many unlinked nodes of level 1, and what a reader comes to at each.
fn graph(nodes: u32) -> Arc<(Graph, Accessed)> {
    let graph = Graph::new(M, true);
    (0..nodes).for_each(|node| graph.reserve(node, 1));
    Arc::new((graph, Accessed::new()))
}

/// Follows links on level 0 as a search does, from node 0.
fn reached((graph, vectors): &(Graph, Accessed)) -> Vec<u32> {
    let mut met = vec![0];
    let mut next = 0;
    while next < met.len() {
        vectors.read(met[next]);
        for id in graph.neighbours(met[next], 0) {
            if !met.contains(&id) {
                met.push(id);
            }
        }
        next += 1;
    }
    met
}

#[test]
fn a_link_leads_to_what_was_written_before_it() {
    in_every_order(|| {
        let shared = graph(3);
        shared.0.set(0, 0, [2]);
        shared.0.set(2, 0, [0]);
        let reader = beside(&shared, |shared| {
            let met = reached(shared);
            assert!(met.contains(&2), "a link that was there all along");
            if met.contains(&1) {
                assert!(shared.0.neighbours(1, 0).eq([0]), "with its own list");
            }
        });
        let (graph, vectors) = &*shared;
        vectors.written(1);
        graph.set(1, 0, [0]);
        let guard = graph.lock(0);
        graph.push(0, 0, 1);
        drop(guard);
        reader.join().unwrap();
        assert_eq!(reached(&shared), [0, 2, 1]);
    });
}

#[test]
fn two_who_link_to_a_node_both_find_room() {
    in_every_order(|| {
        let shared = graph(3);
        let push = |id| {
            beside(&shared, move |shared| {
                let _guard = shared.0.lock(0);
                shared.0.push(0, 0, id)
            })
        };
        let threads = [push(1), push(2)];
        assert!(threads.map(|thread| thread.join().unwrap()) == [true, true]);
        assert_eq!(reached(&shared).len(), 3);
    });
}

#[test]
fn a_list_is_replaced_by_nodes_that_can_all_be_read() {
    in_every_order(|| {
        let shared = graph(4);
        shared.0.set(0, 0, [1, 2]);
        let reader = beside(&shared, |shared| {
            assert!(reached(shared).len() > 1, "some link is always there");
        });
        let (graph, vectors) = &*shared;
        vectors.written(3);
        let guard = graph.lock(0);
        graph.set(0, 0, [3, 1]);
        drop(guard);
        reader.join().unwrap();
        assert_eq!(reached(&shared), [0, 3, 1]);
    });
}

#[test]
fn copies_that_stay_are_met_while_others_come_and_go() {
    in_every_order(|| {
        let shared = graph(5);
        (1..4).for_each(|copy| shared.0.add_copy(0, copy));
        let adding = beside(&shared, |shared| {
            let (graph, vectors) = &**shared;
            vectors.written(4);
            graph.add_copy(0, 4);
        });
        let reader = beside(&shared, |shared| {
            let copies: Vec<u32> = shared.0.copies(0).collect();
            copies.iter().for_each(|copy| shared.1.read(*copy));
            let stayed = copies.iter().filter(|copy| [1, 3].contains(*copy));
            assert!(stayed.eq(&[3, 1]), "{copies:?}");
        });
        assert_eq!(shared.0.drop_copies(0, |copy| copy == 2), [2]);
        adding.join().unwrap();
        reader.join().unwrap();
        assert!(shared.0.copies(0).eq([4, 3, 1]));
    });
}

#[test]
fn the_entry_is_found_once_and_rises_to_the_highest() {
    in_every_order(|| {
        let shared = graph(3);
        let enter = |level, id| {
            beside(&shared, move |shared| {
                let (graph, vectors) = &**shared;
                vectors.written(id);
                let is_first = graph.found(level, id);
                if !is_first {
                    graph.raise(level, id);
                }
                is_first
            })
        };
        let threads = [enter(0, 1), enter(1, 2)];
        let reader = beside(&shared, |shared| {
            if let Some((level, id)) = shared.0.entry() {
                shared.1.read(id);
                assert_eq!(u32::from(level) + 1, id);
                let later = shared.0.entry().unwrap();
                assert!(later.0 >= level, "it only rises");
            }
        });
        reader.join().unwrap();
        let [first, second] = threads.map(|thread| thread.join().unwrap());
        assert!(first != second, "one was the first");
        assert_eq!(shared.0.entry(), Some((1, 2)));
    });
}

#[test]
fn an_entry_that_leaves_gives_way_unless_a_higher_one_came() {
    in_every_order(|| {
        let shared = graph(3);
        shared.0.found(0, 0);
        let higher = beside(&shared, |shared| shared.0.raise(2, 2));
        shared.0.replace_entry(0, 1);
        assert!(higher.join().unwrap());
        assert_eq!(shared.0.entry(), Some((2, 2)));
    });
}
