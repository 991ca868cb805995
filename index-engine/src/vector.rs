//! A vector as a caller hands it in, and what is refused of it.

use crate::half::Half;
use crate::params::{Element, IndexError, IndexParams, SPARSE_NONZERO_MAX, in_range};

/// A row's vector or a query, in one of pgvector's types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Vector<'a> {
    /// `vector`: a float a dimension.
    F32(&'a [f32]),
    /// `halfvec`: a float of sixteen bits a dimension.
    F16(&'a [Half]),
    /// `sparsevec`: the elements that are not zero, by ascending index from 0.
    Sparse {
        dimensions: usize,
        indices: &'a [u32],
        values: &'a [f32],
    },
    /// `bit`: eight to a byte, the first one in the byte's highest, as Postgres sends them.
    /// What the last byte has beyond `len` is zero.
    Bits { len: usize, bytes: &'a [u8] },
}

impl<'a> From<&'a [f32]> for Vector<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Vector<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl<'a, const N: usize> From<&'a [f32; N]> for Vector<'a> {
    fn from(values: &'a [f32; N]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a [Half]> for Vector<'a> {
    fn from(values: &'a [Half]) -> Self {
        Self::F16(values)
    }
}

impl<'a> From<&'a Vec<Half>> for Vector<'a> {
    fn from(values: &'a Vec<Half>) -> Self {
        Self::F16(values)
    }
}

impl Vector<'_> {
    pub fn element(&self) -> Element {
        match self {
            Self::F32(_) => Element::F32,
            Self::F16(_) => Element::F16,
            Self::Sparse { .. } => Element::Sparse,
            Self::Bits { .. } => Element::Bit,
        }
    }

    pub fn dimensions(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Sparse { dimensions, .. } => *dimensions,
            Self::Bits { len, .. } => *len,
        }
    }

    /// Refuses what an index of these parameters cannot hold or be asked.
    pub(crate) fn check(&self, params: &IndexParams) -> Result<(), IndexError> {
        if self.element() != params.element {
            return Err(IndexError::WrongElement {
                expected: params.element,
                got: self.element(),
            });
        }
        if self.dimensions() != params.dimensions {
            return Err(IndexError::WrongDimensions {
                expected: params.dimensions,
                got: self.dimensions(),
            });
        }
        match self {
            Self::F32(values) => check_finite(values, |x| *x),
            Self::F16(values) => check_finite(values, |x| x.to_f32()),
            Self::Sparse {
                dimensions,
                indices,
                values,
            } => check_sparse(*dimensions, indices, values),
            Self::Bits { len, bytes } => check_bits(*len, bytes),
        }
    }
}

fn check_finite<T>(values: &[T], to_f32: impl Fn(&T) -> f32) -> Result<(), IndexError> {
    // All of them first: quicker than to stop at one, which hardly ever comes.
    if values
        .iter()
        .fold(true, |all, x| all & to_f32(x).is_finite())
    {
        return Ok(());
    }
    let mut values = values.iter().map(to_f32).enumerate();
    match values.find(|(_, value)| !value.is_finite()) {
        Some((position, value)) => Err(IndexError::NotFinite { position, value }),
        None => Ok(()),
    }
}

fn check_sparse(dimensions: usize, indices: &[u32], values: &[f32]) -> Result<(), IndexError> {
    if indices.len() != values.len() {
        return Err(IndexError::SparseCounts {
            indices: indices.len(),
            values: values.len(),
        });
    }
    in_range("non-zero elements", values.len(), &(0..=SPARSE_NONZERO_MAX))?;
    for (position, index) in indices.iter().enumerate() {
        if position > 0 && *index <= indices[position - 1] {
            return Err(IndexError::SparseOrder { position });
        }
        if *index as usize >= dimensions {
            return Err(IndexError::SparseIndex {
                position,
                index: *index,
                dimensions,
            });
        }
    }
    check_finite(values, |x| *x)?;
    match values.iter().position(|value| *value == 0.0) {
        Some(position) => Err(IndexError::SparseZero { position }),
        None => Ok(()),
    }
}

fn check_bits(len: usize, bytes: &[u8]) -> Result<(), IndexError> {
    if bytes.len() != len.div_ceil(8) {
        return Err(IndexError::BitBytes {
            bits: len,
            expected: len.div_ceil(8),
            got: bytes.len(),
        });
    }
    let unused = bytes.len() * 8 - len;
    let is_padded = bytes
        .last()
        .is_none_or(|last| last.trailing_zeros() as usize >= unused);
    if is_padded {
        return Ok(());
    }
    Err(IndexError::BitPadding { bits: len })
}
