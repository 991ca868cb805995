//! Codes of the vectors themselves: how well they find, what they report, what is read.
#![allow(clippy::unwrap_used)]

mod world;

use index_engine::accesses::Accesses;
use index_engine::{CodeBits, Effort, Metric, Representation};
use world::{Random, World, drain};

const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

fn world(metric: Metric, bits: CodeBits, rows: usize) -> World {
    let form = Representation::Compact(bits);
    let mut world = World::of(metric, 200, 16, 100, form);
    world.add_clustered(rows, rows / 60);
    world.index.fold(usize::MAX);
    world
}

/// Shares of the true nearest ten found, what was read for a query, and whether reports
/// were said to be approximate.
fn search(world: &mut World, ef: usize, effort: Effort) -> (f64, f64, bool) {
    const QUERIES: usize = 30;
    let (mut found, mut originals, mut approximate) = (0, 0, false);
    for _ in 0..QUERIES {
        let query = world.query();
        let truth = world.brute_force(&query, 10, u64::MAX);
        let mut cursor = world.index.cursor(&query, ef, u64::MAX, effort).unwrap();
        let page = cursor.next_page(&world.index, 10);
        let near = page.hits.iter().filter(|hit| truth.contains(&hit.0.0));
        found += near.count();
        originals += page.originals;
        approximate |= page.approximate;
    }
    let queries = QUERIES as f64;
    (
        found as f64 / (10.0 * queries),
        originals as f64 / queries,
        approximate,
    )
}

#[test]
fn every_number_of_bits_finds_by_codes_and_rerank() {
    for metric in METRICS {
        for bits in CodeBits::ALL {
            let mut world = world(metric, bits, 1_500);
            let (recall, originals, approximate) = search(&mut world, 100, Effort::Balanced);
            assert!(recall >= 0.98, "{metric:?} {bits:?}: recall {recall}");
            assert!(!approximate);
            // The fewer bits, the more is read, and eight hardly read beyond the page.
            let most = match bits {
                CodeBits::Eight => 12.0,
                CodeBits::Four => 40.0,
                CodeBits::One | CodeBits::Two => 100.0,
            };
            assert!(
                (10.0..most).contains(&originals),
                "{bits:?}: {originals} read"
            );
        }
    }
}

#[test]
fn codes_alone_find_by_their_bits_and_read_nothing() {
    // Where distances within a cluster are noise, few bits order it roughly.
    let floors = [
        (CodeBits::Two, 0.5),
        (CodeBits::Four, 0.8),
        (CodeBits::Eight, 0.98),
    ];
    for metric in METRICS {
        for (bits, floor) in floors {
            let mut world = world(metric, bits, 1_500);
            let (recall, originals, approximate) = search(&mut world, 100, Effort::Fast);
            assert!(recall >= floor, "{metric:?} {bits:?}: recall {recall}");
            assert!(originals == 0.0 && approximate);
        }
    }
}

#[test]
fn a_fast_search_pages_through_every_row_and_reports_nearly_its_distance() {
    for metric in METRICS {
        for (bits, allowed) in [(CodeBits::One, 0.2), (CodeBits::Eight, 0.005)] {
            let mut world = world(metric, bits, 700);
            // A tail, which is ranked exactly.
            world.add_clustered(50, 11);
            let query = world.query();
            let mut cursor = world
                .index
                .cursor(&query, 20, u64::MAX, Effort::Fast)
                .unwrap();
            let hits = drain(&mut cursor, &world.index, 40);
            let mut ids: Vec<u32> = hits.iter().map(|hit| hit.0.0).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..750).collect::<Vec<_>>());
            // Of distances, or of the vectors' lengths.
            let size = match metric {
                Metric::L2 => 30.0,
                Metric::Cosine => 1.0,
                _ => 1_000.0,
            };
            for (id, distance) in hits {
                let exact = world.distance(id, &query);
                let error = (distance - exact).abs();
                assert!(
                    error <= allowed * size,
                    "{metric:?} {bits:?}: {distance} for {exact}"
                );
                assert!(id.0 < 700 || error < 1e-4 * size, "the tail is exact");
            }
        }
    }
}

