//! What a search promises: every visible row exactly once, the nearest first.
#![allow(clippy::unwrap_used)]

mod world;

use index_engine::{CodeBits, Metric, Page, Representation, VectorId};
use world::{World, collect, drain};

/// Dimensions beyond those of a test, and the representation: the graph is walked by exact
/// distances, by codes of neighbours, or by codes of the vectors themselves. What a search
/// promises is the same.
const WALKS: [(usize, Representation); 3] = [
    (0, Representation::Plain),
    (128, Representation::Coded),
    (112, Representation::Compact(CodeBits::One)),
];
const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

fn ids(hits: &[(VectorId, f64)]) -> Vec<u32> {
    let mut ids: Vec<u32> = hits.iter().map(|h| h.0.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn graph_search_recalls_what_brute_force_finds() {
    for (walk, form) in WALKS {
        for metric in METRICS {
            let mut world = World::of(metric, 48 + walk, 16, 100, form);
            world.add_clustered(4_000, 60);
            world.index.fold(usize::MAX);
            assert_eq!(world.index.tail_len(), 0);
            let recall = world.recall(100, 10, 100);
            assert!(recall >= 0.98, "{metric:?}: recall {recall}");
        }
    }
}

#[test]
fn either_representation_serves_any_number_of_dimensions() {
    for representation in [Representation::Plain, Representation::Coded] {
        for dimensions in [5, 150] {
            let mut world = World::of(Metric::L2, dimensions, 16, 100, representation);
            world.add_clustered(1_500, 20);
            world.index.fold(usize::MAX);
            let recall = world.recall(100, 10, 100);
            assert!(recall >= 0.95, "{representation:?} {dimensions}: {recall}");
            // Codes and sketches are what one of them has beside vectors and links.
            let beside = world.index.memory_bytes() / 1_500 - 4 * dimensions.next_multiple_of(16);
            let is_coded = representation == Representation::Coded;
            assert_eq!(beside > 4 * dimensions + 300, is_coded, "{beside} bytes");
        }
    }
}

#[test]
fn distances_are_those_of_the_operator() {
    for (walk, form) in WALKS {
        for metric in METRICS {
            let mut world = World::of(metric, 33 + walk, 8, 40, form);
            world.add_clustered(500, 5);
            for folded in [0, 250, 250] {
                world.index.fold(folded);
                let query = world.query();
                for (id, distance) in collect(&world.index, &query, 40, u64::MAX, 7) {
                    let exact = world.distance(id, &query);
                    assert!(
                        (distance - exact).abs() <= 1e-4 * exact.abs().max(1.0),
                        "{metric:?}: {distance} for {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn exact_search_ranks_every_row() {
    for (walk, form) in WALKS {
        for metric in METRICS {
            let mut world = World::of(metric, 20 + walk, 8, 40, form);
            world.add_clustered(2_000, 10);
            world.index.fold(1_500);
            let query = world.query();
            let mut cursor = world.index.cursor(&query, 1, u64::MAX, true).unwrap();
            let hits = drain(&mut cursor, &world.index, 300);
            assert!(hits.windows(2).all(|w| w[0].1 <= w[1].1), "{metric:?}");
            assert_eq!(ids(&hits), (0..2_000).collect::<Vec<_>>());
            let nearest = world.brute_force(&query, 10, u64::MAX);
            let worst = world.distance(nearest[9], &query);
            for (id, _) in &hits[..10] {
                assert!(world.distance(*id, &query) <= worst + 1e-6);
            }
        }
    }
}

#[test]
fn pages_to_exhaustion_return_every_row_once() {
    for (walk, form) in WALKS {
        for metric in METRICS {
            for (rows, folded) in [(1, 0), (3, 3), (700, 0), (700, 350), (700, 700)] {
                for page in [1, 13, 1_000] {
                    let mut world = World::of(metric, 8 + walk, 4, 16, form);
                    world.add_clustered(rows, 3);
                    world.index.fold(folded);
                    let query = world.query();
                    let hits = collect(&world.index, &query, 10, u64::MAX, page);
                    assert_eq!(ids(&hits), (0..rows as u32).collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn an_empty_index_is_exhausted_at_once() {
    for (walk, form) in WALKS {
        let world = World::of(Metric::L2, 3 + walk, 4, 16, form);
        let mut cursor = world
            .index
            .cursor(&vec![0.0; 3 + walk], 10, 0, false)
            .unwrap();
        let page = cursor.next_page(&world.index, 10);
        assert!(page.exhausted && page.hits.is_empty() && page.bound == f64::INFINITY);
    }
}

#[test]
fn far_clusters_are_swept_in_the_end() {
    for (walk, form) in WALKS {
        let mut world = World::of(Metric::L2, 4 + walk, 2, 4, form);
        // Clusters so far apart that a tiny graph cannot stay connected.
        for cluster in 0..20 {
            for i in 0..60 {
                let at = 1e6 * f32::from(cluster as u8);
                world.add_padded(vec![at, i as f32 * 1e-3, 0.0, 1.0]);
            }
        }
        world.index.fold(usize::MAX);
        let hits = collect(&world.index, &vec![0.0; 4 + walk], 4, u64::MAX, 50);
        assert_eq!(ids(&hits), (0..1_200).collect::<Vec<_>>());
    }
}

#[test]
fn a_crowd_of_duplicates_does_not_hide_other_rows() {
    for (walk, form) in WALKS {
        let mut world = World::of(Metric::L2, 6 + walk, 8, 64, form);
        for i in 0..3_000 {
            world.add(vec![1.0; 6 + walk]);
            if i % 10 == 0 {
                world.add_clustered(1, 1);
            }
        }
        world.index.fold(usize::MAX);
        let all = collect(&world.index, &vec![1.0; 6 + walk], 40, u64::MAX, 100);
        assert_eq!(ids(&all), (0..3_300).collect::<Vec<_>>());
        assert!(all[..3_000].iter().filter(|h| h.1 == 0.0).count() >= 2_900);
        // In 134 dimensions of noise a bit a dimension orders 300 rows roughly.
        let recall = world.recall(50, 10, 100 + walk);
        assert!(recall >= 0.95, "recall {recall}");
    }
}

#[test]
fn removed_rows_are_never_returned_and_others_stay_reachable() {
    for (walk, form) in WALKS {
        let mut world = World::of(Metric::L2, 16 + walk, 8, 64, form);
        world.add_clustered(2_000, 20);
        world.index.fold(1_800);
        for id in 0..2_000 {
            if id % 10 != 0 {
                world.remove(id);
            }
        }
        assert_eq!(world.index.removed_len(), 1_800);
        world.index.fold(usize::MAX);
        world.remove(1);
        assert_eq!(
            world.index.removed_len(),
            1_800,
            "removing twice counts once"
        );
        let query = world.query();
        let hits = collect(&world.index, &query, 20, u64::MAX, 9);
        assert_eq!(ids(&hits), (0..2_000).step_by(10).collect::<Vec<u32>>());
        let recall = world.recall(50, 10, 50);
        assert!(recall >= 0.95, "recall {recall}");
    }
}

#[test]
fn a_row_removed_under_an_open_cursor_does_not_come_back() {
    for (walk, form) in WALKS {
        for folded in [0, 500] {
            let mut world = World::of(Metric::L2, 8 + walk, 8, 64, form);
            world.add_clustered(500, 5);
            world.index.fold(folded);
            let query = world.query();
            let mut cursor = world.index.cursor(&query, 100, u64::MAX, false).unwrap();
            let first = cursor.next_page(&world.index, 10);
            for id in 0..500 {
                world.remove(id);
            }
            assert_eq!(first.hits.len(), 10);
            assert!(drain(&mut cursor, &world.index, 10).is_empty());
        }
    }
}

#[test]
fn former_versions_show_to_old_snapshots_only() {
    for (walk, form) in WALKS {
        for folded in [0, 100, 300] {
            let mut world = World::of(Metric::Cosine, 12 + walk, 8, 64, form);
            world.add_clustered(300, 4);
            world.index.fold(folded);
            for id in 0..100 {
                world.index.end(VectorId(id), 1_000 + u64::from(id));
            }
            world.index.fold(usize::MAX);
            let query = world.query();
            let seen = |world: &World, xmin| ids(&collect(&world.index, &query, 30, xmin, 11));
            assert_eq!(seen(&world, u64::MAX), (100..300).collect::<Vec<_>>());
            assert_eq!(seen(&world, 1_100), (100..300).collect::<Vec<_>>());
            assert_eq!(seen(&world, 1_099), (99..300).collect::<Vec<_>>());
            assert_eq!(seen(&world, 1_040), (40..300).collect::<Vec<_>>());
            assert_eq!(seen(&world, 1_000), (0..300).collect::<Vec<_>>());
            world.remove(50);
            world.index.end(VectorId(50), 5_000);
            let without = (0..300).filter(|id| *id != 50).collect::<Vec<_>>();
            assert_eq!(seen(&world, 0), without, "a removed row stays removed");
        }
    }
}

#[test]
fn zero_vectors_under_cosine_come_last_but_come() {
    for (walk, form) in WALKS {
        let mut world = World::of(Metric::Cosine, 5 + walk, 4, 16, form);
        for i in 0..200 {
            if i % 4 == 0 {
                world.add(vec![0.0; 5 + walk]);
            } else {
                world.add_clustered(1, 1);
            }
        }
        for folded in [0, 120, 200] {
            world.index.fold(folded);
            let query = world.query();
            let hits = collect(&world.index, &query, 16, u64::MAX, 25);
            assert_eq!(ids(&hits), (0..200).collect::<Vec<_>>());
            assert!(
                hits[..150]
                    .iter()
                    .all(|h| h.1.is_finite() && h.0.0 % 4 != 0)
            );
            assert!(hits[150..].iter().all(|h| h.1 == f64::INFINITY));
            let zero = collect(&world.index, &vec![0.0; 5 + walk], 16, u64::MAX, 25);
            assert_eq!(ids(&zero), (0..200).collect::<Vec<_>>());
            assert!(zero.iter().all(|h| h.1 == f64::INFINITY));
        }
    }
}

/// Of noise most that is ranked falls out of sight and is never expanded.
#[test]
fn a_page_counts_what_was_ranked_and_not_what_was_expanded() {
    let mut world = World::of(Metric::L2, 64, 8, 40, Representation::Coded);
    world.add_clustered(2_000, 1);
    world.index.fold(usize::MAX);
    let counts = || (0..2).map(|block| world.index.accesses(block));
    let expansions = || counts().map(|of| of.expansions).sum::<u32>() as usize;
    let originals = || counts().map(|of| of.originals).sum::<u32>() as usize;
    let query = vec![0.5; 64];
    let before = (expansions(), originals());
    let mut cursor = world.index.cursor(&query, 20, u64::MAX, false).unwrap();
    let page = cursor.next_page(&world.index, 10);
    let (expanded, exactly) = (expansions() - before.0, originals() - before.1);
    assert!(expanded >= 20, "{expanded} nodes expanded");
    assert!((10..=30).contains(&exactly), "{exactly} ranked exactly");
    let by_sketch = page.distances - exactly;
    assert!(by_sketch > 2 * expanded, "{by_sketch} for {expanded} nodes");
}

#[test]
fn the_tail_is_merged_exactly_and_bounds_hold() {
    for (walk, form) in WALKS {
        let mut world = World::of(Metric::L2, 10 + walk, 8, 64, form);
        world.add_clustered(1_000, 8);
        world.index.fold(400);
        let query = world.query();
        let mut cursor = world.index.cursor(&query, 600, u64::MAX, false).unwrap();
        let mut pages: Vec<Page> = Vec::new();
        while !pages.last().is_some_and(|p| p.exhausted) {
            pages.push(cursor.next_page(&world.index, 60));
        }
        assert_eq!(pages.iter().map(|p| p.tail_rows).sum::<usize>(), 600);
        assert!(pages.iter().map(|p| p.distances).sum::<usize>() >= 1_000);
        // With ef above the graph's size nothing is left to chance.
        for pair in pages.windows(2) {
            let (last, next) = (pair[0].hits.last().unwrap().1, pair[1].hits[0].1);
            assert!(last <= pair[0].bound && pair[0].bound <= next);
        }
    }
}

#[test]
fn folding_under_an_open_cursor_neither_repeats_nor_loses_rows() {
    for (walk, form) in WALKS {
        let mut world = World::of(Metric::L2, 8 + walk, 4, 32, form);
        world.add_clustered(1_000, 6);
        world.index.fold(300);
        let query = world.query();
        let mut cursor = world.index.cursor(&query, 20, u64::MAX, false).unwrap();
        let mut hits = Vec::new();
        loop {
            let page = cursor.next_page(&world.index, 17);
            hits.extend(page.hits);
            world.index.fold(20);
            world.add_clustered(5, 6);
            if page.exhausted {
                break;
            }
        }
        assert_eq!(ids(&hits), (0..1_000).collect::<Vec<_>>());
    }
}

/// What was found and not given out yet is not looked for again.
#[test]
fn the_next_page_costs_the_increment() {
    const PAGES: usize = 20;
    const ROWS: usize = 10;
    let walks = WALKS
        .into_iter()
        .chain([(48, Representation::Compact(CodeBits::Eight))]);
    for (walk, form) in walks {
        let mut world = World::of(Metric::L2, 16 + walk, 12, 80, form);
        world.add_clustered(6_000, 40);
        world.index.fold(usize::MAX);
        let (mut first, mut later, mut at_once) = (0, 0, 0);
        for _ in 0..30 {
            let query = world.query();
            let open = || world.index.cursor(&query, 40, u64::MAX, false).unwrap();
            let mut cursor = open();
            let mut distances = || {
                let page = cursor.next_page(&world.index, ROWS);
                assert_eq!(page.hits.len(), ROWS);
                page.distances
            };
            first += distances();
            later += (1..PAGES).map(|_| distances()).sum::<usize>();
            at_once += open().next_page(&world.index, PAGES * ROWS).distances;
        }
        let (pages, a_page) = (first + later, later / (PAGES - 1));
        println!(
            "{form:?}: first page {first}, later {a_page} each, all {pages}; at once {at_once}"
        );
        assert!(
            pages as f64 <= 1.3 * at_once as f64,
            "{form:?}: {pages} for {at_once}"
        );
        assert!(2 * a_page <= first, "{form:?}: {a_page} after {first}");
    }
}
