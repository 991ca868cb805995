//! An index written, and read back: the same index, or an error that says why not.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use index_engine::checkpoint::{CheckpointError, Loading};
use index_engine::{
    CodeBits, ColumnType, Effort, Metric, PartitionIndex, Recoded, Representation, Value, VectorId,
};
use world::{Random, World, collect, loaded, written};

const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];
/// Walked by exact distances, and by codes.
const DIMENSIONS: [usize; 3] = [12, COMPACT_DIMENSIONS, 136];
const COMPACT_DIMENSIONS: usize = 100;

/// All of them, by dimensions.
fn form(dimensions: usize) -> Representation {
    match dimensions {
        COMPACT_DIMENSIONS => Representation::Compact(CodeBits::Two),
        _ => Representation::ByDimensions,
    }
}

/// A world with copies, former versions, removed rows and a tail.
fn eventful(metric: Metric, dimensions: usize) -> World {
    let mut world = World::of(metric, dimensions, 6, 32, form(dimensions));
    world.add_clustered(700, 7);
    for copy in 0..60 {
        world.add(world.rows[copy % 3].clone());
    }
    world.add(vec![0.0; dimensions]);
    world.add_clustered(339, 7);
    assert_eq!(world.index.fold(1_000), 1_000);
    for id in (0..1_100).step_by(7) {
        world.remove(id);
    }
    for id in (3..1_100).step_by(11) {
        world.index.end(VectorId(id), 100 + u64::from(id));
    }
    world
}

fn assert_same(one: &PartitionIndex, other: &PartitionIndex, random: &mut Random) {
    let state = |index: &PartitionIndex| {
        let (total, tail) = (index.total_len(), index.tail_len());
        // What searches keep for the next ones differs.
        let footprint = index.footprint();
        let stored = footprint.total() - footprint.other;
        (total, tail, index.removed_len(), stored)
    };
    assert_eq!(state(one), state(other));
    assert_same_answers(one, other, random);
}

fn assert_same_answers(one: &PartitionIndex, other: &PartitionIndex, random: &mut Random) {
    let dimensions = one.params().dimensions;
    for xmin in [1, 500, u64::MAX] {
        let query: Vec<f32> = (0..dimensions).map(|_| 2.0 * random.normal()).collect();
        let pages = |index| collect(index, &query, 30, xmin, 25);
        assert_eq!(pages(one), pages(other));
        let exact = |index: &PartitionIndex| {
            let mut cursor = index.cursor(&query, 1, xmin, true).unwrap();
            cursor.next_page(index, 2_000)
        };
        assert_eq!(exact(one), exact(other));
    }
}

#[test]
fn a_loaded_index_answers_as_the_one_that_was_written_and_goes_on_like_it() {
    for (metric, dimensions) in METRICS.iter().flat_map(|m| DIMENSIONS.map(|d| (*m, d))) {
        let mut world = eventful(metric, dimensions);
        let bytes = written(&world.index);
        let again = loaded(&bytes, 3).unwrap();
        assert_eq!(again.params(), world.index.params());
        let mut random = Random(9);
        assert_same(&world.index, &again, &mut random);
        assert!(written(&again) == bytes, "written again as it was read");
        // What comes now comes to both.
        for row in 0..300 {
            let vector = world.query();
            let [id, same] = [&world.index, &again].map(|index| index.insert(&vector, row));
            assert_eq!(id.unwrap(), same.unwrap());
            world.rows.push(vector);
        }
        for id in (5..1_300).step_by(13) {
            world.remove(id);
            again.remove(VectorId(id));
        }
        assert_eq!(world.index.fold(usize::MAX), again.fold(usize::MAX));
        assert_eq!((again.tail_len(), again.total_len()), (0, 1_400));
        assert_same(&world.index, &again, &mut random);
        world.index = again;
        world.removed.extend((3..1_100).step_by(11));
        if metric != Metric::Cosine {
            let recall = world.recall(40, 10, 60);
            assert!(recall > 0.9, "{metric:?} {dimensions}: {recall}");
        }
    }
}

