//! Making lists anew, in slices that several threads may run.
//!
//! Lloyd's iterations on a sample, then every row is put into its new list, beside
//! searches and inserts that go on with the old ones. A slice is claimed under the
//! training's lock, computed without any, and handed back under it; whoever hands in
//! the last one of an iteration takes the step to the next. What comes out depends on
//! the rows and the seed, not on how many threads took part.

use std::sync::Arc;

use super::centroids::{Centroids, Geometry};
use super::kmeans::{middles, put};
use super::lists::Lists;
use crate::distance::Lane;
use crate::life::Lives;
use crate::seeded;

/// Rows of the sample for each list at most, as in faiss (pgvector: 50).
const SAMPLE_PER_LIST: usize = 256;
/// Lloyd's iterations; faiss takes ten.
const ITERATIONS_MAX: usize = 10;
/// One in so many rows of the sample changing its list is no progress.
const SETTLED: usize = 100;
/// Rows of a slice: one reading of the centroids serves them all.
const SLICE_ROWS: usize = 64;

pub(super) struct Training {
    from: Arc<Lists>,
    geometry: Geometry,
    width: usize,
    seed: u64,
    phase: Phase,
}

enum Phase {
    Lloyd(Lloyd),
    Fill(Fill),
}

struct Lloyd {
    /// Numbers of rows in `from`.
    sample: Arc<[u32]>,
    centroids: Arc<Centroids>,
    iteration: usize,
    /// The list of each row of the sample: in the last iteration, and in this one.
    before: Vec<u32>,
    now: Vec<u32>,
    claimed: usize,
    done: usize,
}

struct Fill {
    to: Arc<Lists>,
    /// Of each old list so many rows are claimed.
    claimed: Vec<u32>,
    /// No old list before this one has unclaimed rows, when last looked at.
    list: u32,
    outstanding: usize,
}

/// What is next.
pub(super) enum Claim {
    Slice(Slice),
    /// Others compute what is left of this iteration.
    Busy,
    /// All rows are in their new lists but those that came just now.
    Filled,
}

pub(super) struct Slice {
    from: Arc<Lists>,
    work: Work,
}

enum Work {
    Assign {
        sample: Arc<[u32]>,
        centroids: Arc<Centroids>,
        begin: usize,
        end: usize,
    },
    Copy {
        to: Arc<Lists>,
        list: u32,
        begin: u32,
        end: u32,
    },
}

pub(super) enum Outcome {
    Assigned { begin: usize, lists: Vec<u32> },
    Copied,
}

impl Training {
    /// For so many lists; `None` for the one list of everything.
    pub(super) fn begin(
        from: Arc<Lists>,
        lives: &Lives,
        (geometry, width): (Geometry, usize),
        lists: Option<usize>,
        mut seed: u64,
    ) -> Self {
        let phase = match lists {
            None => Phase::Fill(Fill::new(&from, Lists::new(width, None))),
            Some(lists) => {
                let living = living(&from, lives);
                let (count, wanted) = (living.len(), lists * SAMPLE_PER_LIST);
                let sample = seeded::sample(&mut seed, living.into_iter(), count, wanted);
                let first = seeded::sample(&mut seed, sample.iter(), sample.len(), lists);
                let mut points = vec![Lane([0.0; Lane::WIDTH]); lists * width];
                for (list, number) in first.into_iter().enumerate() {
                    put(geometry, &mut points, list, from.vector(*number));
                }
                let centroids = Centroids::new(geometry, width, points.into());
                Phase::Lloyd(Lloyd {
                    centroids: Arc::new(centroids),
                    iteration: 0,
                    before: vec![u32::MAX; sample.len()],
                    now: vec![0; sample.len()],
                    sample: sample.into(),
                    claimed: 0,
                    done: 0,
                })
            }
        };
        Self {
            from,
            geometry,
            width,
            seed,
            phase,
        }
    }

