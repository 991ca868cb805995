//! What an index is made of, and the limits at which it refuses.

use thiserror::Error;

use crate::filter::ColumnType;

/// pgvector's limit for the types `vector` and `halfvec`. (Its own indexes take 2,000
/// and 4,000.)
pub const DIMENSIONS_MAX: usize = 16_000;
/// pgvector's limit for an index of the type `bit`.
pub const BIT_DIMENSIONS_MAX: usize = 64_000;
/// pgvector's limit for the type `sparsevec`.
pub const SPARSE_DIMENSIONS_MAX: usize = 1_000_000_000;
/// And for how many of a `sparsevec`'s elements are not zero. (Its own indexes take 1,000.)
pub const SPARSE_NONZERO_MAX: usize = 16_000;
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
    /// `<+>`: the taxicab distance, the sum of the absolute differences.
    L1,
    /// `<~>`: in how many bits two differ.
    Hamming,
    /// `<%>`: the share of the bits of either that only one of two has. One where they have
    /// none in common, as pgvector says, so also between two without any.
    Jaccard,
}

/// By its operator in SQL.
impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::L2 => "<->",
            Self::Cosine => "<=>",
            Self::InnerProduct => "<#>",
            Self::L1 => "<+>",
            Self::Hamming => "<~>",
            Self::Jaccard => "<%>",
        })
    }
}

/// From so many dimensions on a search by one-bit codes was faster at equal recall on all that
/// was measured: noise, and word vectors and pictures projected to so many. Of fewer it was on
/// noise, but codes add twice the memory of vector and links then.
const CODED_DIMENSIONS_MIN: usize = 32;

/// How vectors are held for searching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Representation {
    /// `Coded` from 32 dimensions on and where there are codes: for f32 and f16 by L2,
    /// cosine or inner product. `Plain` otherwise.
    #[default]
    ByDimensions,
    /// Vectors only. Searches compute exact distances.
    Plain,
    /// For speed: beside the vectors a sketch of each, a byte a dimension, and one-bit codes of
    /// its neighbours, `m / 4` bytes a dimension.
    Coded,
    /// For little memory: of each vector a code of so many bits a dimension. The vectors
    /// themselves are read to rank exactly what is given out, so they may lie elsewhere:
    /// see [`Backing`](crate::memory::Backing).
    Compact(CodeBits),
}

/// Bits of a code for each dimension: a thirty-second to a quarter of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeBits {
    One,
    Two,
    Four,
    Eight,
}

impl CodeBits {
    pub const ALL: [Self; 4] = [Self::One, Self::Two, Self::Four, Self::Eight];

    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// What a search pays for which answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Effort {
    /// Every visible row, by brute force.
    Exact,
    /// The graph is searched, and what is given out ranked exactly.
    #[default]
    Balanced,
    /// No vector is read where there are codes to go by: rows come as codes of
    /// [`Compact`](Representation::Compact) rank them, with distances of limited precision.
    /// In other representations as `Balanced`.
    Fast,
}

/// Is the search exact? If not, it is balanced.
impl From<bool> for Effort {
    fn from(is_exact: bool) -> Self {
        if is_exact {
            Self::Exact
        } else {
            Self::Balanced
        }
    }
}

/// What a vector is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// pgvector's `vector`.
    F32,
    /// pgvector's `halfvec`.
    F16,
    /// pgvector's `sparsevec`: floats, of which only those that are not zero are held.
    Sparse,
    /// Postgres' `bit`.
    Bit,
}

impl Element {
    fn dimensions_max(self) -> usize {
        match self {
            Self::F32 | Self::F16 => DIMENSIONS_MAX,
            Self::Sparse => SPARSE_DIMENSIONS_MAX,
            Self::Bit => BIT_DIMENSIONS_MAX,
        }
    }

    /// As pgvector's operators are defined.
    fn has(self, metric: Metric) -> bool {
        match metric {
            Metric::L2 | Metric::Cosine | Metric::InnerProduct | Metric::L1 => self != Self::Bit,
            Metric::Hamming | Metric::Jaccard => self == Self::Bit,
        }
    }
}

/// By the name of its type in SQL.
impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "vector",
            Self::F16 => "halfvec",
            Self::Sparse => "sparsevec",
            Self::Bit => "bit",
        })
    }
}

