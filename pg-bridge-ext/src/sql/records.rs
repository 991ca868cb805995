//! Functions that return a set of rows.

use crate::error::Call;
use pgrx::pg_sys;

/// The rows that a set-returning function gives, all at once.
pub struct Rows {
    info: *mut pg_sys::ReturnSetInfo,
    columns: usize,
}

impl Rows {
    /// # Safety
    /// The call is of a function declared to return a set of rows.
    pub unsafe fn of(call: Call) -> Self {
        pg_sys::InitMaterializedSRF(call.0, 0);
        let info = (*call.0).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        let columns = (*(*info).setDesc).natts as usize;
        Self { info, columns }
    }

    /// # Safety
    /// The values are of the declared columns' types.
    pub unsafe fn put<const N: usize>(&mut self, row: [Option<pg_sys::Datum>; N]) {
        if self.columns != N {
            pgrx::error!("the function must be declared with {N} columns");
        }
        let mut nulls = row.map(|column| column.is_none());
        let mut values = row.map(|column| column.unwrap_or(pg_sys::Datum::from(0usize)));
        pg_sys::tuplestore_putvalues(
            (*self.info).setResult,
            (*self.info).setDesc,
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        );
    }
}

pub fn bigint(value: u64) -> pg_sys::Datum {
    pg_sys::Datum::from(i64::try_from(value).unwrap_or(i64::MAX))
}
