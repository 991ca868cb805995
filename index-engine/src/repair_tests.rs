//! What must hold of the graph once a batch has left, whatever came before.

use std::collections::HashSet;

use proptest::prelude::*;

use crate::checkpoint::Loading;
use crate::params::CodeBits;
use crate::{IndexParams, Metric, PartitionIndex, Representation, VectorId};

/// Of so many dimensions with codes of the vectors; below by exact distances, above with
/// codes of neighbours.
const COMPACT: usize = 64;

fn index(dimensions: usize, m: usize) -> PartitionIndex {
    let params = IndexParams {
        metric: Metric::L2,
        dimensions,
        m,
        ef_construction: 40,
        representation: match dimensions {
            COMPACT => Representation::Compact(CodeBits::Eight),
            _ => Representation::ByDimensions,
        },
        ..IndexParams::default()
    };
    PartitionIndex::new(params).expect("good parameters")
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    fn noise(&mut self, dimensions: usize) -> Vec<f32> {
        let mut unit = || (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..dimensions).map(|_| unit() + unit() + unit()).collect()
    }
}

fn settle(index: &PartitionIndex) {
    while index.fold(64) > 0 {}
    while index.repair(64) > 0 {}
}

/// The ids of what is there.
fn held(index: &PartitionIndex) -> Vec<u32> {
    let all = 0..index.slots_len() as u32;
    all.filter(|id| !index.lives.is_removed(*id)).collect()
}

/// Nothing mentions what has left, every row is a node or the copy of one, and held links
/// are a tree. Returns how many nodes links do not reach from the entry.
fn check(index: &PartitionIndex) -> usize {
    let hnsw = &index.hnsw;
    let nodes: Vec<u32> = hnsw.staying_nodes().collect();
    let is_node: HashSet<u32> = nodes.iter().copied().collect();
    let mut copies = HashSet::new();
    for node in &nodes {
        for level in 0..=hnsw.level_of_tests(*node) {
            let links = hnsw.links_on(*node, level);
            let once: HashSet<_> = links.iter().copied().collect();
            assert_eq!(once.len(), links.len(), "{node} on {level} links twice");
            for link in links {
                assert!(is_node.contains(&link), "{node} on {level} mentions {link}");
                assert_ne!(link, *node, "{node} links to itself");
            }
        }
        for copy in hnsw.copies_of_tests(*node) {
            assert!(copies.insert(copy), "{copy} is a copy twice");
            assert_eq!(hnsw.vectors.get(copy), hnsw.vectors.get(*node));
        }
    }
    for id in held(index) {
        let places = usize::from(is_node.contains(&id)) + usize::from(copies.contains(&id));
        assert_eq!(places, 1, "row {id} is in {places} places");
    }
    let Some(entry) = hnsw.entry_of_tests() else {
        return 0;
    };
    assert!(is_node.contains(&entry), "the entry left");
    check_tree(index, &nodes);
    let links = |node| hnsw.links_on(node, 0);
    nodes.len() - reached(entry, links)
}

/// The same, and codes of neighbours reach all: without held links pruning loses some
/// noise, from the first build on.
fn check_reached(index: &PartitionIndex) {
    let lost = check(index);
    assert!(
        lost == 0 || index.hnsw.coding.is_none(),
        "{lost} unreachable"
    );
}

fn check_tree(index: &PartitionIndex, nodes: &[u32]) {
    let Some(coding) = &index.hnsw.coding else {
        return;
    };
    let held = |node: u32| -> Vec<u32> {
        let held = coding.blocks.links(node).filter(|link| link.is_held);
        held.map(|link| link.neighbour).collect()
    };
    let mut holders = std::collections::HashMap::new();
    for node in nodes {
        for held in held(*node) {
            let before = holders.insert(held, *node);
            assert_eq!(before, None, "{held} is held twice");
        }
    }
    let mut roots = nodes.iter().filter(|node| !holders.contains_key(node));
    let root = roots.next().expect("a tree has a root");
    assert_eq!(roots.next(), None, "a second root beside {root}");
    assert_eq!(Some(*root), index.hnsw.entry_of_tests());
    for node in nodes {
        let told = index.hnsw.holder_of_tests(*node);
        assert_eq!(told, holders.get(node).copied(), "who holds {node}");
    }
    assert_eq!(reached(*root, held), nodes.len(), "held links make a tree");
}