#[test]
fn a_repaired_index_whose_slots_are_used_again_comes_back() {
    for dimensions in DIMENSIONS {
        let mut world = eventful(Metric::L2, dimensions);
        let index = &world.index;
        index.fold(usize::MAX);
        (0..1_100)
            .step_by(2)
            .for_each(|id| index.remove(VectorId(id)));
        while index.repair(100) > 0 {}
        let removed_and_waiting = loaded(&written(index), 2).unwrap();
        assert_eq!(removed_and_waiting.slots_len(), 1_100);
        let vectors: Vec<Vec<f32>> = (0..300).map(|_| world.query()).collect();
        let index = &world.index;
        for (row, vector) in vectors.iter().enumerate() {
            index.insert(vector, row as u64).unwrap();
        }
        assert_eq!(index.slots_len(), 1_100, "slots are used again");
        index.fold(200);
        let again = loaded(&written(index), 2).unwrap();
        assert_eq!((again.tail_len(), index.tail_len()), (100, 100));
        assert_eq!(again.fold(usize::MAX), 100);
        index.fold(usize::MAX);
        for vector in &vectors {
            let nearest = |index| collect(index, vector, 40, u64::MAX, 10)[0];
            assert_eq!(nearest(&again), nearest(index));
        }
    }
}

#[test]
fn a_mixture_of_widths_comes_back_and_is_of_a_version_of_its_own() {
    let mut world = World::of(Metric::L2, 100, 6, 32, form(COMPACT_DIMENSIONS));
    world.add_clustered(5_500, 30);
    world.index.fold(5_400);
    let index = &world.index;
    let version = |bytes: &[u8]| bytes[8];
    assert_eq!(version(&written(index)), 1, "who reads no other reads it");
    let widths = [
        (0, CodeBits::One),
        (2, CodeBits::Eight),
        (3, CodeBits::One),
        (5, CodeBits::Four),
    ];
    for (block, bits) in widths {
        assert_eq!(index.recode(block, bits), Ok(Recoded::Done));
    }
    // What begins first is waited for.
    let checkpoint = index.checkpoint();
    assert_eq!(index.recode(1, CodeBits::One), Ok(Recoded::Later));
    let mut bytes = Vec::new();
    checkpoint.write(index, &mut bytes).unwrap();
    assert_eq!(version(&bytes), 2);
    let again = loaded(&bytes, 2).unwrap();
    let of = |index: &PartitionIndex| (0..6).map(|b| index.width(b)).collect::<Vec<_>>();
    assert_eq!(of(&again), of(index));
    assert_same_answers(index, &again, &mut Random(6));
    // But for pages that blocks share.
    let codes = |index: &PartitionIndex| index.footprint().codes;
    assert!(codes(&again).abs_diff(codes(index)) < 100_000);
    let fast = |index: &PartitionIndex| {
        let mut cursor = index
            .cursor(&world.rows[7], 50, u64::MAX, Effort::Fast)
            .unwrap();
        cursor.next_page(index, 500)
    };
    assert_eq!(fast(&again), fast(index));
    assert!(written(&again) == bytes, "written again as it was read");
    // Each goes on, and back to one width.
    for index in [index, &again] {
        assert_eq!(index.recode(1, CodeBits::Eight), Ok(Recoded::Done));
        index.insert(&world.rows[3], 7).unwrap();
        index.fold(usize::MAX);
    }
    assert_same_answers(index, &again, &mut Random(7));
    for block in 0..6 {
        again.recode(block, CodeBits::Two).unwrap();
    }
    assert_eq!(version(&written(&again)), 1);
}

