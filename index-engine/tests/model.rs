//! Random histories against a plain list: what a cursor must and may return.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use index_engine::{
    CodeBits, Cursor, IndexParams, Metric, PartitionIndex, Representation, VectorId,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Few distinct values: equal and zero vectors are common.
    Insert(u8, u8),
    End(usize, u64),
    Remove(usize),
    Fold(usize),
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
        2 => (1usize..30).prop_map(Step::Fold),
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
    xmin: u64,
    /// Ids that existed when it was opened.
    upto: usize,
    returned: HashSet<u32>,
}

impl Open {
    fn page(&mut self, index: &PartitionIndex, rows: &[Row], wanted: usize) -> bool {
        let page = self.cursor.next_page(index, wanted);
        for (VectorId(id), _) in &page.hits {
            assert!((*id as usize) < self.upto, "{id} is newer than the cursor");
            assert!(rows[*id as usize].visible(self.xmin), "{id} is not visible");
            assert!(self.returned.insert(*id), "{id} came twice");
        }
        assert!(page.exhausted || page.hits.len() == wanted);
        if page.exhausted {
            for (id, row) in rows[..self.upto].iter().enumerate() {
                let came = self.returned.contains(&(id as u32));
                assert!(came || !row.visible(self.xmin), "{id} is missing");
            }
        }
        page.exhausted
    }
}

fn run(metric: Metric, dimensions: usize, representation: Representation, steps: Vec<Step>) {
    let vector = |x: f32, y: f32| {
        let mut vector = vec![0.0; dimensions];
        (vector[0], vector[1]) = (x, y);
        vector
    };
    let params = IndexParams {
        metric,
        dimensions,
        m: 2,
        ef_construction: 4,
        representation,
        ..IndexParams::default()
    };
    let index = PartitionIndex::new(params).unwrap();
    let (mut rows, mut open): (Vec<Row>, Vec<Open>) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Insert(x, y) => {
                let hash = rows.len() as u64;
                let id = index
                    .insert(&vector(f32::from(x), f32::from(y)), hash)
                    .unwrap();
                assert_eq!(id.0 as usize, rows.len());
                rows.push(Row::Current);
            }
            Step::End(pick, xid) if !rows.is_empty() => {
                let id = pick % rows.len();
                // A version ends once; a replay does not move it.
                if let Row::Ended(before) = rows[id] {
                    index.end(VectorId(id as u32), before.min(xid));
                    continue;
                }
                index.end(VectorId(id as u32), xid);
                if rows[id] == Row::Current {
                    rows[id] = Row::Ended(xid);
                }
            }
            Step::Remove(pick) if !rows.is_empty() => {
                let id = pick % rows.len();
                index.remove(VectorId(id as u32));
                rows[id] = Row::Removed;
            }
            Step::Fold(most) => {
                index.fold(most);
            }
            Step::Open { xmin, ef, exact } => open.push(Open {
                cursor: index.cursor(&vector(2.5, 1.0), ef, xmin, exact).unwrap(),
                xmin,
                upto: rows.len(),
                returned: HashSet::new(),
            }),
            Step::Page(pick, wanted) if !open.is_empty() => {
                let at = pick % open.len();
                if open[at].page(&index, &rows, wanted) {
                    open.swap_remove(at);
                }
            }
            Step::End(..) | Step::Remove(_) | Step::Page(..) => {}
        }
    }
    for mut cursor in open {
        while !cursor.page(&index, &rows, 5) {}
    }
    let removed = rows.iter().filter(|row| **row == Row::Removed).count();
    assert_eq!(
        (index.removed_len(), index.total_len()),
        (removed, rows.len())
    );
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
            (2, Representation::Compact(CodeBits::One)),
            (30, Representation::Compact(CodeBits::Eight)),
        ]),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        run(metric, dimensions, form, steps);
    }
}
