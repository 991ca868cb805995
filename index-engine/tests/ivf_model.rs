//! Random histories of inverted lists against a plain list.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

mod owned;

use index_engine::ivf::{IvfCursor, IvfIndex, IvfParams};
use index_engine::{Metric, VectorId};
use owned::distance;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Debug, Clone)]
enum Step {
    /// Many rows of few distinct values, around a place.
    Insert {
        rows: usize,
        place: u8,
    },
    End(Index, u64),
    RemoveFrom(Index, usize),
    Train(usize),
    Open {
        xmin: u64,
        probes: usize,
        exact: bool,
    },
    Page(Index, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..700, 0u8..30).prop_map(|(rows, place)| Step::Insert { rows, place }),
        3 => (any::<Index>(), 1u64..20).prop_map(|(i, x)| Step::End(i, x)),
        2 => (any::<Index>(), 1usize..900).prop_map(|(i, rows)| Step::RemoveFrom(i, rows)),
        4 => (1usize..6_000).prop_map(Step::Train),
        2 => (prop_oneof![Just(u64::MAX), 1u64..20], 1usize..9, any::<bool>())
            .prop_map(|(xmin, probes, exact)| Step::Open { xmin, probes, exact }),
        3 => (any::<Index>(), 1usize..90).prop_map(|(i, rows)| Step::Page(i, rows)),
    ]
}

const QUERY: [f64; 2] = [2.5, 1.0];

struct Row {
    vector: [f64; 2],
    /// `None` of a removed one; `u64::MAX` of a current one.
    ended: Option<u64>,
}

struct Open {
    cursor: IvfCursor,
    xmin: u64,
    upto: usize,
    returned: HashSet<u32>,
}

impl Open {
    fn page(&mut self, metric: Metric, rows: &[Row], wanted: usize) -> bool {
        let is_visible = |row: &Row| row.ended.is_some_and(|ended| self.xmin <= ended);
        let page = self.cursor.next_page(wanted);
        assert!(page.hits.windows(2).all(|w| w[0].1 <= w[1].1));
        for (VectorId(id), found) in &page.hits {
            let expected = distance(metric, &rows[*id as usize].vector, &QUERY);
            let is_right = *found == expected || (found - expected).abs() < 1e-4;
            assert!(is_right, "{id}: {found} for {expected}");
            assert!((*id as usize) < self.upto, "{id} is newer than the cursor");
            assert!(is_visible(&rows[*id as usize]), "{id} is not visible");
            assert!(self.returned.insert(*id), "{id} came twice");
        }
        assert!(page.exhausted || page.hits.len() == wanted);
        if page.exhausted {
            for (id, row) in rows[..self.upto].iter().enumerate() {
                let came = self.returned.contains(&(id as u32));
                assert!(came || !is_visible(row), "{id} is missing");
            }
        }
        page.exhausted
    }
}

fn run(metric: Metric, lists: Option<usize>, steps: Vec<Step>) {
    let params = IvfParams {
        metric,
        dimensions: 2,
        lists,
    };
    let index = IvfIndex::new(params).unwrap();
    let (mut rows, mut open): (Vec<Row>, Vec<Open>) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Insert { rows: count, place } => {
                for _ in 0..count {
                    let (x, y) = (rows.len() % 9, rows.len() % 7);
                    let vector = [(x as f32) + f32::from(place), y as f32 - 2.0];
                    assert_eq!(index.insert(&vector).unwrap().0 as usize, rows.len());
                    rows.push(Row {
                        vector: vector.map(f64::from),
                        ended: Some(u64::MAX),
                    });
                }
            }
            Step::End(pick, xid) if !rows.is_empty() => {
                let id = pick.index(rows.len());
                // A version ends once.
                if rows[id].ended == Some(u64::MAX) {
                    index.end(VectorId(id as u32), xid);
                    rows[id].ended = Some(xid);
                }
            }
            Step::RemoveFrom(pick, count) if !rows.is_empty() => {
                let first = pick.index(rows.len());
                let ids = first..(first + count).min(rows.len());
                for id in ids {
                    index.remove(VectorId(id as u32));
                    rows[id].ended = None;
                }
            }
            Step::Train(most) => {
                index.train(most, 3);
            }
            Step::Open {
                xmin,
                probes,
                exact,
            } => open.push(Open {
                cursor: index
                    .cursor(&QUERY.map(|x| x as f32), probes, xmin, exact)
                    .unwrap(),
                xmin,
                upto: rows.len(),
                returned: HashSet::new(),
            }),
            Step::Page(pick, wanted) if !open.is_empty() => {
                let at = pick.index(open.len());
                if open[at].page(metric, &rows, wanted) {
                    open.swap_remove(at);
                }
            }
            Step::End(..) | Step::RemoveFrom(..) | Step::Page(..) => {}
        }
    }
    for mut cursor in open {
        while !cursor.page(metric, &rows, 50) {}
    }
    let removed = rows.iter().filter(|row| row.ended.is_none()).count();
    assert_eq!(
        (index.removed_len(), index.total_len()),
        (removed, rows.len())
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn every_history_pages_each_visible_row_once(
        metric in prop::sample::select(vec![Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1]),
        lists in prop::sample::select(vec![None, Some(1), Some(25)]),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(metric, lists, steps);
    }
}