#[test]
fn no_later_hit_of_a_fast_search_is_nearer_than_its_bound() {
    let world = &mut world(Metric::L2, CodeBits::Two, 1_000);
    let (mut below, mut all) = (0, 0);
    for _ in 0..10 {
        let query = world.query();
        // With `ef` above the graph's size nothing is left to chance but the codes' error.
        let mut cursor = world
            .index
            .cursor(&query, 1_000, u64::MAX, Effort::Fast)
            .unwrap();
        let first = cursor.next_page(&world.index, 100);
        for (id, reported) in drain(&mut cursor, &world.index, 100) {
            below += usize::from(world.distance(id, &query) < first.bound);
            all += 1;
            assert!(reported >= first.bound);
        }
    }
    assert!(below * 200 <= all, "{below} of {all} below the bound");
}

#[test]
fn a_balanced_search_misplaces_few_rows_and_its_bound_holds() {
    let world = &mut world(Metric::L2, CodeBits::One, 1_000);
    let (mut below, mut all) = (0, 0);
    for _ in 0..10 {
        let query = world.query();
        let mut cursor = world
            .index
            .cursor(&query, 1_000, u64::MAX, Effort::Balanced)
            .unwrap();
        let first = cursor.next_page(&world.index, 50);
        assert!(first.hits.last().unwrap().1 <= first.bound);
        for (_, exact) in drain(&mut cursor, &world.index, 50) {
            below += usize::from(exact < first.bound);
            all += 1;
        }
    }
    assert!(below * 200 <= all, "{below} of {all} below the bound");
}

#[test]
fn rows_of_another_distribution_are_found_as_well_as_the_first() {
    for bits in [CodeBits::One, CodeBits::Eight] {
        let mut world = world(Metric::L2, bits, 2_000);
        let (before, ..) = search(&mut world, 100, Effort::Balanced);
        // Elsewhere, ten times as wide, and along other axes: nothing was trained on the first.
        for _ in 0..2_000 {
            let mut vector = world.query();
            for (i, x) in vector.iter_mut().enumerate() {
                *x = 10.0 * *x + if i % 7 == 0 { 40.0 } else { -20.0 };
            }
            world.add(vector);
        }
        world.index.fold(usize::MAX);
        let mut found = 0;
        for _ in 0..60 {
            let mut query = world.query();
            for (i, x) in query.iter_mut().enumerate() {
                *x = 10.0 * *x + if i % 7 == 0 { 40.0 } else { -20.0 };
            }
            let truth = world.brute_force(&query, 10, u64::MAX);
            assert!(truth.iter().all(|id| *id >= 2_000));
            let mut cursor = world.index.cursor(&query, 100, u64::MAX, false).unwrap();
            let hits = cursor.next_page(&world.index, 10).hits;
            found += hits.iter().filter(|hit| truth.contains(&hit.0.0)).count();
        }
        let after = found as f64 / 600.0;
        assert!(
            before >= 0.98 && after >= 0.97,
            "{bits:?}: {before}, then {after}"
        );
        let (first_half, ..) = search(&mut world, 100, Effort::Balanced);
        assert!(first_half >= 0.97, "{bits:?}: the first half {first_half}");
    }
}

/// 128 of links on level 0 and 4 above, 8 of level and copies, 1 of role, 16 of state and birth.
#[test]
fn beside_vectors_and_codes_a_row_takes_157_bytes() {
    for bits in CodeBits::ALL {
        let form = Representation::Compact(bits);
        let mut world = World::of(Metric::L2, 256, 16, 40, form);
        world.add_clustered(2_000, 20);
        world.index.fold(usize::MAX);
        let parts = world.index.footprint();
        // Codes, and their three factors.
        assert_eq!(parts.codes, 2_000 * (256 * bits.count() / 8 + 12));
        let links = (parts.links + parts.lives) as f64 / 2_000.0;
        assert!((156.0..=159.0).contains(&links), "{bits:?}: {links} bytes");
    }
}

