//! Random histories against a plain list: what a cursor must and may return.
#![allow(clippy::unwrap_used)]

mod owned;

use std::collections::HashMap;

use index_engine::{
    CodeBits, Cursor, Element, IndexParams, Metric, PartitionIndex, Representation, VectorId,
};
use owned::{Owned, WIDE, distance};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Few distinct values: equal and zero vectors are common.
    Insert(u8, u8),
    End(usize, u64),
    Remove(usize),
    /// Many at once, so that a batch is worth it.
    RemoveMany(usize),
    Fold(usize),
    Repair(usize),
    Open {
        xmin: u64,
        ef: usize,
        exact: bool,
    },
    Page(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..6, 0u8..6).prop_map(|(x, y)| Step::Insert(x, y)),
        2 => (any::<prop::sample::Index>(), 1u64..20).prop_map(|(i, x)| Step::End(i.index(1 << 20), x)),
        2 => any::<prop::sample::Index>().prop_map(|i| Step::Remove(i.index(1 << 20))),
        1 => (1usize..8).prop_map(Step::RemoveMany),
        2 => (1usize..30).prop_map(Step::Fold),
        3 => prop_oneof![1usize..8, Just(usize::MAX)].prop_map(Step::Repair),
        1 => (prop_oneof![Just(u64::MAX), 1u64..20], 1usize..40, any::<bool>())
            .prop_map(|(xmin, ef, exact)| Step::Open { xmin, ef, exact }),
        2 => (any::<prop::sample::Index>(), 1usize..9)
            .prop_map(|(i, rows)| Step::Page(i.index(1 << 20), rows)),
    ]
}

/// `None` is current; a removed row is gone for everybody.
#[derive(Clone, Copy, PartialEq)]
enum Row {
    Current,
    Ended(u64),
    Removed,
}

impl Row {
    fn visible(self, xmin: u64) -> bool {
        match self {
            Row::Current => true,
            Row::Ended(xid) => xmin <= xid,
            Row::Removed => false,
        }
    }
}

struct Open {
    cursor: Cursor,
    query: Vec<f64>,
    /// The last distance, of an exact search: the next is no nearer.
    exact_from: Option<f64>,
    xmin: u64,
    /// Rows that existed when it was opened.
    upto: usize,
    /// Rows that it returned, and under which id.
    returned: HashMap<usize, u32>,
}

struct World {
    index: PartitionIndex,
    metric: Metric,
    element: Element,
    /// In the order of insertion.
    rows: Vec<Row>,
    /// What they were made of, and what they are, dense.
    vectors: Vec<Vec<f32>>,
    dense: Vec<Vec<f64>>,
    /// The row of each id.
    row_of: Vec<usize>,
    id_of: Vec<VectorId>,
}

impl World {
    fn insert(&mut self, vector: Vec<f32>, open: &[Open]) {
        let row = self.rows.len();
        let named = std::cell::Cell::new(None);
        let name = |id| named.set(Some(id));
        let owned = Owned::of(self.element, &vector);
        let id = self
            .index
            .insert_named(owned.borrow(), row as u64, name)
            .unwrap();
        assert_eq!(named.get(), Some(id), "the name comes first");
        let at = id.0 as usize;
        if at == self.row_of.len() {
            self.row_of.push(row);
        } else {
            let before = std::mem::replace(&mut self.row_of[at], row);
            assert!(self.rows[before] == Row::Removed, "{before} was moved out");
            for open in open {
                assert!(
                    !open.returned.contains_key(&before),
                    "{before} is still held"
                );
            }
        }
        self.rows.push(Row::Current);
        self.vectors.push(vector);
        self.dense.push(owned.dense());
        self.id_of.push(id);
    }

    fn remove(&mut self, row: usize) {
        if self.rows[row] != Row::Removed {
            self.rows[row] = Row::Removed;
            self.index.remove(self.id_of[row]);
        }
    }

