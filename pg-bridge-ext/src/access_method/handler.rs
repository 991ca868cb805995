//! The table of callbacks, the operator classes' support functions, and their
//! validation.

use super::{build, cost, insert, options, vacuum};
use crate::error::{guard, sql_functions};
use crate::scan;
use pgrx::pg_sys;

sql_functions! {
    pg_finfo_ruvector_ruhnsw_handler for ruvector_ruhnsw_handler(_call) {
        let routine = pg_sys::palloc0(std::mem::size_of::<pg_sys::IndexAmRoutine>())
            .cast::<pg_sys::IndexAmRoutine>();
        routine.write(pg_sys::IndexAmRoutine {
            type_: pg_sys::NodeTag::T_IndexAmRoutine,
            // Operators are for ordering only, and classes may name any number.
            amstrategies: 0,
            amsupport: 1,
            amcanorderbyop: true,
            amoptionalkey: true,
            ambuild: Some(build::ambuild),
            ambuildempty: Some(build::ambuildempty),
            aminsert: Some(insert::aminsert),
            ambulkdelete: Some(vacuum::ambulkdelete),
            amvacuumcleanup: Some(vacuum::amvacuumcleanup),
            amcostestimate: Some(cost::amcostestimate),
            amoptions: Some(options::amoptions),
            amvalidate: Some(amvalidate),
            ambeginscan: Some(scan::ambeginscan),
            amrescan: Some(scan::amrescan),
            amgettuple: Some(scan::amgettuple),
            amendscan: Some(scan::amendscan),
            ..pg_sys::IndexAmRoutine::default()
        });
        pg_sys::Datum::from(routine)
    }

    pg_finfo_ruvector_ruhnsw_l2_support for ruvector_ruhnsw_l2_support(_call) {
        pg_sys::Datum::from(1i32)
    }

    pg_finfo_ruvector_ruhnsw_cosine_support for ruvector_ruhnsw_cosine_support(_call) {
        pg_sys::Datum::from(2i32)
    }

    pg_finfo_ruvector_ruhnsw_ip_support for ruvector_ruhnsw_ip_support(_call) {
        pg_sys::Datum::from(3i32)
    }
}

/// A class is ours if it has the support function that says its metric.
unsafe extern "C-unwind" fn amvalidate(opclass: pg_sys::Oid) -> bool {
    guard(|| {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::CLAOID as i32,
            pg_sys::Datum::from(opclass),
        );
        if tuple.is_null() {
            pgrx::error!(
                "cache lookup failed for operator class {}",
                opclass.to_u32()
            );
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_opclass>();
        let (family, kind) = ((*form).opcfamily, (*form).opcintype);
        pg_sys::ReleaseSysCache(tuple);
        let support = pg_sys::get_opfamily_proc(family, kind, kind, 1);
        if support == pg_sys::InvalidOid {
            pgrx::info!(
                "operator class {} lacks support function 1",
                opclass.to_u32()
            );
        }
        support != pg_sys::InvalidOid
    })
}