#[test]
fn an_empty_index_and_a_tail_alone_come_back() {
    for dimensions in DIMENSIONS {
        let mut world = World::of(Metric::L2, dimensions, 6, 32, form(dimensions));
        let again = loaded(&written(&world.index), 1).unwrap();
        assert_eq!(again.total_len(), 0);
        world.add_clustered(40, 3);
        let again = loaded(&written(&world.index), 2).unwrap();
        assert_eq!((again.total_len(), again.tail_len()), (40, 40));
        assert_same(&world.index, &again, &mut Random(1));
        assert_eq!(again.fold(usize::MAX), 40);
    }
}

/// Lets things happen after so many bytes.
struct Interrupted<F> {
    bytes: Vec<u8>,
    at: usize,
    act: Option<F>,
}

impl<F: FnOnce()> Write for Interrupted<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= self.at
            && let Some(act) = self.act.take()
        {
            act();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn rows_inserted_linked_and_removed_while_it_is_written_are_not_in_it() {
    for dimensions in DIMENSIONS {
        let world = eventful(Metric::L2, dimensions);
        let length = written(&world.index).len();
        for at in [0, length / 3, length * 2 / 3] {
            let mut world = eventful(Metric::L2, dimensions);
            let before = written(&world.index);
            let vectors: Vec<Vec<f32>> = (0..400).map(|_| world.query()).collect();
            let index = &world.index;
            let act = || {
                for (row, vector) in vectors.iter().enumerate() {
                    index.insert(vector, row as u64).unwrap();
                }
                assert_eq!(index.fold(usize::MAX), 500);
                (100..900).for_each(|id| index.remove(VectorId(id)));
            };
            let act = Some(act);
            let bytes = Vec::new();
            let mut sink = Interrupted { bytes, at, act };
            let checkpoint = index.checkpoint();
            assert_eq!(checkpoint.rows(), 1_100);
            checkpoint.write(index, &mut sink).unwrap();
            assert!(sink.act.is_none());
            // As it was, but for links that made room for later ones.
            let (one, other) = (loaded(&before, 1).unwrap(), loaded(&sink.bytes, 1).unwrap());
            assert_eq!(other.total_len(), 1_100);
            assert_eq!(
                (other.tail_len(), other.removed_len()),
                (100, one.removed_len())
            );
            assert_eq!(other.fold(usize::MAX), 100);
            world.index = other;
            world.removed.extend((3..1_100).step_by(11));
            let recall = world.recall(60, 10, 60);
            // Two bits find less among so few links.
            let enough = if dimensions == COMPACT_DIMENSIONS {
                0.92
            } else {
                0.95
            };
            assert!(recall > enough, "{dimensions} at {at}: {recall}");
            for id in (0..1_100).filter(|id| id % 9 == 0 && !world.removed.contains(id)) {
                let query = &world.rows[id as usize];
                let hits = collect(&world.index, query, 40, u64::MAX, 1_100);
                assert!(hits.iter().any(|hit| hit.0.0 == id));
                if id % 90 == 0 {
                    assert_eq!(hits.len(), 1_100 - world.removed.len());
                }
            }
        }
    }
}

#[test]
fn checkpoints_taken_while_threads_insert_fold_and_search_are_sound() {
    for dimensions in DIMENSIONS {
        let mut world = World::of(Metric::L2, dimensions, 6, 32, form(dimensions));
        world.add_clustered(200, 7);
        let vectors: Vec<Vec<f32>> = (0..2_500).map(|_| world.query()).collect();
        let index = &world.index;
        let done = &AtomicBool::new(false);
        let checkpoints = std::thread::scope(|scope| {
            scope.spawn(|| {
                for (row, vector) in vectors.iter().enumerate() {
                    index.insert(vector, row as u64).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Acquire) || index.tail_len() > 0 {
                        if index.fold(20) == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let searching = scope.spawn(|| {
                let mut random = Random(4);
                while !done.load(Ordering::Acquire) {
                    let query: Vec<f32> = (0..dimensions).map(|_| random.normal()).collect();
                    let mut cursor = index.cursor(&query, 20, u64::MAX, false).unwrap();
                    assert_eq!(cursor.next_page(index, 10).hits.len(), 10);
                }
            });
            let mut checkpoints = Vec::new();
            while checkpoints.len() < 10 {
                let checkpoint = index.checkpoint();
                let rows = checkpoint.rows();
                let mut bytes = Vec::new();
                checkpoint.write(index, &mut bytes).unwrap();
                checkpoints.push((rows, bytes));
                if done.load(Ordering::Acquire) && index.tail_len() == 0 {
                    break;
                }
            }
            searching.join().unwrap();
            checkpoints
        });
        world.rows.extend(vectors);
        let of_living = world.recall(60, 10, 60);
        let all = std::mem::take(&mut world.rows);
        let step = checkpoints.len().div_ceil(4);
        for (rows, bytes) in checkpoints.iter().step_by(step) {
            world.index = loaded(bytes, 2).unwrap();
            assert_eq!(world.index.total_len(), *rows);
            world.index.fold(usize::MAX);
            world.rows = all[..*rows].to_vec();
            let recall = world.recall(60, 10, 60);
            assert!(
                recall > of_living - 0.1,
                "{dimensions}: {recall} of {rows} rows, of the living {of_living}"
            );
        }
    }
}

#[test]
fn no_part_of_a_checkpoint_passes_for_one() {
    for dimensions in DIMENSIONS {
        let bytes = written(&eventful(Metric::L2, dimensions).index);
        let sampled = (0..bytes.len()).step_by(997);
        let near_pages = (0..bytes.len())
            .step_by(4_096)
            .flat_map(|page| [page, page + 1]);
        for length in sampled.chain(near_pages).chain([bytes.len() - 1]) {
            let result = loaded(&bytes[..length], 1);
            let Err(CheckpointError::Truncated { found, .. }) = result else {
                panic!("{length} of {} bytes: {:?}", bytes.len(), result.err());
            };
            assert_eq!(found, length as u64);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(
            loaded(&longer, 1),
            Err(CheckpointError::Truncated { .. })
        ));
        // The length is there, and what was to be written last is not.
        for tail in [8, 24, 4_096, bytes.len() / 2] {
            let mut unwritten = bytes.clone();
            let from = unwritten.len() - tail;
            unwritten[from..].fill(0);
            assert!(loaded(&unwritten, 1).is_err(), "{tail} bytes of zeros");
        }
    }
}

#[test]
fn every_flipped_byte_is_found() {
    let mut world = World::new(Metric::L2, 3, 2, 8);
    world.add_clustered(30, 3);
    world.index.fold(20);
    let bytes = written(&world.index);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(loaded(&flipped, 1).is_err(), "byte {at}");
    }
    let bytes = written(&eventful(Metric::Cosine, 136).index);
    let mut flipped = bytes.clone();
    for at in (0..bytes.len()).step_by(4_099) {
        flipped[at] ^= 1 << (at % 8);
        assert!(loaded(&flipped, 1).is_err(), "byte {at}");
        flipped[at] = bytes[at];
    }
}

#[test]
fn other_versions_and_other_files_are_refused_by_name() {
    let bytes = written(&World::new(Metric::L2, 3, 2, 8).index);
    let mut other = bytes.clone();
    other[8] = 9;
    let error = loaded(&other, 1).err().unwrap();
    let said = "the checkpoint is of format version 9; this release reads versions up to 3: \
                build the index anew from its rows";
    assert_eq!(error.to_string(), said);
    other = bytes.clone();
    other[..8].fill(b'x');
    assert!(matches!(
        loaded(&other, 1),
        Err(CheckpointError::NotACheckpoint)
    ));
    let loading = Loading::open(&bytes[..], None).unwrap();
    assert!(loading.finish().is_ok(), "no chunk is to be read");
    let mut world = World::new(Metric::L2, 3, 2, 8);
    world.add_clustered(10, 1);
    let bytes = written(&world.index);
    let unread = Loading::open(&bytes[..], None).unwrap().finish();
    assert!(matches!(unread, Err(CheckpointError::Unread { .. })));
}

/// Sixteen bytes a line with their offset; lines of zeros are left out.
fn dump(bytes: &[u8]) -> String {
    let line = |(number, line): (usize, &[u8])| {
        let hex = line
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        format!("{:06x} {hex}\n", number * 16)
    };
    let lines = bytes.chunks(16).enumerate();
    let lines = lines.filter(|(_, line)| line.iter().any(|byte| *byte != 0));
    format!(
        "{} bytes\n{}",
        bytes.len(),
        lines.map(line).collect::<String>()
    )
}

fn undump(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let length = lines.next().unwrap().trim_end_matches(" bytes");
    let mut bytes = vec![0; length.parse().unwrap()];
    for line in lines {
        let (offset, hex) = line.split_once(' ').unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        for (at, pair) in hex.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).unwrap();
            bytes[offset + at] = u8::from_str_radix(pair, 16).unwrap();
        }
    }
    bytes
}

/// With UPDATE_GOLDEN set the files are written instead. A change of them is a new format
/// version, and so is a change of what an index derives from a vector.
fn golden(name: &str, bytes: &[u8]) -> PartitionIndex {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let file = format!("{folder}/checkpoint-{name}.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&file, dump(bytes)).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap();
    assert_eq!(dump(bytes), golden, "{file}");
    let index = loaded(&undump(&golden), 1).unwrap();
    assert!(
        written(&index) == bytes,
        "{file}: written again as it was read"
    );
    index
}

#[test]
fn the_format_is_pinned_by_golden_bytes() {
    let eight = Representation::Compact(CodeBits::Eight);
    for (name, dimensions, form) in [
        ("plain", 3, Representation::default()),
        ("coded", 128, Representation::default()),
        // Version 2: its one block has codes of another width.
        ("mixed", 16, eight),
    ] {
        let mut world = World::of(Metric::L2, dimensions, 2, 8, form);
        for row in 0..6 {
            let vector = (0..dimensions).map(|i| ((i * 7 + row * 13) % 11) as f32 - 5.0);
            let vector: Vec<f32> = vector.collect();
            world.index.insert(&vector, row as u64 * 4).unwrap();
            world.rows.push(vector);
        }
        world.index.insert(&world.rows[1], 0).unwrap();
        world.index.fold(6);
        world.index.remove(VectorId(2));
        world.index.end(VectorId(3), 77);
        if form == eight {
            let recoded = world.index.recode(0, CodeBits::One).unwrap();
            assert_eq!(recoded, Recoded::Done);
        }
        let index = golden(name, &written(&world.index));
        // Rows of another width never had the memory that the recoded block's share of a page
        // still holds.
        if form != eight {
            assert_same(&world.index, &index, &mut Random(3));
        }
    }
}

/// Version 3: of each type a column, NULL in it, and a row that was removed.
#[test]
fn the_format_of_columns_is_pinned_by_golden_bytes() {
    let world = World::new(Metric::L2, 3, 2, 8);
    let types = [
        ColumnType::Int,
        ColumnType::Float,
        ColumnType::Bool,
        ColumnType::Bytes,
    ];
    let params = world.index.params().clone();
    let index = PartitionIndex::with_columns(params, &types, None).unwrap();
    let names = ["pear", "apple", "", "fig", "apple"];
    for (row, name) in names.into_iter().enumerate() {
        let mut values = [
            Value::Int(row as i64 - 2),
            Value::Float(-1.5 * row as f64),
            Value::Bool(row % 2 == 0),
            Value::Bytes(name.as_bytes().into()),
        ];
        if row > 0 {
            values[row - 1] = Value::Null;
        }
        let vector = [row as f32, 1.0, -1.0];
        index
            .insert_with(&vector, row as u64 * 4, &values, |_| {})
            .unwrap();
    }
    index.fold(4);
    index.remove(VectorId(0));
    let again = golden("columns", &written(&index));
    assert_eq!(again.columns(), types);
    for id in (1..5).map(VectorId) {
        assert_eq!(again.attributes(id), index.attributes(id));
    }
}