    fn open(&self, query: &[f32], ef: usize, xmin: u64, exact: bool) -> Open {
        let query = Owned::of(self.element, query);
        Open {
            cursor: self.index.cursor(query.borrow(), ef, xmin, exact).unwrap(),
            query: query.dense(),
            exact_from: exact.then_some(f64::NEG_INFINITY),
            xmin,
            upto: self.rows.len(),
            returned: HashMap::new(),
        }
    }

    fn page(&self, open: &mut Open, wanted: usize) -> bool {
        let page = open.cursor.next_page(&self.index, wanted);
        assert!(page.hits.windows(2).all(|w| w[0].1 <= w[1].1));
        let ends = page.hits.first().zip(page.hits.last());
        if let (Some(from), Some((first, last))) = (&mut open.exact_from, ends) {
            assert!(*from <= first.1, "{} after {from}", first.1);
            *from = last.1;
        }
        for (id, found) in &page.hits {
            let row = self.row_of[id.0 as usize];
            assert!(row < open.upto, "{row} is newer than the cursor");
            assert!(self.rows[row].visible(open.xmin), "{row} is not visible");
            let before = open.returned.insert(row, id.0);
            assert!(before.is_none(), "{row} came twice");
            let expected = distance(self.metric, &self.dense[row], &open.query);
            let is_right = *found == expected || (found - expected).abs() < 1e-3;
            assert!(is_right, "{row}: {found} for {expected}");
        }
        assert!(page.exhausted || page.hits.len() == wanted);
        if page.exhausted {
            for (row, state) in self.rows[..open.upto].iter().enumerate() {
                let came = open.returned.contains_key(&row);
                assert!(came || !state.visible(open.xmin), "{row} is missing");
            }
        }
        page.exhausted
    }

    /// Once nothing is open, what was removed goes, and its slots are used again.
    fn end(&mut self) {
        let held = |rows: &[Row]| rows.iter().filter(|row| **row != Row::Removed).count();
        let held = held(&self.rows);
        while self.index.fold(8) > 0 {}
        while self.index.repair(8) > 0 {}
        let slots = self.index.slots_len();
        let left = self.index.total_len();
        // A two-hundredth waits for company, and an entry that all have left behind stays.
        assert!(
            left <= held + held / 200 + 1,
            "{left} of {slots} for {held}"
        );
        for number in left..slots {
            self.insert(self.vectors[number % self.vectors.len()].clone(), &[]);
        }
        assert_eq!(
            (self.index.slots_len(), self.index.total_len()),
            (slots, slots)
        );
        if self.rows.is_empty() {
            return;
        }
        let query = self.vectors[0].iter().map(|x| x + 0.5).collect::<Vec<_>>();
        for exact in [false, true] {
            let mut open = self.open(&query, 3, u64::MAX, exact);
            while !self.page(&mut open, 7) {}
        }
    }
}

/// Two small numbers as a vector: its first two values, or so many bits of each.
fn vector(element: Element, dimensions: usize, x: f32, y: f32) -> Vec<f32> {
    let mut vector = vec![0.0; dimensions];
    match element {
        Element::Bit => {
            vector[..x as usize].fill(1.0);
            vector[dimensions / 2..][..y as usize].fill(1.0);
        }
        _ => (vector[0], vector[1]) = (x, y),
    }
    vector
}

/// What is walked, and how.
#[derive(Debug, Clone, Copy)]
struct Kind {
    element: Element,
    metric: Metric,
    dimensions: usize,
    representation: Representation,
}

