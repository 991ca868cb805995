//! The index of one partition: vectors, their life, and the work on them.
//!
//! A vector enters the *tail*, where every search scans it exactly, so it is
//! found from the moment `insert` returns. `fold` links it into the graph. A removed
//! vector stays as a waypoint until `repair` has taken it out of the graph.
//!
//! An id is a slot. Ids are dense, and a new vector gets a free slot if there is one, else
//! the next number. A slot is free only once its vector was removed, repaired away, and
//! every cursor is dropped that was open meanwhile. So an id that a cursor returns means
//! the same vector for as long as that cursor is open, and an id that was not removed
//! means the same vector for ever; a removed one must not be named to the index again.
//!
//! Searches take no lock while they read and never wait for a writer. Inserts go
//! one at a time, folding runs on as many threads as call it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{self, Ordering};

use crate::accesses::{Accesses, BLOCK_VECTORS};
use crate::cursor::Cursor;
use crate::distance::Lane;
use crate::filter::{ColumnType, Columns, Filter, Value};
use crate::footprint::Footprint;
use crate::hnsw::{Hnsw, level_of};
use crate::life::Lives;
use crate::memory::{Advice, Backing};
use crate::params::{EF_MAX, Effort, IndexError, IndexParams, VECTORS_MAX, in_range};
use crate::readers::{Moment, Readers};
use crate::recode::Recoding;
use crate::repair::Repair;
use crate::sync::{Mutex, RwLock};
use crate::tail::Tail;
use crate::vector::Vector;

/// A vector within one index; once it is removed, another one some day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VectorId(pub u32);

pub struct PartitionIndex {
    params: IndexParams,
    pub(crate) hnsw: Hnsw,
    pub(crate) lives: Lives,
    pub(crate) columns: Columns,
    pub(crate) tail: Tail,
    /// Open cursors, and threads that link.
    pub(crate) searches: Arc<Readers>,
    pub(crate) linkers: Arc<Readers>,
    pub(crate) repair: Repair,
    pub(crate) recoding: Recoding,
    pub(crate) writer: Mutex<()>,
    /// Shared by whoever changes links, step by step; a checkpoint takes it alone for
    /// the moment at which it begins.
    pub(crate) linking: RwLock<()>,
    /// One more holder for every checkpoint that is not written yet: until it is, no
    /// vector changes that was there when it began.
    pub(crate) checkpoints: Arc<()>,
}

impl PartitionIndex {
    pub fn new(params: IndexParams) -> Result<Self, IndexError> {
        Self::made(params, None, &[])
    }

    /// The same with the original vectors in memory that `backing` hands in. It is not
    /// counted in `memory_bytes`.
    pub fn with_backing(
        params: IndexParams,
        backing: Arc<dyn Backing>,
    ) -> Result<Self, IndexError> {
        Self::made(params, Some(backing), &[])
    }

    /// The same with attributes beside the vectors, for filtered searches.
    pub fn with_columns(
        params: IndexParams,
        columns: &[ColumnType],
        backing: Option<Arc<dyn Backing>>,
    ) -> Result<Self, IndexError> {
        Self::made(params, backing, columns)
    }

    pub(crate) fn made(
        params: IndexParams,
        backing: Option<Arc<dyn Backing>>,
        columns: &[ColumnType],
    ) -> Result<Self, IndexError> {
        params.check()?;
        Ok(Self {
            hnsw: Hnsw::new(&params, backing),
            lives: Lives::new(),
            columns: Columns::new(columns)?,
            tail: Tail::default(),
            searches: Arc::default(),
            linkers: Arc::default(),
            repair: Repair::default(),
            recoding: Recoding::default(),
            writer: Mutex::new(()),
            linking: RwLock::new(()),
            checkpoints: Arc::default(),
            params,
        })
    }

    pub fn params(&self) -> &IndexParams {
        &self.params
    }

    /// The types of the attributes.
    pub fn columns(&self) -> &[ColumnType] {
        self.columns.types()
    }

