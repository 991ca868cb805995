//! Text and binary form, and the type modifier. Error texts are pgvector's.

use super::vector::{
    DIMENSIONS_MAX, build, check_dimensions, check_element, check_expected, too_many_dimensions,
};
use crate::error::{Call, SqlError, SqlState, sql_functions};
use pgrx::pg_sys;
use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    /// The shortest decimal that reads back as the same float; no terminator.
    fn float_to_shortest_decimal_bufn(value: f32, buffer: *mut c_char) -> c_int;
    fn strtof(text: *const c_char, end: *mut *mut c_char) -> f32;
    fn __errno_location() -> *mut c_int;
}
/// What the function above writes at most.
const FLOAT_TEXT_BYTES: usize = 16;

sql_functions! {
    pg_finfo_ruvector_vector_in for ruvector_vector_in(call) {
        let text = CStr::from_ptr(call.datum(0).cast_mut_ptr());
        let elements = parse(text);
        check_expected(call.int32(2), elements.len());
        build(&elements)
    }

    pg_finfo_ruvector_vector_out for ruvector_vector_out(call) {
        let elements = call.vector(0);
        let mut text = Vec::with_capacity(elements.len() * FLOAT_TEXT_BYTES + 3);
        text.push(b'[');
        for (place, &element) in elements.iter().enumerate() {
            if place > 0 {
                text.push(b',');
            }
            let mut buffer = [0u8; FLOAT_TEXT_BYTES];
            let length = float_to_shortest_decimal_bufn(element, buffer.as_mut_ptr().cast());
            text.extend_from_slice(&buffer[..length as usize]);
        }
        text.extend_from_slice(b"]\0");
        let copy = pg_sys::palloc(text.len()).cast::<u8>();
        std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
        pg_sys::Datum::from(copy)
    }

    pg_finfo_ruvector_vector_typmod_in for ruvector_vector_typmod_in(call) {
        let array = pg_sys::pg_detoast_datum(call.datum(0).cast_mut_ptr());
        let mut count: c_int = 0;
        let modifiers = pg_sys::ArrayGetIntegerTypmods(array.cast(), &mut count);
        let invalid = |text: String| SqlError::new(SqlState::INVALID_PARAMETER, text).raise();
        if count != 1 {
            invalid("invalid type modifier".into());
        }
        let dimensions = *modifiers;
        if dimensions < 1 {
            invalid("dimensions for type vector must be at least 1".into());
        }
        if dimensions as usize > DIMENSIONS_MAX {
            invalid(format!("dimensions for type vector cannot exceed {DIMENSIONS_MAX}"));
        }
        pg_sys::Datum::from(dimensions)
    }

    pg_finfo_ruvector_vector_recv for ruvector_vector_recv(call) {
        receive(call)
    }

    pg_finfo_ruvector_vector_send for ruvector_vector_send(call) {
        let elements = call.vector(0);
        let mut message = pg_sys::StringInfoData::default();
        pg_sys::pq_begintypsend(&mut message);
        pg_sys::pq_sendint16(&mut message, elements.len() as u16);
        pg_sys::pq_sendint16(&mut message, 0);
        for &element in elements {
            pg_sys::pq_sendfloat4(&mut message, element);
        }
        pg_sys::Datum::from(pg_sys::pq_endtypsend(&mut message))
    }

    /// Length coercion: nothing to change, only to check.
    pg_finfo_ruvector_vector for ruvector_vector(call) {
        check_expected(call.int32(1), call.vector(0).len());
        call.datum(0)
    }
}

unsafe fn receive(call: Call) -> pg_sys::Datum {
    let message: pg_sys::StringInfo = call.datum(0).cast_mut_ptr();
    let dimensions = pg_sys::pq_getmsgint(message, 2) as i16;
    let unused = pg_sys::pq_getmsgint(message, 2) as i16;
    let dimensions = usize::try_from(dimensions).unwrap_or(0);
    check_dimensions(dimensions);
    check_expected(call.int32(2), dimensions);
    if unused != 0 {
        SqlError::new(
            SqlState::DATA_EXCEPTION,
            format!("expected unused to be 0, not {unused}"),
        )
        .raise();
    }
    let elements: Vec<f32> = (0..dimensions)
        .map(|_| {
            let element = pg_sys::pq_getmsgfloat4(message);
            check_element(element);
            element
        })
        .collect();
    build(&elements)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn parse(literal: &CStr) -> Vec<f32> {
    let bytes = literal.to_bytes_with_nul();
    let malformed = |detail: Option<&str>| -> ! {
        let error = SqlError::new(
            SqlState::INVALID_TEXT,
            format!(
                "invalid input syntax for type vector: \"{}\"",
                literal.to_string_lossy()
            ),
        );
        match detail {
            Some(detail) => error.detail(detail).raise(),
            None => error.raise(),
        }
    };
    // The final NUL is no space, so that skipping stops there.
    let skip = |mut at: usize| {
        while is_space(bytes[at]) {
            at += 1;
        }
        at
    };

    let mut at = skip(0);
    if bytes[at] != b'[' {
        malformed(Some("Vector contents must start with \"[\"."));
    }
    at = skip(at + 1);
    if bytes[at] == b']' {
        check_dimensions(0);
    }
    let mut elements = Vec::new();
    loop {
        if elements.len() == DIMENSIONS_MAX {
            too_many_dimensions();
        }
        at = skip(at);
        match number(&bytes[at..]) {
            Some((value, length)) => {
                elements.push(value);
                at = skip(at + length);
            }
            None => malformed(None),
        }
        match bytes[at] {
            b',' => at += 1,
            b']' => break,
            _ => malformed(None),
        }
    }
    if bytes[skip(at + 1)] != 0 {
        malformed(Some("Junk after closing right brace."));
    }
    elements
}

/// Reads one number as float4's input does; `text` ends in NUL.
fn number(text: &[u8]) -> Option<(f32, usize)> {
    let start: *const c_char = text.as_ptr().cast();
    let mut end: *mut c_char = std::ptr::null_mut();
    // SAFETY: the text is NUL-terminated; Postgres keeps LC_NUMERIC at C.
    let (value, error) = unsafe {
        *__errno_location() = 0;
        let value = strtof(start, &mut end);
        (value, *__errno_location())
    };
    let length = end as usize - start as usize;
    if length == 0 {
        return None;
    }
    if error == libc::ERANGE && value.is_infinite() {
        SqlError::new(
            SqlState::OUT_OF_RANGE,
            format!(
                "\"{}\" is out of range for type vector",
                String::from_utf8_lossy(&text[..length])
            ),
        )
        .raise();
    }
    check_element(value);
    Some((value, length))
}
