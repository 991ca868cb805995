//! Attributes beside the vectors, and searches for rows that have some.
//!
//! An index may have columns: typed attributes of its vectors, by position. What a
//! value means, and what its column is called, the caller knows.
//!
//! - [`value`]: types and values, and their order as that of unsigned integers.
//! - [`condition`]: what a caller may ask of attributes.
//! - `keys`: sets of a column's values, as ranges.
//! - `predicate`: a condition made ready for an index.
//! - `listing`: which rows have which values of a column.
//! - `dictionary`: byte strings as keys.
//! - `dictionary_read`: a dictionary as it is read from a checkpoint.
//! - `columns`: the values, read without locks, and the listings over them.
//! - [`plan`]: which way a search takes.
//! - `rounds`: a filtered search.
//! - `stored`: the values and dictionaries as a checkpoint holds them.
//!
//! A vector's attributes never change while it lives: a changed row is another vector.

mod columns;
pub mod condition;
mod dictionary;
mod dictionary_read;
mod keys;
mod listing;
pub mod plan;
mod predicate;
mod rounds;
mod stored;
pub mod value;

pub(crate) use columns::Columns;
pub use condition::{Comparison, Filter};
pub use plan::Strategy;
pub(crate) use predicate::Predicate;
pub(crate) use rounds::{Rounds, Scene};
pub(crate) use stored::{StoredColumn, Unchanged};
pub use value::{ColumnType, Value};

/// As many columns as an index of PostgreSQL has, less the vector.
pub const COLUMNS_MAX: usize = 31;
/// Longer byte strings are the caller's to shorten, by a hash if need be.
pub const VALUE_BYTES_MAX: usize = 8_192;
/// Conditions and values of one filter.
pub const FILTER_TERMS_MAX: usize = 100_000;
/// Values of columns, or ranges of them, that one filter comes down to before those of a
/// column are put together: sixteen bytes each. A comparison of numbers is one or two; a byte
/// string is compared with every other that its column has, and those found are listed.
pub const FILTER_KEYS_MAX: usize = 1 << 22;
/// Conditions within conditions.
pub const FILTER_DEPTH_MAX: usize = 64;
