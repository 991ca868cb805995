//! Rows that are noise: distances between them lie so close together that codes
//! of one bit alone tell little. No data is like that, but tests and first trials are.
#![allow(clippy::unwrap_used)]

mod world;

use index_engine::{Metric, VectorId};
use world::World;

const ROWS: u32 = 3_000;

#[test]
fn noise_is_found_by_its_own_vector_and_by_others() {
    for dimensions in [128, 528] {
        let mut world = World::new(Metric::L2, dimensions, 16, 100);
        for _ in 0..ROWS {
            let vector = world.query();
            world.add(vector);
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| while world.index.fold(64) > 0 {});
            }
        });
        let mut lost = 0;
        for id in 0..ROWS {
            let query = &world.rows[id as usize];
            let mut cursor = world.index.cursor(query, 100, u64::MAX, false).unwrap();
            lost += usize::from(cursor.next_page(&world.index, 1).hits[0].0 != VectorId(id));
        }
        assert!(
            lost <= 20,
            "{dimensions}: {lost} not found by their own vector"
        );
        let recall = world.recall(100, 10, 100);
        assert!(recall >= 0.88, "{dimensions}: recall {recall}");
    }
}

#[test]
fn rows_far_from_zero_are_found_as_well() {
    let mut world = World::new(Metric::L2, 128, 16, 100);
    world.add_clustered(1, 1);
    for _ in 0..ROWS {
        let vector: Vec<f32> = world.query().iter().map(|x| x + 10.0).collect();
        world.add(vector);
    }
    world.index.fold(usize::MAX);
    let mut found = 0;
    for _ in 0..100 {
        let query: Vec<f32> = world.query().iter().map(|x| x + 10.0).collect();
        let truth = world.brute_force(&query, 10, u64::MAX);
        let mut cursor = world.index.cursor(&query, 100, u64::MAX, false).unwrap();
        let hits = cursor.next_page(&world.index, 10).hits;
        found += hits.iter().filter(|hit| truth.contains(&hit.0.0)).count();
    }
    assert!(found >= 850, "recall {}", found as f64 / 1_000.0);
}
