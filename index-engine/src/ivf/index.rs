//! The inverted lists of one partition: vectors, their life, and the work on them.
//!
//! A vector is put into the list of its nearest centroid and found from the moment
//! `insert` returns. Before there are rows enough to train on there is one list of
//! everything, scanned exactly. `train` makes lists anew when that is due; meanwhile
//! searches and inserts go on with the old ones, which open cursors keep to the end.
//!
//! Ids are dense, ascending and never reused. What a removed vector takes is given
//! back when lists are made anew: for that time there are two copies of the vectors.
//!
//! Searches take no lock that is held for longer than it takes to copy a pointer.
//! Inserts go one at a time, training runs on as many threads as call it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};

use super::centroids::Geometry;
use super::cursor::IvfCursor;
use super::drift::{Due, Now, Trained, due};
use super::lists::{Fit, Lists};
use super::training::{Claim, Training};
use super::{LISTS_RANGE, lists_for};
use crate::distance::{Lane, Scorer};
use crate::life::Lives;
use crate::params::{Element, IndexError, IndexParams, Metric, VECTORS_MAX, in_range};
use crate::partition_index::VectorId;
use crate::vector::Vector;

/// Of vectors of floats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IvfParams {
    pub metric: Metric,
    pub dimensions: usize,
    /// How many lists; `None` for the root of the rows, see [`lists_for`].
    pub lists: Option<usize>,
}

pub struct IvfIndex {
    params: IvfParams,
    /// What a vector is checked by.
    vectors: IndexParams,
    scorer: Scorer,
    lives: Arc<Lives>,
    /// Vectors that searches may see: the ids below.
    published: AtomicU32,
    current: RwLock<Current>,
    training: Mutex<Option<Training>>,
    writer: Mutex<()>,
}

#[derive(Clone)]
struct Current {
    lists: Arc<Lists>,
    /// `None` of the one list of everything.
    trained: Option<Trained>,
    /// Of the rows that were there at training.
    fit: Fit,
}

impl IvfIndex {
    pub fn new(params: IvfParams) -> Result<Self, IndexError> {
        let vectors = IndexParams {
            metric: params.metric,
            dimensions: params.dimensions,
            element: Element::F32,
            ..IndexParams::default()
        };
        vectors.check()?;
        if let Some(lists) = params.lists {
            in_range("lists", lists, &LISTS_RANGE)?;
        }
        let lists = Lists::new(width(&params), None);
        Ok(Self {
            scorer: Scorer::new(params.metric, Element::F32),
            vectors,
            lives: Arc::new(Lives::new()),
            published: AtomicU32::new(0),
            current: RwLock::new(Current {
                lists: Arc::new(lists),
                trained: None,
                fit: Fit::default(),
            }),
            training: Mutex::new(None),
            writer: Mutex::new(()),
            params,
        })
    }

    pub fn params(&self) -> &IvfParams {
        &self.params
    }

    /// Adds a vector; searches opened from now on find it.
    pub fn insert(&self, vector: &[f32]) -> Result<VectorId, IndexError> {
        let vector = Vector::F32(vector);
        vector.check(&self.vectors)?;
        let row = self.scorer.prepare(&vector);
        let lists = self.lists();
        let list = lists.nearest(&[&row])[0];
        self.put(lists, list, &row)
    }

    /// Adds a row to the list that was nearest when the lists were looked at.
    fn put(
        &self,
        mut lists: Arc<Lists>,
        mut list: u32,
        row: &[Lane],
    ) -> Result<VectorId, IndexError> {
        let _writer = self.writer.lock();
        let id = self.published.load(Ordering::Relaxed);
        if id >= VECTORS_MAX {
            return Err(IndexError::Full { limit: VECTORS_MAX });
        }
        let now = self.lists();
        if !Arc::ptr_eq(&now, &lists) {
            // Made anew since: the writer's lock holds off the next time.
            list = now.nearest(&[row])[0];
            lists = now;
        }
        self.lives.reserve(id);
        self.lives.begin(id, u64::from(id));
        lists.append(list, id, row);
        self.published.store(id + 1, Ordering::Release);
        Ok(VectorId(id))
    }

    /// Makes the vector a former version, seen only by searches whose snapshot
    /// may still see the row: `snapshot_xmin <= ended_xid`. Repeating it keeps the
    /// later xid; a removed vector stays removed.
    pub fn end(&self, id: VectorId, ended_xid: u64) {
        self.lives.end(self.known(id), ended_xid);
    }

    /// No page returns the vector any more, open cursors included.
    pub fn remove(&self, id: VectorId) {
        self.lives.remove(self.known(id));
    }

    /// Why lists should be made anew, if they should.
    pub fn due(&self) -> Option<Due> {
        let current = self.current.read().clone();
        let (rows, fit) = (current.lists.rows(), current.lists.fit());
        let since = Fit {
            rows: fit.rows - current.fit.rows,
            distance: fit.distance - current.fit.distance,
        };
        let now = Now {
            rows,
            removed: self.removed_in(rows),
            rows_since: since.rows,
            mean_distance_since: since.mean(),
            imbalance: current.lists.imbalance(),
        };
        due(current.trained, now, self.params.lists)
    }

