//! `WITH (m = 16, ef_construction = 64)`: pgvector's names, defaults, bounds.

use crate::error::guard;
use pgrx::pg_sys;
use std::ffi::c_int;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

const M_DEFAULT: c_int = 16;
const M_MIN: c_int = 2;
const M_MAX: c_int = 100;
const EF_CONSTRUCTION_DEFAULT: c_int = 64;
const EF_CONSTRUCTION_MIN: c_int = 4;
const EF_CONSTRUCTION_MAX: c_int = 1000;

#[repr(C)]
struct Options {
    varlena_header: i32,
    m: c_int,
    ef_construction: c_int,
}

static KIND: AtomicU32 = AtomicU32::new(0);

/// Defines the options; called once per process, at load.
///
/// # Safety
/// From `_PG_init`.
pub unsafe fn register() {
    let kind = pg_sys::add_reloption_kind();
    KIND.store(kind, Ordering::Relaxed);
    let define =
        |name: &'static std::ffi::CStr, text: &'static std::ffi::CStr, default, min, max| {
            pg_sys::add_int_reloption(
                kind,
                name.as_ptr(),
                text.as_ptr(),
                default,
                min,
                max,
                pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE,
            );
        };
    define(c"m", c"Max number of connections", M_DEFAULT, M_MIN, M_MAX);
    define(
        c"ef_construction",
        c"Size of the dynamic candidate list for construction",
        EF_CONSTRUCTION_DEFAULT,
        EF_CONSTRUCTION_MIN,
        EF_CONSTRUCTION_MAX,
    );
}

pub unsafe extern "C-unwind" fn amoptions(
    reloptions: pg_sys::Datum,
    validate: bool,
) -> *mut pg_sys::bytea {
    guard(|| {
        let element = |name: &'static std::ffi::CStr, offset: usize| pg_sys::relopt_parse_elt {
            optname: name.as_ptr(),
            opttype: pg_sys::relopt_type::RELOPT_TYPE_INT,
            offset: offset as c_int,
        };
        let elements = [
            element(c"m", offset_of!(Options, m)),
            element(c"ef_construction", offset_of!(Options, ef_construction)),
        ];
        pg_sys::build_reloptions(
            reloptions,
            validate,
            KIND.load(Ordering::Relaxed),
            std::mem::size_of::<Options>(),
            elements.as_ptr(),
            elements.len() as c_int,
        )
        .cast()
    })
}

unsafe fn options<'a>(index: pg_sys::Relation) -> Option<&'a Options> {
    (*index).rd_options.cast::<Options>().as_ref()
}

/// # Safety
/// The index is open and one of ours.
pub unsafe fn m(index: pg_sys::Relation) -> u32 {
    options(index)
        .map_or(M_DEFAULT, |options| options.m)
        .unsigned_abs()
}

/// # Safety
/// The index is open and one of ours.
pub unsafe fn ef_construction(index: pg_sys::Relation) -> u32 {
    options(index)
        .map_or(EF_CONSTRUCTION_DEFAULT, |options| options.ef_construction)
        .unsigned_abs()
}
