//! One writer, folding threads and searches at the same time.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use index_engine::{Cursor, Metric, PartitionIndex, VectorId};
use world::{Random, World, collect, drain};

const ROWS: u32 = 4_000;

#[test]
fn an_index_is_shared_between_threads_and_a_cursor_moves() {
    fn shared<T: Send + Sync + 'static>() {}
    fn moved<T: Send + 'static>() {}
    shared::<PartitionIndex>();
    moved::<Cursor>();
}

#[test]
fn searches_are_complete_while_rows_come_fold_and_go() {
    // Walked by exact distances, and by codes.
    for dimensions in [12, 136] {
        searches_are_complete(dimensions);
    }
}

fn searches_are_complete(dimensions: usize) {
    let mut world = World::new(Metric::L2, dimensions, 6, 32);
    world.add_clustered(1, 12);
    let vectors: Vec<Vec<f32>> = (0..ROWS).map(|_| world.query()).collect();
    let index = &world.index;
    let (inserted, done) = (&AtomicU32::new(1), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut random = Random(1);
            for vector in &vectors {
                let id = index.insert(vector, random.next()).unwrap();
                inserted.store(id.0 + 1, Ordering::Release);
                // Every fourth goes at once, so that those left are known to any search.
                if id.0.is_multiple_of(4) {
                    index.remove(id);
                }
            }
            done.store(true, Ordering::Release);
        });
        for _ in 0..3 {
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) || index.tail_len() > 0 {
                    if index.fold(50) == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
        for seed in 0..2 {
            scope.spawn(move || {
                let mut random = Random(100 + seed);
                while !done.load(Ordering::Acquire) || index.tail_len() > 0 {
                    let query: Vec<f32> = (0..dimensions).map(|_| 2.0 * random.normal()).collect();
                    let before = inserted.load(Ordering::Acquire);
                    let mut cursor = index.cursor(&query, 20, u64::MAX, false).unwrap();
                    let after = index.total_len() as u32;
                    let found: HashSet<u32> = drain(&mut cursor, index, 100)
                        .into_iter()
                        .map(|hit| hit.0.0)
                        .collect();
                    assert!(found.iter().all(|id| *id < after));
                    let kept = (1..before).filter(|id| !id.is_multiple_of(4));
                    for id in kept {
                        assert!(found.contains(&id), "row {id} of {before} is missing");
                    }
                }
            });
        }
    });
    assert_eq!(index.tail_len(), 0);
    assert_eq!(index.total_len(), ROWS as usize + 1);
    let all = collect(index, &vec![0.0; dimensions], 50, u64::MAX, 100);
    assert_eq!(all.len(), (1..=ROWS).filter(|id| id % 4 != 0).count() + 1);
}

#[test]
fn folding_on_several_threads_keeps_every_row_findable() {
    for dimensions in [24, 144] {
        every_row_is_findable(dimensions);
    }
}

fn every_row_is_findable(dimensions: usize) {
    let mut world = World::new(Metric::L2, dimensions, 16, 100);
    world.add_clustered(6_000, 40);
    let folded: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    std::iter::repeat_with(|| world.index.fold(64))
                        .take_while(|n| *n > 0)
                        .sum::<usize>()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!((folded, world.index.tail_len()), (6_000, 0));
    let mut lost = 0;
    for id in 0..6_000 {
        let query = &world.rows[id as usize];
        let mut cursor = world.index.cursor(query, 40, u64::MAX, false).unwrap();
        lost += usize::from(cursor.next_page(&world.index, 1).hits[0].0 != VectorId(id));
    }
    assert!(lost <= 6, "{lost} rows are not found by their own vector");
    let recall = world.recall(100, 10, 100);
    assert!(recall >= 0.98, "recall {recall}");
}

#[test]
fn identical_rows_folded_by_several_threads_all_come_back() {
    for dimensions in [4, 128] {
        identical_rows_come_back(dimensions);
    }
}

fn identical_rows_come_back(dimensions: usize) {
    let mut world = World::new(Metric::Cosine, dimensions, 4, 16);
    for i in 0..2_000u32 {
        world.add_padded(vec![1.0, (i % 7) as f32, 0.5, 0.0]);
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.index.fold(usize::MAX));
        }
    });
    let mut query = vec![0.0; dimensions];
    query[..4].copy_from_slice(&[1.0, 2.0, 0.5, 0.0]);
    // Threads may have linked equal vectors beside each other: more nodes than kinds.
    let hits = collect(&world.index, &query, 64, u64::MAX, 64);
    assert_eq!(hits.len(), 2_000);
    assert!(hits[..285].iter().all(|hit| hit.1.abs() < 1e-6));
}
