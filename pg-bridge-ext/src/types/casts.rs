//! Arrays to vectors and back.

use super::vector::{build, check_dimensions, check_element, check_expected};
use crate::error::{SqlError, SqlState, sql_functions};
use pgrx::pg_sys;
use std::ffi::c_int;

sql_functions! {
    pg_finfo_ruvector_array_to_vector for ruvector_array_to_vector(call) {
        let array: *mut pg_sys::ArrayType =
            pg_sys::pg_detoast_datum(call.datum(0).cast_mut_ptr()).cast();
        let elements = array_elements(array);
        check_expected(call.int32(1), elements.len());
        elements.iter().copied().for_each(check_element);
        build(&elements)
    }

    pg_finfo_ruvector_vector_to_float4 for ruvector_vector_to_float4(call) {
        let mut elements: Vec<pg_sys::Datum> = call
            .vector(0)
            .iter()
            .map(|element| pg_sys::Datum::from(element.to_bits()))
            .collect();
        let array = pg_sys::construct_array(
            elements.as_mut_ptr(),
            elements.len() as c_int,
            pg_sys::FLOAT4OID,
            4,
            true,
            pg_sys::TYPALIGN_INT as _,
        );
        pg_sys::Datum::from(array)
    }
}

unsafe fn array_elements(array: *mut pg_sys::ArrayType) -> Vec<f32> {
    if (*array).ndim > 1 {
        SqlError::new(SqlState::DATA_EXCEPTION, "array must be 1-D").raise();
    }
    if pg_sys::array_contains_nulls(array) {
        SqlError::new(SqlState::NULL_NOT_ALLOWED, "array must not contain nulls").raise();
    }
    let kind = (*array).elemtype;
    let (mut width, mut by_value, mut align) = (0i16, false, 0);
    pg_sys::get_typlenbyvalalign(kind, &mut width, &mut by_value, &mut align);
    let (mut datums, mut count) = (std::ptr::null_mut(), 0);
    pg_sys::deconstruct_array(
        array,
        kind,
        c_int::from(width),
        by_value,
        align,
        &mut datums,
        std::ptr::null_mut(),
        &mut count,
    );
    check_dimensions(count as usize);
    (0..count as usize)
        .map(|place| element(kind, *datums.add(place)))
        .collect()
}

unsafe fn element(kind: pg_sys::Oid, datum: pg_sys::Datum) -> f32 {
    match kind {
        pg_sys::INT4OID => datum.value() as i32 as f32,
        pg_sys::FLOAT4OID => f32::from_bits(datum.value() as u32),
        pg_sys::FLOAT8OID => f64::from_bits(datum.value() as u64) as f32,
        pg_sys::NUMERICOID => {
            let value = pgrx::direct_function_call_as_datum(pg_sys::numeric_float4, &[Some(datum)])
                .expect("numeric_float4 never answers NULL");
            f32::from_bits(value.value() as u32)
        }
        _ => SqlError::new(SqlState::DATA_EXCEPTION, "unsupported array type").raise(),
    }
}
