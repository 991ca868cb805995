//! Original vectors in memory that the test hands in.
#![allow(clippy::unwrap_used)]

mod world;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use index_engine::memory::{Advice, Backing, Mapping};
use index_engine::{CodeBits, IndexError, IndexParams, Metric, PartitionIndex, Representation};
use parking_lot::Mutex;
use world::{World, collect};

type Advised = (Range<usize>, Advice);

#[derive(Default)]
struct Budget {
    left_bytes: AtomicUsize,
    given_bytes: AtomicUsize,
    returned_bytes: Arc<AtomicUsize>,
    advised: Arc<Mutex<Vec<Advised>>>,
}

impl Budget {
    fn of(bytes: usize) -> Self {
        Self {
            left_bytes: bytes.into(),
            ..Self::default()
        }
    }
}

struct Piece {
    start: NonNull<u8>,
    layout: Layout,
    returned_bytes: Arc<AtomicUsize>,
    advised: Arc<Mutex<Vec<Advised>>>,
}

impl Backing for Budget {
    fn zeroed(&self, bytes: usize) -> Option<Box<dyn Mapping>> {
        let take = |left: usize| left.checked_sub(bytes);
        self.left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()?;
        self.given_bytes.fetch_add(bytes, Ordering::Relaxed);
        let layout = Layout::from_size_align(bytes, 64).unwrap();
        Some(Box::new(Piece {
            // SAFETY: the layout is not empty.
            #[allow(unsafe_code)]
            start: NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap(),
            layout,
            returned_bytes: self.returned_bytes.clone(),
            advised: self.advised.clone(),
        }))
    }
}

// SAFETY: the piece owns its bytes and shows them to nobody else.
#[allow(unsafe_code)]
unsafe impl Send for Piece {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Piece {}

// SAFETY: as many zeroed bytes as were asked for, aligned, freed on drop.
#[allow(unsafe_code)]
unsafe impl Mapping for Piece {
    fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn advise(&self, ranges: &[Range<usize>], advice: Advice) {
        let mut advised = self.advised.lock();
        advised.extend(ranges.iter().map(|range| (range.clone(), advice)));
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = self.layout.size();
        self.returned_bytes.fetch_add(bytes, Ordering::Relaxed);
        // SAFETY: what `zeroed` allocated.
        #[allow(unsafe_code)]
        unsafe {
            dealloc(self.start.as_ptr(), self.layout);
        }
    }
}

fn params(dimensions: usize, representation: Representation) -> IndexParams {
    IndexParams {
        metric: Metric::L2,
        dimensions,
        m: 8,
        representation,
        ..IndexParams::default()
    }
}

#[test]
fn vectors_lie_in_the_memory_handed_in_and_are_found_as_elsewhere() {
    for representation in [
        Representation::Plain,
        Representation::Coded,
        Representation::Compact(CodeBits::Two),
    ] {
        let budget = Arc::new(Budget::of(usize::MAX));
        let index = PartitionIndex::with_backing(params(160, representation), budget.clone());
        let index = index.unwrap();
        let mut world = World::of(Metric::L2, 160, 8, 64, representation);
        world.add_clustered(2_000, 10);
        let mut random = world::Random(7);
        for row in &world.rows {
            index.insert(row, random.next()).unwrap();
        }
        // But for levels, which differ.
        let vectors_bytes = world.index.memory_bytes() - index.memory_bytes();
        assert!(
            vectors_bytes.abs_diff(2_000 * 160 * 4) < 10_000,
            "{vectors_bytes}"
        );
        let given = budget.given_bytes.load(Ordering::Relaxed);
        // Buckets of 512, 1024 and 2048 rows.
        assert_eq!(given, 3_584 * 160 * 4);
        index.fold(usize::MAX);
        for _ in 0..20 {
            let query = world.query();
            let truth = world.brute_force(&query, 10, u64::MAX);
            let found = collect(&index, &query, 200, u64::MAX, 10);
            let near = found[..10].iter().filter(|hit| truth.contains(&hit.0.0));
            assert!(near.count() >= 9);
            assert_eq!(found.len(), 2_000);
        }
        drop(index);
        assert_eq!(budget.returned_bytes.load(Ordering::Relaxed), given);
    }
}

#[test]
fn an_insertion_without_memory_is_refused_and_the_index_serves_on() {
    // Room for the first bucket only.
    let budget = Arc::new(Budget::of(512 * 64));
    let plain = params(16, Representation::Plain);
    let index = PartitionIndex::with_backing(plain, budget.clone()).unwrap();
    for row in 0..512 {
        index.insert(&[row as f32; 16], row).unwrap();
    }
    for _ in 0..2 {
        let refused = index.insert(&[0.5; 16], 9);
        assert_eq!(refused, Err(IndexError::NoMemory { bytes: 1_024 * 64 }));
    }
    index.fold(usize::MAX);
    assert_eq!(collect(&index, &[3.0; 16], 10, u64::MAX, 100).len(), 512);
    budget.left_bytes.store(1 << 20, Ordering::Relaxed);
    assert_eq!(index.insert(&[0.5; 16], 9).unwrap().0, 512);
}

#[test]
fn advice_reaches_the_memory_of_the_rows_named() {
    let budget = Arc::new(Budget::of(usize::MAX));
    let plain = params(16, Representation::Plain);
    let index = PartitionIndex::with_backing(plain, budget.clone()).unwrap();
    for row in 0..600 {
        index.insert(&[row as f32; 16], row).unwrap();
    }
    // From the first bucket into the second, and beyond what is there.
    index.advise(500..9_999, Advice::Cold);
    index.advise(3..4, Advice::WillNeed);
    let advised = budget.advised.lock().clone();
    assert_eq!(
        advised,
        [
            (500 * 64..512 * 64, Advice::Cold),
            (0..88 * 64, Advice::Cold),
            (3 * 64..4 * 64, Advice::WillNeed)
        ]
    );
}