    /// Does a part of making lists anew where that is due: about `rows_max` rows are
    /// looked at. Returns how many it was; zero means that there is nothing to do that
    /// another thread has not taken. Callable from several threads at once; `seed`
    /// decides about a training's sample and first centroids.
    pub fn train(&self, rows_max: usize, seed: u64) -> usize {
        let mut rows = 0;
        while rows < rows_max {
            let claim = {
                let mut training = self.training.lock();
                match training.as_mut() {
                    Some(training) => training.claim(),
                    None if self.due().is_some() => {
                        *training = Some(self.begin(seed));
                        continue;
                    }
                    None => return rows,
                }
            };
            match claim {
                Claim::Busy => return rows,
                Claim::Filled => self.replace(),
                Claim::Slice(slice) => {
                    rows += slice.rows();
                    let outcome = slice.run(&self.lives);
                    let mut training = self.training.lock();
                    let training = training.as_mut().expect("a slice of it is out");
                    training.hand_in(outcome);
                }
            }
        }
        rows
    }

    fn begin(&self, seed: u64) -> Training {
        let lists = self.lists();
        let rows = lists.rows();
        let alive = rows - self.removed_in(rows);
        let wanted = self.params.lists.unwrap_or_else(|| lists_for(alive));
        let geometry = match self.params.metric {
            Metric::Cosine | Metric::InnerProduct => Geometry::Spherical,
            _ => Geometry::Euclidean,
        };
        let shape = (geometry, width(&self.params));
        let wanted = super::drift::can_train(alive, wanted).then_some(wanted);
        Training::begin(lists, &self.lives, shape, wanted, seed)
    }

    /// Puts new lists in the place of the old ones, if they hold all rows.
    fn replace(&self) {
        let mut training = self.training.lock();
        // No row is appended while the lists change places.
        let writer = self.writer.lock();
        // Another thread may have been here first.
        let lists = match training.as_mut().map(|t| (t.claim(), t)) {
            Some((Claim::Filled, training)) => training.finish(&self.lives),
            Some((Claim::Slice(slice), training)) => {
                let outcome = slice.run(&self.lives);
                training.hand_in(outcome);
                None
            }
            Some((Claim::Busy, _)) | None => None,
        };
        let Some(lists) = lists else { return };
        let fit = lists.fit();
        let trained = lists.centroids.as_ref().map(|_| Trained {
            rows: fit.rows,
            mean_distance: fit.mean(),
            imbalance: lists.imbalance(),
        });
        let mut new = Current {
            lists,
            trained,
            fit,
        };
        std::mem::swap(&mut *self.current.write(), &mut new);
        // Freeing the old lists takes a while: nobody waits for it.
        let old = (new, training.take());
        drop(training);
        drop(writer);
        drop(old);
    }

    /// How many lists there are.
    pub fn lists_len(&self) -> usize {
        self.lists().len()
    }

    /// All vectors that were inserted: current, former and removed.
    pub fn total_len(&self) -> usize {
        self.published.load(Ordering::Acquire) as usize
    }

    pub fn removed_len(&self) -> usize {
        self.lives.removed_len()
    }

    /// Bytes of vectors, lists and states, and of lists in the making; what open
    /// cursors keep of earlier lists is not counted.
    pub fn memory_bytes(&self) -> usize {
        let training = self.training.lock();
        size_of::<Self>()
            + self.lists().memory_bytes()
            + self.total_len() * Lives::BYTES_PER_VECTOR
            + training.as_ref().map_or(0, Training::memory_bytes)
    }

    /// Opens a search over the vectors inserted so far. The first page scans the
    /// `probes` lists nearest to the query; more finds better and costs more.
    /// `snapshot_xmin = u64::MAX` sees current versions only. `exact` ranks every
    /// visible row that may be a hit, whatever its list.
    pub fn cursor(
        &self,
        query: &[f32],
        probes: usize,
        snapshot_xmin: u64,
        exact: bool,
    ) -> Result<IvfCursor, IndexError> {
        let query = Vector::F32(query);
        query.check(&self.vectors)?;
        in_range("probes", probes, &LISTS_RANGE)?;
        // In this order: whatever is published is in the lists that are current then
        // or later.
        let upto = self.published.load(Ordering::Acquire);
        let lists = self.lists();
        let target = self.scorer.prepare(&query);
        let rows = super::cursor::Rows {
            lists,
            lives: self.lives.clone(),
            scorer: self.scorer,
            metric: self.params.metric,
            upto,
            snapshot_xmin,
        };
        Ok(IvfCursor::new(rows, target, probes, exact))
    }

    fn lists(&self) -> Arc<Lists> {
        self.current.read().lists.clone()
    }

    /// Removed vectors among so many rows of the lists: the others have been left behind.
    fn removed_in(&self, rows: usize) -> usize {
        let left_behind = self.total_len().saturating_sub(rows);
        self.removed_len().saturating_sub(left_behind).min(rows)
    }

    fn known(&self, id: VectorId) -> u32 {
        let len = self.published.load(Ordering::Acquire);
        assert!(id.0 < len, "vector {} of {len} does not exist", id.0);
        id.0
    }
}

/// Lanes of a vector.
fn width(params: &IvfParams) -> usize {
    params.dimensions.div_ceil(Lane::WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_not_put_into_lists_that_have_been_replaced() {
        let params = IvfParams {
            metric: Metric::L2,
            dimensions: 2,
            lists: None,
        };
        let index = IvfIndex::new(params).unwrap();
        for i in 0..1_500 {
            index.insert(&[i as f32, 1.0]).unwrap();
        }
        let row = Lane::pack(&[700.25, 1.0]);
        let before = index.lists();
        let list = before.nearest(&[&row])[0];
        while index.train(100, 1) > 0 {}
        let id = index.put(before, list, &row).unwrap();
        let mut cursor = index.cursor(&[700.25, 1.0], 1, u64::MAX, false).unwrap();
        assert_eq!(cursor.next_page(1).hits, [(id, 0.0)]);
    }
}
