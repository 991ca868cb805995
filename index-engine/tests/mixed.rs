//! Blocks of rows with codes of a width of their own: what is found, promised and kept.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use index_engine::accesses::BLOCK_VECTORS;
use index_engine::{
    CodeBits, Cursor, Effort, IndexError, Metric, PartitionIndex, Recoded, Representation,
};
use world::{Random, World, drain};

const DIMENSIONS: usize = 144;
/// The last block is not full.
const ROWS: usize = 3_400;
const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

fn world(metric: Metric, bits: CodeBits, rows: usize) -> World {
    let mut world = World::of(metric, DIMENSIONS, 12, 80, Representation::Compact(bits));
    world.add_clustered(rows, rows / 60);
    world.index.fold(usize::MAX);
    world
}

fn recode_all(index: &PartitionIndex, bits: CodeBits) {
    for block in 0..index.blocks() {
        assert_eq!(index.recode(block, bits), Ok(Recoded::Done));
        assert_eq!(index.width(block), Some(bits));
    }
}

fn opened(world: &World, query: &[f32], ef: usize, effort: Effort) -> Cursor {
    world.index.cursor(query, ef, u64::MAX, effort).unwrap()
}

/// All pages of some searches, bit for bit.
fn answers(world: &World, queries: &[Vec<f32>]) -> Vec<Vec<(u32, u64)>> {
    let efforts = [Effort::Balanced, Effort::Fast];
    let searches = queries.iter().flat_map(|q| efforts.map(|e| (q, e)));
    let all = searches.map(|(query, effort)| {
        let mut cursor = opened(world, query, 30, effort);
        let hits = drain(&mut cursor, &world.index, 50);
        hits.iter().map(|hit| (hit.0.0, hit.1.to_bits())).collect()
    });
    all.collect()
}

#[test]
fn what_was_recoded_and_back_answers_bit_for_bit_as_before() {
    for metric in METRICS {
        let mut world = world(metric, CodeBits::Eight, 2_500);
        let queries: Vec<Vec<f32>> = (0..3).map(|_| world.query()).collect();
        let before = answers(&world, &queries);
        let bytes = world.index.footprint().codes;
        for bits in [CodeBits::One, CodeBits::Two, CodeBits::Four] {
            recode_all(&world.index, bits);
            assert_ne!(answers(&world, &queries), before);
        }
        recode_all(&world.index, CodeBits::Eight);
        assert!(answers(&world, &queries) == before, "{metric:?}");
        assert_eq!(world.index.footprint().codes, bytes);
    }
}

/// What a fast search reports hangs on a row's code and on nothing else.
#[test]
fn rows_have_the_codes_that_an_index_of_the_width_gives_them() {
    let mut mixed = world(Metric::L2, CodeBits::Four, ROWS);
    let query = mixed.query();
    let widths = [
        CodeBits::Eight,
        CodeBits::One,
        CodeBits::Four,
        CodeBits::Two,
    ];
    for (block, bits) in (0..).zip(widths) {
        assert_eq!(mixed.index.recode(block, bits), Ok(Recoded::Done));
    }
    // Into the last block, which has codes of another width than the index.
    mixed.add_clustered(200, 20);
    mixed.index.fold(usize::MAX);
    let reported = |world: &World| -> HashMap<u32, u64> {
        let mut cursor = opened(world, &query, 50, Effort::Fast);
        let hits = drain(&mut cursor, &world.index, 100);
        hits.iter().map(|hit| (hit.0.0, hit.1.to_bits())).collect()
    };
    let of_mixed = reported(&mixed);
    assert_eq!(of_mixed.len(), ROWS + 200);
    for (block, bits) in (0..).zip(widths) {
        let mut same = World::of(
            Metric::L2,
            DIMENSIONS,
            12,
            40,
            Representation::Compact(bits),
        );
        mixed.rows.iter().for_each(|row| {
            same.add(row.clone());
        });
        same.index.fold(usize::MAX);
        let of_same = reported(&same);
        let rows = block * BLOCK_VECTORS..((block + 1) * BLOCK_VECTORS).min(of_mixed.len() as u32);
        assert!(rows.len() > 500);
        // A row that no search reaches is ranked exactly in the end.
        let same = rows
            .clone()
            .filter(|row| of_mixed[row] == of_same[row])
            .count();
        assert!(same * 100 > rows.len() * 98, "{bits:?}: {same}");
    }
}

fn recall(world: &mut World, effort: Effort) -> f64 {
    const QUERIES: usize = 40;
    let mut found = 0;
    for _ in 0..QUERIES {
        let query = world.query();
        let truth = world.brute_force(&query, 10, u64::MAX);
        let page = opened(world, &query, 100, effort).next_page(&world.index, 10);
        found += page.hits.iter().filter(|h| truth.contains(&h.0.0)).count();
    }
    found as f64 / (10 * QUERIES) as f64
}