    pub(super) fn claim(&mut self) -> Claim {
        let work = match &mut self.phase {
            Phase::Lloyd(lloyd) => lloyd.claim(),
            Phase::Fill(fill) => match fill.claim(&self.from) {
                None if fill.outstanding == 0 => return Claim::Filled,
                work => work,
            },
        };
        let from = self.from.clone();
        work.map_or(Claim::Busy, |work| Claim::Slice(Slice { from, work }))
    }

    pub(super) fn hand_in(&mut self, outcome: Outcome) {
        match (&mut self.phase, outcome) {
            (Phase::Lloyd(lloyd), Outcome::Assigned { begin, lists }) => {
                lloyd.now[begin..][..lists.len()].copy_from_slice(&lists);
                lloyd.done += lists.len();
                if lloyd.done == lloyd.sample.len() {
                    self.iterate();
                }
            }
            (Phase::Fill(fill), Outcome::Copied) => fill.outstanding -= 1,
            _ => unreachable!("an iteration ends when all its slices are handed in"),
        }
    }

    /// Every row of the sample has its nearest centroid.
    fn iterate(&mut self) {
        let Phase::Lloyd(lloyd) = &mut self.phase else {
            return;
        };
        let pairs = lloyd.before.iter().zip(&lloyd.now);
        let moved = pairs.filter(|(before, now)| before != now).count();
        let is_settled = moved * SETTLED <= lloyd.sample.len();
        if is_settled || lloyd.iteration == ITERATIONS_MAX {
            let lists = Lists::new(self.width, Some(lloyd.centroids.clone()));
            self.phase = Phase::Fill(Fill::new(&self.from, lists));
            return;
        }
        let vectors = lloyd.sample.iter().map(|number| self.from.vector(*number));
        let vectors: Vec<&[Lane]> = vectors.collect();
        let count = lloyd.centroids.len();
        let points = middles(
            self.geometry,
            self.width,
            &vectors,
            &lloyd.now,
            count,
            &mut self.seed,
        );
        lloyd.centroids = Arc::new(Centroids::new(self.geometry, self.width, points));
        std::mem::swap(&mut lloyd.before, &mut lloyd.now);
        lloyd.iteration += 1;
        (lloyd.claimed, lloyd.done) = (0, 0);
    }

    /// The new lists with all rows, if no more than a slice is left to copy, which it
    /// does. The caller keeps rows from being appended, and no slice is out.
    pub(super) fn finish(&mut self, lives: &Lives) -> Option<Arc<Lists>> {
        let Phase::Fill(fill) = &mut self.phase else {
            return None;
        };
        assert_eq!(fill.outstanding, 0, "slices that are not handed in");
        let claimed = fill.claimed.iter().map(|rows| *rows as usize);
        if self.from.rows() - claimed.sum::<usize>() > SLICE_ROWS {
            return None;
        }
        while let Some(work) = fill.claim(&self.from) {
            let from = self.from.clone();
            Slice { from, work }.run(lives);
            fill.outstanding -= 1;
        }
        Some(fill.to.clone())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match &self.phase {
            Phase::Lloyd(lloyd) => {
                lloyd.sample.len() * 3 * size_of::<u32>() + lloyd.centroids.memory_bytes()
            }
            Phase::Fill(fill) => fill.to.memory_bytes() + fill.claimed.len() * size_of::<u32>(),
        }
    }
}

/// The numbers of the rows that are not removed.
fn living(lists: &Lists, lives: &Lives) -> Vec<u32> {
    let mut living = Vec::with_capacity(lists.rows());
    for list in 0..lists.len() as u32 {
        lists.scan(list, 0, lists.rows_of(list), |number, id, _| {
            if !lives.is_removed(id) {
                living.push(number);
            }
        });
    }
    living
}

impl Lloyd {
    fn claim(&mut self) -> Option<Work> {
        let begin = self.claimed;
        let end = (begin + SLICE_ROWS).min(self.sample.len());
        self.claimed = end;
        (begin < end).then(|| Work::Assign {
            sample: self.sample.clone(),
            centroids: self.centroids.clone(),
            begin,
            end,
        })
    }
}

