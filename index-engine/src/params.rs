//! What an index is made of, and the limits at which it refuses.

use thiserror::Error;

use crate::filter::ColumnType;

/// pgvector's limit for the type `vector`.
pub const DIMENSIONS_MAX: usize = 16_000;
/// Links per node above level 0; level 0 holds twice as many. pgvector's range.
pub const M_RANGE: std::ops::RangeInclusive<usize> = 2..=100;
pub const EF_CONSTRUCTION_RANGE: std::ops::RangeInclusive<usize> = 4..=1_000;
/// Search effort beyond this costs more than an exact scan of most partitions.
pub const EF_MAX: usize = 10_000;
/// A page asks for at most this many rows; larger wishes are served as this one.
pub const PAGE_ROWS_MAX: usize = 10_000;
/// Ids of one index, removed rows included. Leaves four bits for the level
/// beside a list number, see `hnsw::graph`.
pub const VECTORS_MAX: u32 = 1 << 28;

/// How nearness is measured. Distances are reported as the SQL operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// `<->`: the Euclidean distance (rooted).
    L2,
    /// `<=>`: one minus the cosine. A zero vector has none and ranks last, at infinity.
    Cosine,
    /// `<#>`: the negative inner product.
    InnerProduct,
}

/// From so many dimensions on, one-bit codes tell near from far well enough: their
/// error falls with the root of the dimensions, and the more they err, the more
/// sketches a search has to look at. Fewer are not measured against exact distances.
const CODED_DIMENSIONS_MIN: usize = 128;

/// How vectors are held for searching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Representation {
    /// `Coded` from 128 dimensions on, `Plain` below.
    #[default]
    ByDimensions,
    /// Vectors only. Searches compute exact distances.
    Plain,
    /// For speed: beside the vectors a sketch of each, a byte a dimension, and one-bit codes of
    /// its neighbours, `m / 4` bytes a dimension.
    Coded,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexParams {
    pub metric: Metric,
    pub dimensions: usize,
    pub m: usize,
    pub ef_construction: usize,
    pub representation: Representation,
}

/// Every kind is the caller's input to correct, except `Full`, which asks for a split, and
/// `NoMemory`, which the caller's own [`Backing`](crate::memory::Backing) made.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum IndexError {
    #[error("{name} is {value}, must be between {min} and {max}")]
    OutOfRange {
        name: &'static str,
        value: usize,
        min: usize,
        max: usize,
    },
    #[error("expected {expected} dimensions, not {got}")]
    WrongDimensions { expected: usize, got: usize },
    #[error("element {position} of the vector is {value}: NaN and infinity are not allowed")]
    NotFinite { position: usize, value: f32 },
    #[error("expected {expected} attributes, one a column, not {got}")]
    WrongAttributes { expected: usize, got: usize },
    #[error("column {column} holds {expected:?}, not {got:?}")]
    WrongType {
        column: usize,
        expected: ColumnType,
        got: ColumnType,
    },
    #[error("there is no column {column}: the index has {columns}, counted from 0")]
    NoSuchColumn { column: usize, columns: usize },
    #[error("the index holds {limit} vectors, its limit")]
    Full { limit: u32 },
    #[error("the index was refused {bytes} bytes of memory")]
    NoMemory { bytes: usize },
}

impl IndexParams {
    pub(crate) fn check(&self) -> Result<(), IndexError> {
        in_range("dimensions", self.dimensions, &(1..=DIMENSIONS_MAX))?;
        in_range("m", self.m, &M_RANGE)?;
        in_range(
            "ef_construction",
            self.ef_construction,
            &EF_CONSTRUCTION_RANGE,
        )
    }

    /// The representation, chosen by dimensions where that is asked for.
    pub(crate) fn chosen(&self) -> Representation {
        match self.representation {
            Representation::ByDimensions if self.dimensions >= CODED_DIMENSIONS_MIN => {
                Representation::Coded
            }
            Representation::ByDimensions => Representation::Plain,
            chosen => chosen,
        }
    }

    pub(crate) fn check_vector(&self, vector: &[f32]) -> Result<(), IndexError> {
        if vector.len() != self.dimensions {
            return Err(IndexError::WrongDimensions {
                expected: self.dimensions,
                got: vector.len(),
            });
        }
        // All of them first: quicker than to stop at one, which hardly ever comes.
        if vector.iter().fold(true, |all, x| all & x.is_finite()) {
            return Ok(());
        }
        let position = vector.iter().position(|x| !x.is_finite());
        let position = position.expect("one of them is not finite");
        Err(IndexError::NotFinite {
            position,
            value: vector[position],
        })
    }
}

pub(crate) fn in_range(
    name: &'static str,
    value: usize,
    range: &std::ops::RangeInclusive<usize>,
) -> Result<(), IndexError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(IndexError::OutOfRange {
        name,
        value,
        min: *range.start(),
        max: *range.end(),
    })
}