#[test]
fn a_mixture_finds_as_its_widths_do_and_with_codes_alone_between_them() {
    for metric in METRICS {
        let mut world = world(metric, CodeBits::Eight, ROWS);
        let mut fast = Vec::new();
        for cold in 0..=4 {
            if cold > 0 {
                let recoded = world.index.recode(cold - 1, CodeBits::One);
                assert_eq!(recoded, Ok(Recoded::Done));
            }
            let balanced = recall(&mut world, Effort::Balanced);
            assert!(balanced >= 0.97, "{metric:?} {cold} cold: {balanced}");
            fast.push(recall(&mut world, Effort::Fast));
        }
        assert!(fast[0] >= 0.97, "{metric:?}: {fast:?}");
        assert!(
            fast[0] > fast[2] + 0.05 && fast[2] + 0.03 > fast[4],
            "{metric:?}: {fast:?}"
        );
    }
}

/// Rows behind a page may be nearer than its bound by less than their own code's doubt only.
#[test]
fn each_row_is_read_by_the_doubt_of_its_own_code() {
    let mut world = world(Metric::L2, CodeBits::Eight, ROWS);
    world.index.recode(1, CodeBits::One).unwrap();
    world.index.recode(3, CodeBits::Two).unwrap();
    let (mut below, mut all, mut found, mut read) = (0, 0, 0, 0);
    for _ in 0..8 {
        let query = world.query();
        let truth = world.brute_force(&query, 50, u64::MAX);
        let mut cursor = opened(&world, &query, ROWS, Effort::Balanced);
        let first = cursor.next_page(&world.index, 50);
        found += first.hits.iter().filter(|h| truth.contains(&h.0.0)).count();
        read += first.originals;
        for (_, exact) in drain(&mut cursor, &world.index, 500) {
            below += usize::from(exact < first.bound);
            all += 1;
        }
    }
    assert!(found >= 398, "{found} of 400 nearest");
    assert!(below * 500 <= all, "{below} of {all} below the bound");
    // All of one bit would have some hundreds read.
    assert!(read < 8 * 400, "{read} read");
}

/// Ranks of one bit wait in the cursor, and codes have eight when their turn comes.
#[test]
fn a_rank_keeps_its_doubt_though_the_codes_become_better_in_mid_search() {
    for effort in [Effort::Balanced, Effort::Fast] {
        let mut world = world(Metric::L2, CodeBits::One, ROWS);
        let (mut below, mut all) = (0, 0);
        for _ in 0..8 {
            recode_all(&world.index, CodeBits::One);
            let query = world.query();
            let mut cursor = opened(&world, &query, 1_500, effort);
            cursor.next_page(&world.index, 10);
            recode_all(&world.index, CodeBits::Eight);
            let bound = cursor.next_page(&world.index, 100).bound;
            for (id, _) in drain(&mut cursor, &world.index, 500) {
                below += usize::from(world.distance(id, &query) < bound);
                all += 1;
            }
        }
        assert_eq!(all, 8 * (ROWS - 110));
        assert!(
            below * 500 <= all,
            "{effort:?}: {below} of {all} below the bound"
        );
    }
}

#[test]
fn rows_move_into_slots_of_cold_blocks_and_are_found() {
    let mut world = world(Metric::L2, CodeBits::Eight, ROWS);
    for block in [0, 2, 3] {
        world.index.recode(block, CodeBits::One).unwrap();
    }
    let leaving: Vec<u32> = (0..ROWS as u32).filter(|id| id % 3 == 0).collect();
    leaving.iter().for_each(|id| world.remove(*id));
    while world.index.repair(200) > 0 {}
    let slots = world.index.slots_len();
    for _ in 0..leaving.len() {
        let vector = world.query();
        let id = world.index.insert(&vector, world.random.next()).unwrap();
        assert!(world.removed.remove(&id.0), "a slot of one that left");
        world.rows[id.0 as usize] = vector;
    }
    world.index.fold(usize::MAX);
    assert_eq!(world.index.slots_len(), slots);
    let widths = [0, 1, 2, 3].map(|block| world.index.width(block).unwrap().count());
    assert_eq!(widths, [1, 8, 1, 1], "a slot's code has its block's width");
    let found = recall(&mut world, Effort::Balanced);
    assert!(found >= 0.96, "recall {found}");
    for id in leaving.iter().step_by(7) {
        let query = world.rows[*id as usize].clone();
        let page = opened(&world, &query, 60, Effort::Balanced).next_page(&world.index, 1);
        assert_eq!(page.hits[0].0.0, *id);
    }
}