fn reached(from: u32, links: impl Fn(u32) -> Vec<u32>) -> usize {
    let mut met = HashSet::from([from]);
    let mut stack = vec![from];
    while let Some(node) = stack.pop() {
        stack.extend(links(node).into_iter().filter(|next| met.insert(*next)));
    }
    met.len()
}

fn remove(index: &PartitionIndex, id: u32) {
    index.remove(VectorId(id));
}

#[test]
fn noise_stays_reachable_after_all_of_it_was_replaced_twice() {
    const ROWS: usize = 1_500;
    for (dimensions, m) in [(128, 8), (16, 8), (COMPACT, 8)] {
        let index = index(dimensions, m);
        let mut random = Random(3);
        for row in 0..ROWS as u64 {
            index.insert(&random.noise(dimensions), row).expect("good");
        }
        settle(&index);
        let fresh = check(&index);
        // Without held links pruning loses some, at first as later.
        let lost_max = match index.hnsw.coding {
            Some(_) => 0,
            None => fresh + ROWS / 20,
        };
        for round in 0..40 {
            let mut ids = held(&index);
            for _ in 0..ROWS / 20 {
                let id = ids.swap_remove(random.below(ids.len()));
                remove(&index, id);
            }
            settle(&index);
            for _ in 0..ROWS / 20 {
                let hash = random.next();
                index.insert(&random.noise(dimensions), hash).expect("good");
            }
            settle(&index);
            let lost = check(&index);
            assert!(
                lost <= lost_max,
                "{dimensions}, round {round}: {lost} unreachable"
            );
        }
        let slots = index.slots_len();
        assert!(slots <= ROWS + ROWS / 10, "{slots} slots");
    }
}

#[test]
fn a_slot_waits_for_the_cursors_that_could_come_to_it() {
    let index = index(4, 4);
    for row in 0..100u64 {
        index
            .insert(&[row as f32, 0.0, 0.0, 0.0], row)
            .expect("good");
    }
    settle(&index);
    let cursor = index.cursor(&[0.0; 4], 10, u64::MAX, false).expect("good");
    (10..20).for_each(|id| remove(&index, id));
    settle(&index);
    assert_eq!((index.removed_len(), index.total_len()), (10, 100));
    let late = index.cursor(&[0.0; 4], 10, u64::MAX, false).expect("good");
    let id = index.insert(&[0.5; 4], 100).expect("good");
    assert_eq!(id, VectorId(100), "no slot is free yet");
    drop(cursor);
    settle(&index);
    assert_eq!((index.removed_len(), index.total_len()), (0, 91));
    let id = index.insert(&[0.5; 4], 101).expect("good");
    assert!((10..20).contains(&id.0), "{id:?} is not a free slot");
    drop(late);
}

#[test]
fn a_copy_takes_the_place_of_its_node() {
    for dimensions in [8, COMPACT, 128] {
        let index = index(dimensions, 4);
        let vector = |at: u32| vec![(at % 25) as f32; dimensions];
        for at in 0..200 {
            index.insert(&vector(at), u64::from(at)).expect("good");
        }
        settle(&index);
        // The nodes, and of each the copy that would come next.
        for round in 0..6 {
            (round * 25..round * 25 + 25).for_each(|id| remove(&index, id));
            settle(&index);
            assert_eq!(check(&index), 0);
            for at in 0..25 {
                let mut cursor = index
                    .cursor(&vector(at), 20, u64::MAX, false)
                    .expect("good");
                let page = cursor.next_page(&index, 7 - round as usize);
                assert!(page.hits.iter().all(|hit| hit.1 == 0.0), "{round}, {at}");
            }
        }
    }
}

#[test]
fn an_index_that_all_rows_left_takes_new_ones() {
    for dimensions in [8, COMPACT, 128] {
        let index = index(dimensions, 4);
        let mut random = Random(5);
        for round in 0..4u64 {
            let ids: Vec<VectorId> = (0..300)
                .map(|row| {
                    let vector = random.noise(dimensions);
                    index.insert(&vector, round << 32 | row).expect("good")
                })
                .collect();
            settle(&index);
            check_reached(&index);
            ids.into_iter().for_each(|id| index.remove(id));
            settle(&index);
            assert_eq!(index.total_len(), 1, "the entry stays");
        }
        assert!(index.slots_len() <= 302);
    }
}

