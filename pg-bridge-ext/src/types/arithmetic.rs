//! Element-wise arithmetic, concatenation, pieces.

use super::distance::norm;
use super::vector::{build, check_dimensions, check_overflow, check_same};
use crate::error::{SqlError, SqlState, sql_functions};

fn zip(a: &[f32], b: &[f32], combine: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    check_same(a, b);
    a.iter()
        .zip(b)
        .map(|(&x, &y)| check_overflow(combine(x, y)))
        .collect()
}

sql_functions! {
    pg_finfo_ruvector_vector_add for ruvector_vector_add(call) {
        build(&zip(call.vector(0), call.vector(1), |x, y| x + y))
    }

    pg_finfo_ruvector_vector_sub for ruvector_vector_sub(call) {
        build(&zip(call.vector(0), call.vector(1), |x, y| x - y))
    }

    pg_finfo_ruvector_vector_mul for ruvector_vector_mul(call) {
        build(&zip(call.vector(0), call.vector(1), |x, y| {
            let product = x * y;
            if product == 0.0 && x != 0.0 && y != 0.0 {
                SqlError::new(SqlState::OUT_OF_RANGE, "value out of range: underflow").raise();
            }
            product
        }))
    }

    pg_finfo_ruvector_vector_concat for ruvector_vector_concat(call) {
        let (a, b) = (call.vector(0), call.vector(1));
        check_dimensions(a.len() + b.len());
        build(&[a, b].concat())
    }

    pg_finfo_ruvector_l2_normalize for ruvector_l2_normalize(call) {
        let a = call.vector(0);
        let norm = norm(a);
        let scaled: Vec<f32> = a
            .iter()
            .map(|&x| if norm > 0.0 { check_overflow((f64::from(x) / norm) as f32) } else { 0.0 })
            .collect();
        build(&scaled)
    }

    pg_finfo_ruvector_subvector for ruvector_subvector(call) {
        let a = call.vector(0);
        let (start, count) = (i64::from(call.int32(1)), i64::from(call.int32(2)));
        if count < 1 {
            check_dimensions(0);
        }
        // Positions count from 1, and those outside are left out, as in substr.
        let end = (start + count).min(a.len() as i64 + 1);
        let start = start.max(1);
        if start > a.len() as i64 || end <= start {
            check_dimensions(0);
        }
        build(&a[start as usize - 1..end as usize - 1])
    }
}
