//! Vectors of any element, and their distances as pgvector has them.
#![allow(dead_code)]

use index_engine::{Element, Half, Metric, Vector};

/// A vector of any element, owned.
#[derive(Debug, Clone, PartialEq)]
pub enum Owned {
    F32(Vec<f32>),
    F16(Vec<Half>),
    Sparse(usize, Vec<u32>, Vec<f32>),
    Bits(usize, Vec<u8>),
}

impl Owned {
    /// Of the dense values of one: as they are, rounded to halves, the large ones only, or of
    /// each whether it is more than [`BIT_ABOVE`].
    pub fn of(element: Element, values: &[f32]) -> Self {
        match element {
            Element::F32 => Self::F32(values.to_vec()),
            Element::F16 => Self::F16(values.iter().map(|x| Half::from_f32(*x)).collect()),
            Element::Sparse => {
                let held = values.iter().enumerate().filter(|(_, x)| **x > HELD_ABOVE);
                let (indices, values) = held.map(|(i, x)| (i as u32 * GAP, *x)).unzip();
                Self::Sparse(WIDE, indices, values)
            }
            Element::Bit => {
                let mut bytes = vec![0u8; values.len().div_ceil(8)];
                for (i, x) in values.iter().enumerate() {
                    bytes[i / 8] |= u8::from(*x > BIT_ABOVE) << (7 - i % 8);
                }
                Self::Bits(values.len(), bytes)
            }
        }
    }

    pub fn zero(element: Element, dimensions: usize) -> Self {
        Self::of(element, &vec![0.0; dimensions])
    }

    pub fn borrow(&self) -> Vector<'_> {
        match self {
            Self::F32(values) => values.into(),
            Self::F16(values) => values.into(),
            Self::Sparse(dimensions, indices, values) => Vector::Sparse {
                dimensions: *dimensions,
                indices,
                values,
            },
            Self::Bits(len, bytes) => Vector::Bits { len: *len, bytes },
        }
    }

    pub fn dense(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|x| f64::from(*x)).collect(),
            Self::F16(values) => values.iter().map(|x| f64::from(x.to_f32())).collect(),
            Self::Sparse(dimensions, indices, values) => {
                let mut dense = vec![0.0; dimensions / GAP as usize];
                for (i, x) in indices.iter().zip(values) {
                    dense[(*i / GAP) as usize] = f64::from(*x);
                }
                dense
            }
            Self::Bits(len, bytes) => (0..*len)
                .map(|i| f64::from(bytes[i / 8] >> (7 - i % 8) & 1))
                .collect(),
        }
    }
}

/// Dimensions of sparse vectors.
pub const WIDE: usize = 200_000;
/// Indices of theirs are so far apart, at least.
const GAP: u32 = 1_000;
/// What is not above is zero in a sparse vector: of values around 0, of deviation 1, nine
/// tenths. Learned ones are as sparse.
const HELD_ABOVE: f32 = 1.3;
/// What is above is a one in a vector of bits: of the same values a third.
const BIT_ABOVE: f32 = 0.5;

/// As pgvector's operators are defined.
pub fn distance(metric: Metric, a: &[f64], b: &[f64]) -> f64 {
    let sum =
        |term: fn(f64, f64) -> f64| -> f64 { a.iter().zip(b).map(|(x, y)| term(*x, *y)).sum() };
    let dot = sum(|x, y| x * y);
    match metric {
        Metric::L2 => sum(|x, y| (x - y) * (x - y)).sqrt(),
        Metric::InnerProduct => -dot,
        Metric::L1 | Metric::Hamming => sum(|x, y| (x - y).abs()),
        Metric::Cosine => {
            let norms = (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt();
            if norms == 0.0 {
                f64::INFINITY
            } else {
                1.0 - dot / norms
            }
        }
        Metric::Jaccard if dot == 0.0 => 1.0,
        Metric::Jaccard => 1.0 - dot / sum(f64::max),
    }
}
