//! An exact scan of the table, inside the access method: what the snapshot sees,
//! sorted by distance, within `work_mem` (more goes to temporary files).

use super::counters;
use super::ranking::{Ranked, Ranking};
use crate::error::guard;
use crate::types::vector;
use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys;
use std::collections::HashSet;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// `<` of `float8`, pg_operator's Float8LessOperator.
const FLOAT8_LESS: pg_sys::Oid = pg_sys::Oid::from_u32(672);

pub struct ExactScan {
    sort: *mut pg_sys::Tuplesortstate,
    slot: *mut pg_sys::TupleTableSlot,
    /// Rows that were returned before this scan took over.
    returned: HashSet<u64>,
}

/// The table has more visible rows than an outage may cost.
pub struct TooManyRows;

/// What the scan is of, and how far it may go.
pub struct ExactRequest {
    pub table: pg_sys::Relation,
    pub index: pg_sys::Relation,
    pub snapshot: pg_sys::Snapshot,
    pub row_memory: pg_sys::MemoryContext,
    /// Whether rows without a vector belong to the answer: only if nothing is
    /// ordered by it.
    pub with_nulls: bool,
    pub rows_max: Option<u64>,
}

struct Gathering<'a> {
    request: &'a ExactRequest,
    ranking: &'a Ranking,
    returned: &'a HashSet<u64>,
    sort: *mut pg_sys::Tuplesortstate,
    slot: *mut pg_sys::TupleTableSlot,
    rows: u64,
    too_many: bool,
}

impl ExactScan {
    /// Reads the whole table.
    ///
    /// # Safety
    /// The relations are open; the current memory context outlives the scan.
    pub unsafe fn run(
        request: &ExactRequest,
        ranking: &Ranking,
        returned: HashSet<u64>,
    ) -> Result<Self, TooManyRows> {
        let description = pg_sys::CreateTemplateTupleDesc(2);
        let define = |number, kind| {
            pg_sys::TupleDescInitEntry(description, number, std::ptr::null(), kind, -1, 0);
        };
        define(1, pg_sys::FLOAT8OID);
        define(2, pg_sys::INT8OID);
        let (mut column, mut operator) = (1i16, FLOAT8_LESS);
        let (mut collation, mut nulls_first) = (pg_sys::InvalidOid, false);
        let sort = pg_sys::tuplesort_begin_heap(
            description,
            1,
            &mut column,
            &mut operator,
            &mut collation,
            &mut nulls_first,
            pg_sys::work_mem,
            std::ptr::null_mut(),
            pg_sys::TUPLESORT_NONE as c_int,
        );
        let input = pg_sys::MakeSingleTupleTableSlot(description, &pg_sys::TTSOpsVirtual);
        let mut gathering = Gathering {
            request,
            ranking,
            returned: &returned,
            sort,
            slot: input,
            rows: 0,
            too_many: false,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| gather(&mut gathering)));
        let (rows, too_many) = (gathering.rows, gathering.too_many);
        match outcome {
            // The error that stopped the scan is ours to word.
            Err(_) if too_many => return Err(TooManyRows),
            Err(error) => resume_unwind(error),
            Ok(()) => {}
        }
        counters::count(|counters| counters.exact_rows += rows);
        pg_sys::ExecDropSingleTupleTableSlot(input);
        pg_sys::tuplesort_performsort(sort);
        let slot = pg_sys::MakeSingleTupleTableSlot(description, &pg_sys::TTSOpsMinimalTuple);
        Ok(Self {
            sort,
            slot,
            returned,
        })
    }

    /// # Safety
    /// In the transaction of the scan.
    pub unsafe fn next(&mut self) -> Option<Ranked> {
        loop {
            let found = pg_sys::tuplesort_gettupleslot(
                self.sort,
                true,
                false,
                self.slot,
                std::ptr::null_mut(),
            );
            if !found {
                return None;
            }
            let mut null = false;
            let distance = pg_sys::slot_getattr(self.slot, 1, &mut null).value() as u64;
            let tid = pg_sys::slot_getattr(self.slot, 2, &mut null).value() as u64;
            if !self.returned.contains(&tid) {
                return Some(Ranked {
                    distance: f64::from_bits(distance),
                    tid,
                });
            }
        }
    }

    /// # Safety
    /// In the transaction of the scan.
    pub unsafe fn close(self) {
        pg_sys::ExecDropSingleTupleTableSlot(self.slot);
        pg_sys::tuplesort_end(self.sort);
    }
}

/// The table access method visits what the scan's snapshot sees, evaluates the
/// index's column, and gives root TIDs: exactly what an index scan must answer.
unsafe fn gather(gathering: &mut Gathering<'_>) {
    let request = gathering.request;
    let info = pg_sys::BuildIndexInfo(request.index);
    let scan = pg_sys::table_beginscan(request.table, request.snapshot, 0, std::ptr::null_mut());
    // It ends the scan that it is given.
    pg_sys::table_index_build_scan(
        request.table,
        request.index,
        info,
        true,
        false,
        Some(on_row),
        std::ptr::from_mut(gathering).cast(),
        scan,
    );
}

unsafe extern "C-unwind" fn on_row(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    nulls: *mut bool,
    _alive: bool,
    state: *mut c_void,
) {
    guard(|| {
        let gathering = &mut *state.cast::<Gathering<'_>>();
        let request = gathering.request;
        gathering.rows += 1;
        if request.rows_max.is_some_and(|limit| gathering.rows > limit) {
            gathering.too_many = true;
            pgrx::error!("too many rows");
        }
        if *nulls && !request.with_nulls {
            return;
        }
        let row = item_pointer_to_u64(*tid);
        if gathering.returned.contains(&row) {
            return;
        }
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = request.row_memory;
        let distance = if *nulls {
            f64::INFINITY
        } else if gathering.ranking.query.is_none() {
            0.0
        } else {
            gathering.ranking.distance(vector::elements(*values))
        };
        pg_sys::MemoryContextReset(request.row_memory);
        pg_sys::CurrentMemoryContext = caller;
        put(gathering, Ranked::new(distance, row));
    });
}

unsafe fn put(gathering: &Gathering<'_>, row: Ranked) {
    let slot = gathering.slot;
    pg_sys::ExecClearTuple(slot);
    *(*slot).tts_values = pg_sys::Datum::from(row.distance.to_bits());
    *(*slot).tts_values.add(1) = pg_sys::Datum::from(row.tid);
    *(*slot).tts_isnull = false;
    *(*slot).tts_isnull.add(1) = false;
    pg_sys::ExecStoreVirtualTuple(slot);
    pg_sys::tuplesort_puttupleslot(gathering.sort, slot);
}
