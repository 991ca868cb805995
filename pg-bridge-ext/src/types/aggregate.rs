//! `avg(vector)`: the state is a `float8` array of the count and the sums.

use super::vector::{build, check_element, check_expected};
use crate::error::{Call, SqlError, SqlState, sql_functions};
use pgrx::pg_sys;
use std::ffi::c_int;

sql_functions! {
    pg_finfo_ruvector_vector_accum for ruvector_vector_accum(call) {
        let mut state = state(call, 0);
        let value = call.vector(1);
        if state.len() == 1 {
            state.resize(value.len() + 1, 0.0);
        }
        check_expected(state.len() as i32 - 1, value.len());
        state[0] += 1.0;
        for (sum, &element) in state[1..].iter_mut().zip(value) {
            *sum = finite(*sum + f64::from(element));
        }
        store(&state)
    }

    pg_finfo_ruvector_vector_combine for ruvector_vector_combine(call) {
        let (a, b) = (state(call, 0), state(call, 1));
        if a[0] == 0.0 {
            return store(&b);
        }
        if b[0] == 0.0 {
            return store(&a);
        }
        check_expected(a.len() as i32 - 1, b.len() - 1);
        let sums: Vec<f64> = a.iter().zip(&b).map(|(x, y)| finite(x + y)).collect();
        store(&sums)
    }

    pg_finfo_ruvector_vector_avg for ruvector_vector_avg(call) {
        let state = state(call, 0);
        if state[0] == 0.0 {
            return call.null();
        }
        let means: Vec<f32> = state[1..].iter().map(|sum| (sum / state[0]) as f32).collect();
        means.iter().copied().for_each(check_element);
        build(&means)
    }
}

fn finite(value: f64) -> f64 {
    if value.is_infinite() {
        SqlError::new(SqlState::OUT_OF_RANGE, "value out of range: overflow").raise();
    }
    value
}

unsafe fn state(call: Call, number: usize) -> Vec<f64> {
    let array: *mut pg_sys::ArrayType =
        pg_sys::pg_detoast_datum(call.datum(number).cast_mut_ptr()).cast();
    if (*array).ndim != 1
        || (*array).elemtype != pg_sys::FLOAT8OID
        || pg_sys::array_contains_nulls(array)
    {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            "vector_accum: expected state array",
        )
        .raise();
    }
    let (mut datums, mut count) = (std::ptr::null_mut(), 0);
    pg_sys::deconstruct_array(
        array,
        pg_sys::FLOAT8OID,
        8,
        true,
        pg_sys::TYPALIGN_DOUBLE as _,
        &mut datums,
        std::ptr::null_mut(),
        &mut count,
    );
    if count < 1 {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            "vector_accum: expected state array",
        )
        .raise();
    }
    (0..count as usize)
        .map(|place| f64::from_bits((*datums.add(place)).value() as u64))
        .collect()
}

unsafe fn store(state: &[f64]) -> pg_sys::Datum {
    let mut datums: Vec<pg_sys::Datum> = state
        .iter()
        .map(|value| pg_sys::Datum::from(value.to_bits()))
        .collect();
    pg_sys::Datum::from(pg_sys::construct_array(
        datums.as_mut_ptr(),
        datums.len() as c_int,
        pg_sys::FLOAT8OID,
        8,
        true,
        pg_sys::TYPALIGN_DOUBLE as _,
    ))
}
