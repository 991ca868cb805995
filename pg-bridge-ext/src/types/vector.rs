//! The stored value: a varlena header, `int16` dimensions, `int16` zero, then
//! that many `float4`. The layout is pgvector's, and a stored format.

use crate::error::{SqlError, SqlState};
use pgrx::pg_sys;

pub const DIMENSIONS_MAX: usize = 16_000;
const HEADER_BYTES: usize = 8;

/// The elements of a `vector` datum, detoasted if need be.
///
/// # Safety
/// The datum is a non-null `vector`; the slice lives as long as the current
/// memory context, or as the tuple that the datum points into.
pub unsafe fn elements<'a>(datum: pg_sys::Datum) -> &'a [f32] {
    let stored = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
    let bytes = pgrx::varlena::varsize_4b(stored);
    let dimensions = *stored.cast::<i16>().add(2);
    let length = usize::try_from(dimensions).unwrap_or(0);
    if length == 0 || bytes != HEADER_BYTES + 4 * length {
        SqlError::new(
            SqlState::CORRUPT_DATA,
            format!("vector of {bytes} bytes claims {dimensions} dimensions"),
        )
        .raise();
    }
    std::slice::from_raw_parts(stored.cast::<u8>().add(HEADER_BYTES).cast::<f32>(), length)
}

/// A new `vector` in the current memory context.
///
/// # Safety
/// On the backend's main thread.
pub unsafe fn build(elements: &[f32]) -> pg_sys::Datum {
    check_dimensions(elements.len());
    let bytes = HEADER_BYTES + 4 * elements.len();
    let stored = pg_sys::palloc0(bytes).cast::<pg_sys::varlena>();
    pgrx::varlena::set_varsize_4b(stored, bytes as i32);
    *stored.cast::<i16>().add(2) = elements.len() as i16;
    let target = stored.cast::<u8>().add(HEADER_BYTES).cast::<f32>();
    std::ptr::copy_nonoverlapping(elements.as_ptr(), target, elements.len());
    pg_sys::Datum::from(stored)
}

pub fn check_dimensions(dimensions: usize) {
    if dimensions < 1 {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            "vector must have at least 1 dimension",
        )
        .raise();
    }
    if dimensions > DIMENSIONS_MAX {
        too_many_dimensions();
    }
}

pub fn too_many_dimensions() -> ! {
    SqlError::new(
        SqlState::LIMIT_EXCEEDED,
        format!("vector cannot have more than {DIMENSIONS_MAX} dimensions"),
    )
    .raise()
}

/// Checks a type modifier, -1 for none.
pub fn check_expected(typmod: i32, dimensions: usize) {
    if typmod != -1 && typmod as usize != dimensions {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            format!("expected {typmod} dimensions, not {dimensions}"),
        )
        .raise();
    }
}

pub fn check_same(a: &[f32], b: &[f32]) {
    if a.len() != b.len() {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            format!("different vector dimensions {} and {}", a.len(), b.len()),
        )
        .raise();
    }
}

pub fn check_element(value: f32) {
    if value.is_nan() {
        SqlError::new(SqlState::DATA_EXCEPTION, "NaN not allowed in vector").raise();
    }
    if value.is_infinite() {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            "infinite value not allowed in vector",
        )
        .raise();
    }
}

/// Results of arithmetic: infinity is an overflow.
pub fn check_overflow(value: f32) -> f32 {
    if value.is_infinite() {
        SqlError::new(SqlState::OUT_OF_RANGE, "value out of range: overflow").raise();
    }
    value
}