    /// Adds a vector to the tail; searches opened from now on find it.
    /// `level_hash` decides its level in the graph: a hash of the row's key,
    /// seeded otherwise than the one that routes rows to partitions.
    pub fn insert<'a>(
        &self,
        vector: impl Into<Vector<'a>>,
        level_hash: u64,
    ) -> Result<VectorId, IndexError> {
        self.insert_named(vector, level_hash, |_| {})
    }

    /// The same; `name` learns the id before any search can return it.
    pub fn insert_named<'a>(
        &self,
        vector: impl Into<Vector<'a>>,
        level_hash: u64,
        name: impl FnOnce(VectorId),
    ) -> Result<VectorId, IndexError> {
        let vector = vector.into();
        vector.check(&self.params)?;
        self.insert_prepared(&self.hnsw.prepare(&vector), level_hash, &[], name)
    }

    /// The same with an attribute a column. `insert` and `insert_named` leave them NULL.
    pub fn insert_with<'a>(
        &self,
        vector: impl Into<Vector<'a>>,
        level_hash: u64,
        attributes: &[Value],
        name: impl FnOnce(VectorId),
    ) -> Result<VectorId, IndexError> {
        let vector = vector.into();
        vector.check(&self.params)?;
        self.columns.check_row(attributes)?;
        self.insert_prepared(&self.hnsw.prepare(&vector), level_hash, attributes, name)
    }

    /// Adds a vector of another index of the same parameters and columns, bit for bit as
    /// it is compared there, with its attributes. The id must be that of a vector that was
    /// not removed when this was called.
    ///
    /// # Panics
    /// If the parameters or columns differ, or the other index has no such vector.
    pub fn insert_from(
        &self,
        other: &PartitionIndex,
        id: VectorId,
        level_hash: u64,
    ) -> Result<VectorId, IndexError> {
        assert_eq!(self.params, other.params, "indexes of two kinds");
        assert_eq!(self.columns(), other.columns(), "indexes of two kinds");
        // If it is removed meanwhile, nothing moves into its slot while it is read.
        let _reader = other.searches.enter();
        let attributes = other.attributes(id);
        self.insert_prepared(
            other.hnsw.vectors.get(id.0),
            level_hash,
            &attributes,
            |_| {},
        )
    }

    fn insert_prepared(
        &self,
        prepared: &[Lane],
        level_hash: u64,
        attributes: &[Value],
        name: impl FnOnce(VectorId),
    ) -> Result<VectorId, IndexError> {
        let level = level_of(level_hash, self.params.m);
        let _writer = self.writer.lock();
        let id = match self.take_free_slot() {
            Some(slot) => self.move_in(slot, prepared, level)?,
            None => self.append(prepared, level)?,
        };
        self.columns.write(id, attributes);
        name(VectorId(id));
        self.lives.begin(id, self.tail.next());
        // From here on a search that opens finds it.
        self.tail.push(id);
        Ok(VectorId(id))
    }

    /// Writes a vector into a new slot. The writer's lock is held.
    fn append(&self, prepared: &[Lane], level: u8) -> Result<u32, IndexError> {
        if self.hnsw.vectors.len() >= VECTORS_MAX {
            return Err(IndexError::Full { limit: VECTORS_MAX });
        }
        let reserve = |slot| {
            self.lives.reserve(slot);
            self.columns.reserve(slot);
            self.hnsw.reserve(slot, level, prepared);
        };
        // SAFETY: the writer's lock is held.
        #[allow(unsafe_code)]
        unsafe {
            self.hnsw.vectors.append(prepared, reserve)
        }
    }

    /// The writer's lock is held.
    fn take_free_slot(&self) -> Option<u32> {
        match self.is_being_written() {
            true => None,
            false => self.repair.take_free(|slot| self.recoding.is_reading(slot)),
        }
    }

    /// Writes a vector into a free slot. The writer's lock is held.
    fn move_in(&self, slot: u32, prepared: &[Lane], level: u8) -> Result<u32, IndexError> {
        // SAFETY: nothing has led to the slot since before the oldest reader came, its
        // vector is removed until `begin`, and the writer's lock is held.
        #[allow(unsafe_code)]
        let written = unsafe { self.hnsw.vectors.rewrite(slot, prepared) };
        if let Err(error) = written {
            self.repair.give_back(slot);
            return Err(error);
        }
        self.hnsw.reserve(slot, level, prepared);
        Ok(slot)
    }

    /// Is a checkpoint being written? Whoever holds the lock of writers or of linking
    /// finds none that begins meanwhile.
    pub(crate) fn is_being_written(&self) -> bool {
        let is_held = Arc::strong_count(&self.checkpoints) > 1;
        // The count is read relaxed, and whoever finds it let go writes what was read. This
        // pairs with the release by which an `Arc` that is dropped lowers the count. No model
        // sees the pair: count and fence are std's.
        atomic::fence(Ordering::Acquire);
        is_held
    }

    /// Makes the vector a former version, seen only by searches whose snapshot
    /// may still see the row: `snapshot_xmin <= ended_xid`. Repeating it keeps the
    /// later xid; a removed vector stays removed.
    pub fn end(&self, id: VectorId, ended_xid: u64) {
        self.lives.end(self.known(id), ended_xid);
    }

    /// No page returns the vector any more, open cursors included. The id is to be
    /// forgotten: it will be another vector's.
    pub fn remove(&self, id: VectorId) {
        let slot = self.known(id);
        let was_there = self.columns.forget(slot, || self.lives.remove(slot));
        if was_there {
            self.repair.remove(slot);
        }
    }

    /// Links up to `rows_max` vectors of the tail into the graph and returns how
    /// many it took. Zero means that nothing is left that another thread has not
    /// taken. Callable from several threads at once.
    pub fn fold(&self, rows_max: usize) -> usize {
        let mut folded = 0;
        while folded < rows_max {
            // From claim to finish: a checkpoint finds nothing half linked.
            let _linking = self.linking.read();
            let Some((birth, id)) = self.tail.claim() else {
                break;
            };
            // A removed vector is nobody's result and nobody's waypoint yet.
            if !self.lives.is_removed(id) {
                if self.hnsw.wants_origin() {
                    let _writer = self.writer.lock();
                    self.hnsw.settle_origin();
                }
                let _linker = self.linkers.enter();
                let is_entry = self.hnsw.link(id);
                if is_entry && !self.is_being_written() {
                    self.hnsw.turn_tree_to_entry();
                }
            }
            self.tail.finish(birth);
            folded += 1;
        }
        folded
    }

    /// Vectors that searches still scan exactly.
    pub fn tail_len(&self) -> usize {
        // In this order: what is linked was born.
        let linked = self.tail.linked();
        (self.tail.next() - linked) as usize
    }

    /// All vectors held: current, former and removed.
    pub fn total_len(&self) -> usize {
        self.slots_len().saturating_sub(self.repair.free_len())
    }

    /// Slots that memory is used for: of the vectors held, and free ones.
    pub fn slots_len(&self) -> usize {
        self.hnsw.vectors.len() as usize
    }

    /// Removed vectors, which cost memory and detours until they are repaired away.
    pub fn removed_len(&self) -> usize {
        self.lives.removed_len()
    }

    /// How often searches came by the vectors `BLOCK_VECTORS * block` and those behind:
    /// zeros where there are none.
    pub fn accesses(&self, block: u32) -> Accesses {
        match u64::from(block) * u64::from(BLOCK_VECTORS) < self.slots_len() as u64 {
            true => self.hnsw.accesses.of(block),
            false => Accesses::default(),
        }
    }

    /// Tells the memory that was handed in about the original vectors of these ids, as far as
    /// they are there. Without such memory nothing happens.
    pub fn advise(&self, ids: Range<u32>, advice: Advice) {
        self.hnsw.vectors.advise(ids, advice);
    }

    /// Bytes of the engine's own memory; open cursors not counted.
    pub fn memory_bytes(&self) -> usize {
        self.footprint().total()
    }

    /// The same by part.
    pub fn footprint(&self) -> Footprint {
        let rows = self.hnsw.vectors.len();
        let hnsw = self.hnsw.footprint();
        Footprint {
            lives: self.lives.memory().resident_bytes(rows),
            attributes: self.columns.memory_bytes(rows),
            codes: hnsw.codes + self.codes_bytes_left(rows),
            other: hnsw.other + size_of::<Self>(),
            ..hnsw
        }
    }

    /// Opens a search over the vectors inserted so far. `ef` rows are kept in
    /// sight beyond what a page returns: more finds better and costs more.
    /// `snapshot_xmin = u64::MAX` sees current versions only. `effort` may be a `bool`: is
    /// the search exact?
    pub fn cursor<'a>(
        &self,
        query: impl Into<Vector<'a>>,
        ef: usize,
        snapshot_xmin: u64,
        effort: impl Into<Effort>,
    ) -> Result<Cursor, IndexError> {
        let query = query.into();
        query.check(&self.params)?;
        in_range("ef", ef, &(1..=EF_MAX))?;
        // Entered first: whatever is seen from here on is kept for it.
        let reader = self.searches.enter();
        let tail = self.tail.part();
        let query = self.hnsw.prepare(&query);
        Ok(Cursor::new(
            &self.hnsw,
            query,
            (ef, effort.into()),
            snapshot_xmin,
            tail,
            reader,
        ))
    }

    /// Opens a search for the rows of which the filter is true; otherwise as `cursor`. To
    /// learn which rows those are it waits for writers in passing, as long as it takes to note a
    /// row's attributes.
    pub fn cursor_where<'a>(
        &self,
        query: impl Into<Vector<'a>>,
        ef: usize,
        snapshot_xmin: u64,
        effort: impl Into<Effort>,
        filter: &Filter,
    ) -> Result<Cursor, IndexError> {
        let mut cursor = self.cursor(query, ef, snapshot_xmin, effort)?;
        // After the cursor knows which rows are its own: the filter knows their values.
        let predicate = self.columns.predicate(filter)?;
        if !predicate.is_always_true() {
            cursor.restrict(self, predicate);
        }
        Ok(cursor)
    }

    /// A vector's attributes, one a column. Those of a removed vector may be NULL.
    ///
    /// # Panics
    /// If there is no such vector.
    pub fn attributes(&self, id: VectorId) -> Vec<Value> {
        self.columns.values(self.known(id))
    }

    /// After all cursors that have been opened so far.
    pub fn cursors_now(&self) -> Moment {
        self.searches.now()
    }

    /// Have all cursors been dropped that were open then?
    pub fn cursors_have_left(&self, moment: Moment) -> bool {
        self.searches.have_left(moment)
    }

    fn known(&self, id: VectorId) -> u32 {
        let len = self.hnsw.vectors.len();
        assert!(id.0 < len, "vector {} of {len} does not exist", id.0);
        id.0
    }
}