#[test]
fn a_block_that_is_searched_for_is_counted_and_others_hardly() {
    for form in [
        Representation::Compact(CodeBits::Two),
        Representation::Coded,
    ] {
        let mut world = World::of(Metric::L2, 160, 8, 40, form);
        // Each block of 1,024 a cluster far from the others.
        for block in 0..3 {
            for _ in 0..1_024 {
                let mut vector = world.query();
                vector.iter_mut().for_each(|x| *x += 10.0 * block as f32);
                world.add(vector);
            }
        }
        world.index.fold(usize::MAX);
        let before = [0, 1, 2].map(|block| world.index.accesses(block));
        assert_eq!(before, [Accesses::default(); 3], "linking is no search");
        let query: Vec<f32> = world.query().iter().map(|x| x + 20.0).collect();
        let mut cursor = world.index.cursor(&query, 50, u64::MAX, false).unwrap();
        let page = cursor.next_page(&world.index, 10);
        let [first, _, third] = [0, 1, 2].map(|block| world.index.accesses(block));
        assert!(
            third.expansions >= 50 && first.expansions < 10,
            "{first:?} {third:?}"
        );
        assert!(third.originals >= 10 && first.originals == 0);
        if form != Representation::Coded {
            assert_eq!(third.originals as usize, page.originals);
        }
        assert_eq!(world.index.accesses(9), Accesses::default());
    }
}

/// Rows of two lengths: what codes say of the long ones is far more doubtful. Where all rows
/// are met, what is found and what pages promise hangs only on which of them are read.
#[test]
fn a_row_of_large_doubt_is_read_though_others_are_ranked_before_it() {
    const ROWS: usize = 600;
    for form in [
        Representation::Compact(CodeBits::One),
        Representation::Compact(CodeBits::Two),
        Representation::Compact(CodeBits::Four),
        Representation::Coded,
    ] {
        let mut world = World::of(Metric::L2, 128, 16, 100, form);
        let mut random = Random(3);
        let direction: Vec<f32> = (0..128).map(|_| random.normal() / 128f32.sqrt()).collect();
        for row in 0..ROWS {
            let length = match row % 4 {
                0 => 19.5 + 0.3 * random.normal(),
                _ => 1.2 + 0.3 * random.normal(),
            };
            let noise = 0.02 * length;
            let vector = direction
                .iter()
                .map(|x| length * x + noise * random.normal());
            world.add(vector.collect());
        }
        world.index.fold(usize::MAX);
        let (mut found, mut broken) = (0, 0);
        for _ in 0..30 {
            let length = 10.0 + random.normal();
            let query = direction.iter().map(|x| length * x + 0.1 * random.normal());
            let query: Vec<f32> = query.collect();
            let truth = world.brute_force(&query, 10, u64::MAX);
            let index = &world.index;
            let mut cursor = index.cursor(&query, 2 * ROWS, u64::MAX, false).unwrap();
            let first = cursor.next_page(index, 10);
            found += first
                .hits
                .iter()
                .filter(|hit| truth.contains(&hit.0.0))
                .count();
            let mut bound = first.bound;
            for _ in 0..19 {
                let page = cursor.next_page(index, 10);
                broken += usize::from(page.hits[0].1 < bound * (1.0 - 1e-6));
                bound = page.bound;
            }
        }
        assert!(found >= 299, "{form:?}: {found} of 300");
        // By three deviations of its doubt and more a row is misplaced once in a thousand.
        // Of sketches a bound does not promise it.
        let promises = form != Representation::Coded;
        assert!(
            !promises || broken <= 1,
            "{form:?}: {broken} of 570 bounds broken"
        );
    }
}
