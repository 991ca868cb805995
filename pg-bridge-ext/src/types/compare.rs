//! The order of vectors: element by element, then by length.

use crate::error::sql_functions;
use pgrx::pg_sys;
use std::cmp::Ordering;

fn compare(a: &[f32], b: &[f32]) -> Ordering {
    a.iter()
        .zip(b)
        .map(|(x, y)| x.partial_cmp(y).unwrap_or(Ordering::Equal))
        .find(|order| order.is_ne())
        .unwrap_or_else(|| a.len().cmp(&b.len()))
}

macro_rules! comparisons {
    ($($info:ident for $name:ident = $holds:expr;)*) => {
        sql_functions! { $(
            $info for $name(call) {
                let holds: fn(Ordering) -> bool = $holds;
                pg_sys::Datum::from(holds(compare(call.vector(0), call.vector(1))))
            }
        )* }
    };
}

comparisons! {
    pg_finfo_ruvector_vector_lt for ruvector_vector_lt = Ordering::is_lt;
    pg_finfo_ruvector_vector_le for ruvector_vector_le = Ordering::is_le;
    pg_finfo_ruvector_vector_eq for ruvector_vector_eq = Ordering::is_eq;
    pg_finfo_ruvector_vector_ne for ruvector_vector_ne = Ordering::is_ne;
    pg_finfo_ruvector_vector_ge for ruvector_vector_ge = Ordering::is_ge;
    pg_finfo_ruvector_vector_gt for ruvector_vector_gt = Ordering::is_gt;
}

sql_functions! {
    pg_finfo_ruvector_vector_cmp for ruvector_vector_cmp(call) {
        pg_sys::Datum::from(compare(call.vector(0), call.vector(1)) as i32)
    }
}
