//! The table's rows under one snapshot, sorted by partition and key: read once, gone
//! through once for each replica. What exceeds `maintenance_work_mem` goes to temporary
//! files.

use super::Subject;
use super::row::RowReader;
use crate::scan::key_lookup::Utf8Session;
use cluster_core::map::HashRange;
use cluster_core::row_key::RowKey;
use cluster_core::verify::RowDigest;
use pgrx::pg_sys;
use std::ffi::c_int;

/// `<` of `int8` and of `bytea`, which compares as row keys do (pg_operator.dat).
const INT8_LESS: pg_sys::Oid = pg_sys::Oid::from_u32(412);
const BYTEA_LESS: pg_sys::Oid = pg_sys::Oid::from_u32(1957);
const DIGEST_BYTES: usize = 16;

pub struct SortedHeap {
    sort: *mut pg_sys::Tuplesortstate,
    slot: *mut pg_sys::TupleTableSlot,
    /// Rows of each partition.
    counts: Vec<u64>,
    /// The partition that is gone through, and how many of its rows are left.
    partition: usize,
    left: u64,
}

impl SortedHeap {
    /// Reads the whole table. Partitions are given by their ranges, ascending.
    ///
    /// # Safety
    /// The subject is open, in a transaction of isolation level READ COMMITTED.
    pub unsafe fn read(subject: &Subject, ranges: &[HashRange]) -> Self {
        let description = pg_sys::CreateTemplateTupleDesc(3);
        let define = |number, kind| {
            pg_sys::TupleDescInitEntry(description, number, std::ptr::null(), kind, -1, 0);
        };
        define(1, pg_sys::INT8OID);
        define(2, pg_sys::BYTEAOID);
        define(3, pg_sys::BYTEAOID);
        let mut columns = [1i16, 2];
        let mut operators = [INT8_LESS, BYTEA_LESS];
        let mut collations = [pg_sys::InvalidOid; 2];
        let mut nulls_first = [false; 2];
        let sort = pg_sys::tuplesort_begin_heap(
            description,
            columns.len() as c_int,
            columns.as_mut_ptr(),
            operators.as_mut_ptr(),
            collations.as_mut_ptr(),
            nulls_first.as_mut_ptr(),
            pg_sys::maintenance_work_mem,
            std::ptr::null_mut(),
            pg_sys::TUPLESORT_RANDOMACCESS as c_int,
        );
        let input = pg_sys::MakeSingleTupleTableSlot(description, &pg_sys::TTSOpsVirtual);
        let counts = fill(subject, ranges, sort, input);
        pg_sys::ExecDropSingleTupleTableSlot(input);
        pg_sys::tuplesort_performsort(sort);
        Self {
            sort,
            slot: pg_sys::MakeSingleTupleTableSlot(description, &pg_sys::TTSOpsMinimalTuple),
            counts,
            partition: 0,
            left: 0,
        }
    }

    /// Goes to a partition; the one before has been left.
    pub unsafe fn enter(&mut self, partition: usize) {
        self.partition = partition;
        self.left = self.rows();
        pg_sys::tuplesort_markpos(self.sort);
    }

    /// Back to the partition's first row.
    pub unsafe fn rewind(&mut self) {
        self.left = self.rows();
        pg_sys::tuplesort_restorepos(self.sort);
    }

    /// To the first row behind the partition.
    pub unsafe fn leave(&mut self) {
        while self.next().is_some() {}
    }

    /// Of the partition.
    pub fn rows(&self) -> u64 {
        self.counts[self.partition]
    }

    /// The partition's next row by key.
    pub unsafe fn next(&mut self) -> Option<(RowKey, RowDigest)> {
        if self.left == 0 {
            return None;
        }
        pgrx::check_for_interrupts!();
        self.left -= 1;
        let none = std::ptr::null_mut();
        if !pg_sys::tuplesort_gettupleslot(self.sort, true, false, self.slot, none) {
            pgrx::error!("the sorted table ends {} rows too early", self.left + 1);
        }
        let column = |number| {
            let mut is_null = false;
            let datum = pg_sys::slot_getattr(self.slot, number, &mut is_null);
            pgrx::varlena::varlena_to_byte_slice(datum.cast_mut_ptr())
        };
        let digest = <[u8; DIGEST_BYTES]>::try_from(column(3));
        match (RowKey::from_bytes(column(2)), digest) {
            (Ok(key), Ok(digest)) => Some((key, RowDigest::from_bytes(digest))),
            _ => pgrx::error!("the sorted table is damaged"),
        }
    }

    pub unsafe fn close(self) {
        pg_sys::ExecDropSingleTupleTableSlot(self.slot);
        pg_sys::tuplesort_end(self.sort);
    }
}

/// Sorts in what the newest snapshot shows; answers how many rows each partition has.
unsafe fn fill(
    subject: &Subject,
    ranges: &[HashRange],
    sort: *mut pg_sys::Tuplesortstate,
    input: *mut pg_sys::TupleTableSlot,
) -> Vec<u64> {
    let mut counts = vec![0; ranges.len()];
    let reader = RowReader::new(subject);
    let utf8 = Utf8Session::begin();
    let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
    let none = std::ptr::null_mut();
    let scan = pg_sys::table_beginscan(subject.table, snapshot, 0, none);
    let slot = pg_sys::table_slot_create(subject.table, none.cast());
    let forward = pg_sys::ScanDirection::ForwardScanDirection;
    while pg_sys::table_scan_getnextslot(scan, forward, slot) {
        pgrx::check_for_interrupts!();
        let (key, Some(digest)) = reader.read(slot) else {
            continue;
        };
        let hash = key.placement_hash();
        let partition = ranges.partition_point(|range| range.hi < hash);
        counts[partition] += 1;
        put(sort, input, partition, &key, digest);
    }
    pg_sys::ExecDropSingleTupleTableSlot(slot);
    pg_sys::table_endscan(scan);
    pg_sys::UnregisterSnapshot(snapshot);
    drop(utf8);
    reader.close();
    counts
}

unsafe fn put(
    sort: *mut pg_sys::Tuplesortstate,
    slot: *mut pg_sys::TupleTableSlot,
    partition: usize,
    key: &RowKey,
    digest: RowDigest,
) {
    let key = pgrx::rust_byte_slice_to_bytea(key.as_bytes());
    let digest = pgrx::rust_byte_slice_to_bytea(&digest.to_bytes());
    let (key, digest) = (key.into_pg(), digest.into_pg());
    pg_sys::ExecClearTuple(slot);
    *(*slot).tts_values = pg_sys::Datum::from(partition as i64);
    *(*slot).tts_values.add(1) = pg_sys::Datum::from(key);
    *(*slot).tts_values.add(2) = pg_sys::Datum::from(digest);
    for column in 0..3 {
        *(*slot).tts_isnull.add(column) = false;
    }
    pg_sys::ExecStoreVirtualTuple(slot);
    pg_sys::tuplesort_puttupleslot(sort, slot);
    pg_sys::pfree(key.cast());
    pg_sys::pfree(digest.cast());
}