#[test]
fn former_codes_are_kept_until_the_cursors_that_were_open_are_dropped() {
    let mut world = world(Metric::L2, CodeBits::Eight, 2_048);
    let bytes = |world: &World| world.index.footprint().codes;
    let before = bytes(&world);
    let query = world.query();
    let mut cursor = opened(&world, &query, 100, Effort::Fast);
    let page = cursor.next_page(&world.index, 10);
    assert_eq!(page.hits.len(), 10);
    recode_all(&world.index, CodeBits::One);
    // Both are there.
    assert!(bytes(&world) > before);
    assert_eq!(world.index.recode(0, CodeBits::Two), Ok(Recoded::Later));
    assert_eq!(world.index.width(0), Some(CodeBits::One));
    assert_eq!(drain(&mut cursor, &world.index, 100).len(), 2_038);
    drop(cursor);
    // Whoever repairs gives them back too.
    world.index.repair(1);
    let after = bytes(&world);
    assert!(after < before / 2, "{after} of {before}");
    let widths = world.index.widths();
    let cold = widths.iter().find(|w| w.bits == CodeBits::One).unwrap();
    assert_eq!((cold.blocks, cold.rows), (2, 2_048));
    assert_eq!(widths.iter().map(|w| w.bytes).sum::<usize>(), after);
    assert_eq!(world.index.recode(0, CodeBits::Two), Ok(Recoded::Done));
}

#[test]
fn what_has_no_widths_and_blocks_that_are_not_there_are_refused() {
    let world = world(Metric::L2, CodeBits::Eight, 1_100);
    let refused = world.index.recode(2, CodeBits::One);
    let none = IndexError::NoSuchBlock {
        block: 2,
        blocks: 2,
    };
    assert_eq!(refused, Err(none));
    assert_eq!(world.index.width(2), None);
    for form in [Representation::Plain, Representation::Coded] {
        let mut other = World::of(Metric::L2, DIMENSIONS, 4, 10, form);
        other.add_clustered(10, 2);
        let refused = other.index.recode(0, CodeBits::One);
        assert_eq!(refused, Err(IndexError::NoWidths));
        assert!(other.index.widths().is_empty() && other.index.width(0).is_none());
    }
}

#[test]
fn searches_inserts_and_repair_go_on_while_blocks_change_at_random() {
    let mut world = world(Metric::L2, CodeBits::Eight, ROWS);
    let vectors: Vec<Vec<f32>> = (0..1_500).map(|_| world.query()).collect();
    let queries: Vec<Vec<f32>> = (0..50).map(|_| world.query()).collect();
    // Of the rows that stay whatever comes.
    let stays = |id: u32| id < ROWS as u32 && !id.is_multiple_of(4);
    let truths: Vec<Vec<u32>> = queries
        .iter()
        .map(|query| {
            let all = world.brute_force(query, ROWS, u64::MAX).into_iter();
            all.filter(|id| stays(*id)).take(10).collect()
        })
        .collect();
    let (index, done) = (&world.index, &AtomicBool::new(false));
    let (rows, queries, truths) = (&world.rows, &queries, &truths);
    let (found, asked, changes) = std::thread::scope(|scope| {
        scope.spawn(move || {
            for (row, vector) in vectors.iter().enumerate() {
                let gone = row as u32 * 4;
                if gone < ROWS as u32 {
                    index.remove(index_engine::VectorId(gone));
                }
                index.insert(vector, row as u64).unwrap();
                if row % 10 == 0 {
                    index.fold(10);
                    index.repair(40);
                }
            }
            index.fold(usize::MAX);
            done.store(true, Ordering::Release);
        });
        let recoding = scope.spawn(move || {
            let (mut random, mut changes) = (Random(5), 0);
            while !done.load(Ordering::Acquire) {
                let block = random.next() as u32 % index.blocks();
                let bits = CodeBits::ALL[random.next() as usize % 4];
                let recoded = index.recode(block, bits).unwrap();
                changes += usize::from(recoded == Recoded::Done);
            }
            changes
        });
        let (mut found, mut asked) = (0, 0);
        for (query, truth) in queries.iter().zip(truths).cycle() {
            if done.load(Ordering::Acquire) {
                break;
            }
            let mut cursor = index.cursor(query, 100, u64::MAX, false).unwrap();
            let worst = |id: u32| {
                let squares = rows[id as usize]
                    .iter()
                    .zip(query)
                    .map(|(x, y)| (x - y).powi(2));
                f64::from(squares.sum::<f32>().sqrt()) + 1e-3
            };
            let mut hits = cursor.next_page(index, 15).hits;
            hits.extend(cursor.next_page(index, 15).hits);
            // Others that came are among them: by distance what stays is found.
            let last = hits.iter().map(|hit| hit.1).fold(0.0, f64::max);
            for id in truth.iter().filter(|id| worst(**id) < last) {
                found += usize::from(hits.iter().any(|hit| hit.0.0 == *id));
                asked += 1;
            }
        }
        (found, asked, recoding.join().unwrap())
    });
    assert!(
        changes > 20 && asked > 200,
        "{changes} changes, {asked} asked for"
    );
    assert!(found * 100 >= asked * 96, "{found} of {asked} found");
    while index.repair(500) > 0 {}
    // Nothing is left of what was there in between.
    let widths = index.widths();
    let blocks: usize = widths.iter().map(|width| width.blocks).sum();
    assert_eq!(blocks as u32, index.blocks());
    assert_eq!(
        widths.iter().map(|w| w.bytes).sum::<usize>(),
        index.footprint().codes
    );
}