impl Fill {
    fn new(from: &Lists, to: Lists) -> Self {
        Self {
            to: Arc::new(to),
            claimed: vec![0; from.len()],
            list: 0,
            outstanding: 0,
        }
    }

    fn claim(&mut self, from: &Lists) -> Option<Work> {
        let lists = self.claimed.len() as u32;
        // Once around: rows come to lists that were done with.
        for _ in 0..lists {
            let list = self.list;
            let begin = self.claimed[list as usize];
            let end = from.rows_of(list).min(begin + SLICE_ROWS as u32);
            if begin < end {
                self.claimed[list as usize] = end;
                self.outstanding += 1;
                let to = self.to.clone();
                return Some(Work::Copy {
                    to,
                    list,
                    begin,
                    end,
                });
            }
            self.list = (list + 1) % lists;
        }
        None
    }
}

impl Slice {
    pub(super) fn rows(&self) -> usize {
        match self.work {
            Work::Assign { begin, end, .. } => end - begin,
            Work::Copy { begin, end, .. } => (end - begin) as usize,
        }
    }

    pub(super) fn run(self, lives: &Lives) -> Outcome {
        let from = self.from;
        match self.work {
            Work::Assign {
                sample,
                centroids,
                begin,
                end,
            } => {
                let rows = sample[begin..end].iter().map(|number| from.vector(*number));
                let lists = centroids.nearest(&rows.collect::<Vec<_>>());
                Outcome::Assigned { begin, lists }
            }
            Work::Copy {
                to,
                list,
                begin,
                end,
            } => {
                // A removed row is nobody's result: it is left behind.
                let (mut ids, mut rows) = (Vec::new(), Vec::new());
                from.scan(list, begin, end, |_, id, row| {
                    if !lives.is_removed(id) {
                        ids.push(id);
                        rows.push(row);
                    }
                });
                for ((id, row), list) in ids.iter().zip(&rows).zip(to.nearest(&rows)) {
                    to.append(list, *id, row);
                }
                Outcome::Copied
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u32) -> [Lane; 1] {
        [Lane([id as f32; Lane::WIDTH])]
    }

    /// Runs what can be claimed.
    fn run(training: &mut Training, lives: &Lives) {
        loop {
            match training.claim() {
                Claim::Slice(slice) => training.hand_in(slice.run(lives)),
                Claim::Filled => return,
                Claim::Busy => panic!("nobody else computes"),
            }
        }
    }

    #[test]
    fn rows_that_come_while_lists_are_made_are_in_the_new_ones() {
        let (lives, from) = (Lives::new(), Arc::new(Lists::new(1, None)));
        let add = |ids: std::ops::Range<u32>| {
            for id in ids {
                lives.reserve(id);
                lives.begin(id, u64::from(id));
                from.append(0, id, &row(id));
            }
        };
        add(0..500);
        let shape = (Geometry::Euclidean, 1);
        let mut training = Training::begin(from.clone(), &lives, shape, Some(7), 1);
        assert!(training.finish(&lives).is_none(), "no lists yet");
        add(500..900);
        run(&mut training, &lives);
        // More than a slice: not while inserts are held off.
        add(900..1_000);
        assert!(training.finish(&lives).is_none());
        run(&mut training, &lives);
        add(1_000..1_010);
        lives.remove(1_003);
        let to = training.finish(&lives).expect("only ten rows are left");
        let mut ids = Vec::new();
        for list in 0..7 {
            to.scan(list, 0, to.rows_of(list), |_, id, lanes| {
                assert_eq!(lanes, row(id));
                assert_eq!(to.nearest(&[lanes]), [list]);
                ids.push(id);
            });
        }
        ids.sort_unstable();
        let expected = (0..1_010).filter(|id| *id != 1_003);
        assert!(ids.into_iter().eq(expected));
    }
}
