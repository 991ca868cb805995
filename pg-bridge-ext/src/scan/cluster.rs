//! A scan that the cluster answers: pages of row keys come in, rows of the heap
//! go out.
//!
//! The cluster's distances only say where to look. A row goes out once its own
//! distance, computed from the version that the snapshot sees, is within the
//! bound of everything not yet looked up; so LIMIT 10 looks up about eleven rows.

use super::counters;
use super::key_lookup::KeyLookup;
use super::ranking::{Ranked, Ranking};
use crate::types::vector;
use crate::worker::{ScanFailure, ScanHandle, ScanPage};
use pgrx::itemptr::u64_to_item_pointer;
use pgrx::pg_sys;
use std::collections::{BinaryHeap, HashSet, VecDeque};

pub struct ClusterScan {
    table: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    column_attnum: i16,
    ranking: Ranking,
    lookup: KeyLookup,
    handle: ScanHandle,
    /// Keys not yet looked up, nearest first by the cluster's distance.
    keys: VecDeque<(Vec<u8>, f64)>,
    /// No later page has anything nearer.
    bound: f64,
    exhausted: bool,
    stale_partitions: u32,
    /// Visible rows that wait for the bound to pass them.
    waiting: BinaryHeap<Ranked>,
    seen: HashSet<u64>,
    /// Reset for every row.
    row_memory: pg_sys::MemoryContext,
}

/// What a scan is about.
pub struct Subject {
    pub table: pg_sys::Relation,
    pub snapshot: pg_sys::Snapshot,
    pub column_attnum: i16,
    pub row_memory: pg_sys::MemoryContext,
}

impl ClusterScan {
    pub fn new(
        subject: &Subject,
        ranking: Ranking,
        lookup: KeyLookup,
        handle: ScanHandle,
        first: ScanPage,
    ) -> Self {
        let mut scan = Self {
            table: subject.table,
            snapshot: subject.snapshot,
            column_attnum: subject.column_attnum,
            ranking,
            lookup,
            handle,
            keys: VecDeque::new(),
            bound: f64::NEG_INFINITY,
            exhausted: false,
            stale_partitions: 0,
            waiting: BinaryHeap::new(),
            seen: HashSet::new(),
            row_memory: subject.row_memory,
        };
        scan.take(first);
        scan
    }

    /// Adds the rows that this transaction wrote, which the cluster cannot know.
    ///
    /// # Safety
    /// In the transaction of the scan.
    pub unsafe fn merge_own_writes(&mut self, tids: Vec<u64>) {
        if tids.is_empty() {
            return;
        }
        let fetch = pg_sys::table_index_fetch_begin(self.table);
        for tid in tids {
            pgrx::check_for_interrupts!();
            if self.seen.contains(&tid) {
                continue;
            }
            let mut member = pg_sys::ItemPointerData::default();
            u64_to_item_pointer(tid, &mut member);
            let mut again = false;
            let visible = pg_sys::table_index_fetch_tuple(
                fetch,
                &mut member,
                self.snapshot,
                self.lookup.slot(),
                &mut again,
                std::ptr::null_mut(),
            );
            if visible {
                self.admit(tid);
                counters::count(|counters| counters.own_rows += 1);
            }
        }
        pg_sys::ExecClearTuple(self.lookup.slot());
        pg_sys::table_index_fetch_end(fetch);
    }

    /// Partitions that a node without a lease answered for, at most on any page.
    pub fn stale_partitions(&self) -> u32 {
        self.stale_partitions
    }

    /// Leaves out rows that a former scan returned.
    pub fn skip(&mut self, returned: HashSet<u64>) {
        self.waiting.retain(|row| !returned.contains(&row.tid));
        self.seen.extend(returned);
    }

    /// The next row, in the order that the cluster and the heap agree on.
    ///
    /// # Safety
    /// In the transaction of the scan.
    pub unsafe fn next(&mut self) -> Result<Option<Ranked>, ScanFailure> {
        loop {
            if let Some(nearest) = self.waiting.peek()
                && nearest.distance <= self.frontier()
            {
                return Ok(self.waiting.pop());
            }
            if let Some((key, _)) = self.keys.pop_front() {
                pgrx::check_for_interrupts!();
                self.look_up(&key);
            } else if self.exhausted {
                return Ok(None);
            } else {
                let page = self.handle.next_page()?;
                self.take(page);
            }
        }
    }

    /// Nothing that is still to be looked up is nearer than this.
    fn frontier(&self) -> f64 {
        let behind = if self.exhausted {
            f64::INFINITY
        } else {
            self.bound
        };
        match self.keys.front() {
            Some((_, distance)) => distance.min(behind),
            None => behind,
        }
    }

    fn take(&mut self, page: ScanPage) {
        counters::count(|counters| {
            counters.pages += 1;
            counters.partitions = counters.partitions.max(u64::from(page.stats.partitions));
            counters.tail_rows = counters.tail_rows.max(page.stats.tail_rows);
            counters.retries += u64::from(page.stats.retries);
            counters.hedges += u64::from(page.stats.hedges);
            counters.distances = counters.distances.saturating_add(page.stats.distances);
            counters.waited_ms = counters.waited_ms.saturating_add(page.stats.waited_ms);
            counters.stale_partitions = counters
                .stale_partitions
                .max(u64::from(page.stats.stale_partitions));
        });
        self.stale_partitions = self.stale_partitions.max(page.stats.stale_partitions);
        self.bound = page.bound;
        self.exhausted = page.exhausted;
        self.keys = page.rows.into();
    }

    unsafe fn look_up(&mut self, key: &[u8]) {
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::MemoryContextReset(self.row_memory);
        pg_sys::CurrentMemoryContext = self.row_memory;
        let found = self.lookup.find(key);
        pg_sys::CurrentMemoryContext = caller;
        match found {
            Some(tid) => {
                counters::count(|counters| counters.rows_fetched += 1);
                if !self.seen.contains(&tid) {
                    self.admit(tid);
                }
            }
            None => counters::count(|counters| counters.rows_invisible += 1),
        }
        // Gives the buffer back: nobody needs the tuple until the executor does.
        pg_sys::ExecClearTuple(self.lookup.slot());
    }

    /// Ranks the version in the slot. A NULL vector is in no index.
    unsafe fn admit(&mut self, tid: u64) {
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = self.row_memory;
        let mut null = false;
        let datum =
            pg_sys::slot_getattr(self.lookup.slot(), i32::from(self.column_attnum), &mut null);
        if !null {
            let distance = self.ranking.distance(vector::elements(datum));
            self.seen.insert(tid);
            self.waiting.push(Ranked::new(distance, tid));
        }
        pg_sys::MemoryContextReset(self.row_memory);
        pg_sys::CurrentMemoryContext = caller;
    }

    /// Ends the scan; what was returned, and how rows are ranked, live on in an
    /// exact scan that takes over.
    ///
    /// # Safety
    /// In the transaction of the scan.
    pub unsafe fn close(mut self) -> (Ranking, HashSet<u64>) {
        self.lookup.close();
        let mut returned = self.seen;
        for row in self.waiting {
            returned.remove(&row.tid);
        }
        (self.ranking, returned)
    }
}