fn reloaded(index: &PartitionIndex) -> PartitionIndex {
    let mut bytes = Vec::new();
    let checkpoint = index.checkpoint();
    assert_eq!(index.repair(1_000), 0, "a repair waits for a checkpoint");
    checkpoint.write(index, &mut bytes).expect("memory");
    let loading = Loading::open(&bytes[..], None).expect("a checkpoint");
    loading.read(&bytes[..]).expect("sound");
    loading.finish().expect("sound")
}

#[test]
fn a_checkpoint_of_the_middle_of_a_repair_can_be_repaired() {
    for dimensions in [8, COMPACT, 128] {
        let index = index(dimensions, 4);
        let mut random = Random(11);
        let vectors: Vec<Vec<f32>> = (0..150).map(|_| random.noise(dimensions)).collect();
        let insert = |index: &PartitionIndex, random: &mut Random| {
            let (kind, hash) = (random.below(150), random.next());
            index.insert(&vectors[kind], hash).expect("good");
        };
        for _ in 0..300 {
            insert(&index, &mut random);
        }
        settle(&index);
        // What left stays for the cursor.
        let cursor = index.cursor(&vectors[0], 5, u64::MAX, false).expect("good");
        for _ in 0..3 {
            for id in held(&index) {
                if random.below(4) == 0 {
                    remove(&index, id);
                }
            }
            for _ in 0..40 {
                insert(&index, &mut random);
                index.fold(random.below(3));
            }
            while index.repair(7) > 0 {
                let again = reloaded(&index);
                assert_eq!(held(&again), held(&index));
                settle(&again);
                check_reached(&again);
                assert!(again.removed_len() <= 3);
                (0..60).for_each(|_| insert(&again, &mut random));
                settle(&again);
                check_reached(&again);
            }
        }
        drop(cursor);
        settle(&index);
        check_reached(&index);
    }
}

#[test]
fn no_slot_is_used_again_while_a_checkpoint_is_written() {
    let index = index(4, 4);
    for row in 0..100u64 {
        index
            .insert(&[row as f32, 0.0, 0.0, 0.0], row)
            .expect("good");
    }
    settle(&index);
    (10..20).for_each(|id| remove(&index, id));
    settle(&index);
    let checkpoint = index.checkpoint();
    let id = index.insert(&[0.5; 4], 100).expect("good");
    assert_eq!(id, VectorId(100));
    drop(checkpoint);
    let id = index.insert(&[0.5; 4], 101).expect("good");
    assert!((10..20).contains(&id.0), "{id:?} is not a free slot");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn whatever_leaves_the_rest_is_a_graph(
        seed in any::<u64>(),
        dimensions in prop::sample::select(vec![2usize, COMPACT, 128]),
        m in 2usize..7,
        // Few values: many copies.
        kinds in 2usize..400,
        shares in prop::collection::vec(1usize..100, 1..8),
    ) {
        let index = index(dimensions, m);
        let mut random = Random(seed);
        let vectors: Vec<Vec<f32>> = (0..kinds).map(|_| random.noise(dimensions)).collect();
        for share in shares {
            for _ in 0..150 {
                let (kind, hash) = (random.below(kinds), random.next());
                index.insert(&vectors[kind], hash).expect("good");
                if random.below(10) == 0 {
                    index.fold(random.below(40));
                }
            }
            if random.below(2) == 0 {
                settle(&index);
            }
            for id in held(&index) {
                if random.below(100) < share {
                    remove(&index, id);
                    // In pieces, so that rows come while a batch is on its way.
                    if random.below(8) == 0 {
                        index.repair(random.below(30));
                    }
                    if random.below(8) == 0 {
                        let (kind, hash) = (random.below(kinds), random.next());
                        index.insert(&vectors[kind], hash).expect("good");
                        index.fold(random.below(4));
                    }
                }
            }
            settle(&index);
            check_reached(&index);
        }
    }
}