fn run(kind: Kind, steps: Vec<Step>) {
    let Kind {
        element,
        metric,
        dimensions,
        representation,
    } = kind;
    let vector = |x, y| vector(element, dimensions, x, y);
    let params = IndexParams {
        metric,
        element,
        dimensions: match element {
            Element::Sparse => WIDE,
            _ => dimensions,
        },
        m: 2,
        ef_construction: 4,
        representation,
    };
    let index = PartitionIndex::new(params).unwrap();
    let mut world = World {
        index,
        metric,
        element,
        rows: Vec::new(),
        vectors: Vec::new(),
        dense: Vec::new(),
        row_of: Vec::new(),
        id_of: Vec::new(),
    };
    let mut open: Vec<Open> = Vec::new();
    for step in steps {
        let rows = world.rows.len();
        match step {
            Step::Insert(x, y) => world.insert(vector(f32::from(x), f32::from(y)), &open),
            Step::End(pick, xid) if rows > 0 => {
                let row = pick % rows;
                let id = world.id_of[row];
                // A version ends once; a replay does not move it.
                match world.rows[row] {
                    Row::Current => {
                        world.index.end(id, xid);
                        world.rows[row] = Row::Ended(xid);
                    }
                    Row::Ended(before) => world.index.end(id, before.min(xid)),
                    Row::Removed => {}
                }
            }
            Step::Remove(pick) if rows > 0 => world.remove(pick % rows),
            Step::RemoveMany(every) => (0..rows).step_by(every).for_each(|row| world.remove(row)),
            Step::Fold(most) => {
                world.index.fold(most);
            }
            Step::Repair(most) => {
                world.index.repair(most);
            }
            Step::Open { xmin, ef, exact } => {
                let query = vector(2.5, 1.0);
                open.push(world.open(&query, ef, xmin, exact));
            }
            Step::Page(pick, wanted) if !open.is_empty() => {
                let at = pick % open.len();
                if world.page(&mut open[at], wanted) {
                    open.swap_remove(at);
                }
            }
            Step::End(..) | Step::Remove(_) | Step::Page(..) => {}
        }
    }
    for mut cursor in open {
        while !world.page(&mut cursor, 5) {}
    }
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn every_history_pages_each_visible_row_once(
        metric in prop::sample::select(vec![Metric::L2, Metric::Cosine, Metric::InnerProduct]),
        // Walked by exact distances, by codes of neighbours, and by codes of the vectors.
        (dimensions, form) in prop::sample::select(vec![
            (2usize, Representation::Plain),
            (128, Representation::Coded),
            (32, Representation::Coded),
            (2, Representation::Compact(CodeBits::One)),
            (30, Representation::Compact(CodeBits::Eight)),
        ]),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let kind = Kind { element: Element::F32, metric, dimensions, representation: form };
        run(kind, steps);
    }

    #[test]
    fn so_does_every_history_of_other_elements_and_metrics(
        kind in prop::sample::select(other_kinds()),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        run(kind, steps);
    }
}

/// Each element with its metrics, but f32 with those of old.
fn other_kinds() -> Vec<Kind> {
    use Representation::{Coded, Compact, Plain};
    let four = Compact(CodeBits::Four);
    let kind = |(element, metric, dimensions, representation)| Kind {
        element,
        metric,
        dimensions,
        representation,
    };
    let kinds = [
        (Element::F32, Metric::L1, 20, Plain),
        (Element::F16, Metric::L1, 7, Plain),
        (Element::F16, Metric::L2, 40, Plain),
        (Element::F16, Metric::L2, 40, Coded),
        (Element::F16, Metric::L2, 20, four),
        (Element::F16, Metric::Cosine, 33, Coded),
        (Element::F16, Metric::InnerProduct, 33, Coded),
        (Element::F16, Metric::Cosine, 20, four),
        (Element::Sparse, Metric::L2, 20, Plain),
        (Element::Sparse, Metric::Cosine, 20, Plain),
        (Element::Sparse, Metric::InnerProduct, 20, Plain),
        (Element::Sparse, Metric::L1, 20, Plain),
        (Element::Bit, Metric::Hamming, 12, Plain),
        (Element::Bit, Metric::Jaccard, 12, Plain),
    ];
    kinds.map(kind).to_vec()
}