/// Written as `IndexParams { metric, dimensions, ..IndexParams::default() }`: a caller
/// names what it chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexParams {
    pub metric: Metric,
    pub element: Element,
    pub dimensions: usize,
    pub m: usize,
    pub ef_construction: usize,
    pub representation: Representation,
}

/// pgvector's defaults, where it has any. Dimensions have none: zero is refused.
impl Default for IndexParams {
    fn default() -> Self {
        Self {
            metric: Metric::L2,
            element: Element::F32,
            dimensions: 0,
            m: 16,
            ef_construction: 64,
            representation: Representation::ByDimensions,
        }
    }
}

/// Every kind is the caller's input to correct, except `Full` and `SparseFull`, which ask
/// for a split, and `NoMemory`, which the caller's own
/// [`Backing`](crate::memory::Backing) made.
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
    #[error("the type {element} has no distance {metric}")]
    NoSuchDistance { element: Element, metric: Metric },
    #[error(
        "there are no codes for {metric} between vectors of type {element}: choose another representation"
    )]
    NoCodes { element: Element, metric: Metric },
    #[error("expected a vector of type {expected}, not {got}")]
    WrongElement { expected: Element, got: Element },
    #[error("element {position} of the vector is {value}: NaN and infinity are not allowed")]
    NotFinite { position: usize, value: f32 },
    #[error("expected {expected} attributes, one a column, not {got}")]
    WrongAttributes { expected: usize, got: usize },
    #[error("column {column} holds {expected}, not {got}")]
    WrongType {
        column: usize,
        expected: ColumnType,
        got: ColumnType,
    },
    #[error("there is no column {column}: the index has {columns}, counted from 0")]
    NoSuchColumn { column: usize, columns: usize },
    #[error("a sparse vector has {indices} indices for {values} values")]
    SparseCounts { indices: usize, values: usize },
    #[error("index {position} of a sparse vector is not above the one before it")]
    SparseOrder { position: usize },
    #[error("index {position} of a sparse vector is {index}, must be below {dimensions}")]
    SparseIndex {
        position: usize,
        index: u32,
        dimensions: usize,
    },
    #[error("value {position} of a sparse vector is zero: leave it out")]
    SparseZero { position: usize },
    #[error("{bits} bits take {expected} bytes, not {got}")]
    BitBytes {
        bits: usize,
        expected: usize,
        got: usize,
    },
    #[error("the last byte has bits set beyond the {bits} of the vector")]
    BitPadding { bits: usize },
    #[error("the index holds {limit} vectors, its limit: split the partition")]
    Full { limit: u32 },
    #[error(
        "the sparse vectors of the index take {limit_bytes} bytes, its limit: split the partition"
    )]
    SparseFull { limit_bytes: u64 },
    #[error(
        "blocks have codes of a width of their own in the compact representation only: choose it"
    )]
    NoWidths,
    #[error("there is no block {block} of rows: the index has {blocks}, counted from 0")]
    NoSuchBlock { block: u32, blocks: u32 },
    #[error("the index was refused {bytes} bytes of memory: free some, or hand in more")]
    NoMemory { bytes: usize },
}

impl IndexParams {
    pub(crate) fn check(&self) -> Result<(), IndexError> {
        let (metric, element) = (self.metric, self.element);
        if !element.has(metric) {
            return Err(IndexError::NoSuchDistance { element, metric });
        }
        in_range(
            "dimensions",
            self.dimensions,
            &(1..=element.dimensions_max()),
        )?;
        let has_codes = matches!(
            self.representation,
            Representation::Coded | Representation::Compact(_)
        );
        if has_codes && !self.can_have_codes() {
            return Err(IndexError::NoCodes { element, metric });
        }
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
            Representation::ByDimensions
                if self.can_have_codes() && self.dimensions >= CODED_DIMENSIONS_MIN =>
            {
                Representation::Coded
            }
            Representation::ByDimensions => Representation::Plain,
            chosen => chosen,
        }
    }

    /// Codes are of inner products of floats, of whatever size.
    fn can_have_codes(&self) -> bool {
        let is_product = matches!(
            self.metric,
            Metric::L2 | Metric::Cosine | Metric::InnerProduct
        );
        is_product && matches!(self.element, Element::F32 | Element::F16)
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
