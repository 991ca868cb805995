//! The attributes of all vectors: values that searches read without locks, and what says
//! which rows have a value.
//!
//! A row's values lie together: whoever looks at one has the others at hand. They are
//! written before the vector is published, or, where it takes the place of another, before
//! anybody may see it; they never change under a search that may see the vector.
//! Listings follow under a lock of their own. They hold every published row that is not
//! removed, and may hold some whose values are already another's: who lists rows looks at
//! their values before it counts on them.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use roaring::{MultiOps, RoaringBitmap};

use super::condition::{Comparison, Filter};
use super::dictionary::Dictionary;
use super::keys::KeySet;
use super::listing::{Listing, Part};
use super::predicate::{Predicate, Vocabulary};
use super::value::{ColumnType, Value, float_of_key, int_of_key, key_of_float, key_of_int};
use super::{COLUMNS_MAX, VALUE_BYTES_MAX};
use crate::arena::{Segments, prefetch};
use crate::params::{IndexError, in_range};

/// Beside the bits of the columns that are NULL: the row is in the listings.
pub(super) const LISTED: u64 = 1 << 63;
/// Rows looked at to tell how many match.
const SAMPLE: u64 = 64;
/// Bitmaps of a condition that are put together to narrow the rows of another.
const NARROWING_PARTS_MAX: usize = 8;

pub(crate) struct Columns {
    pub(super) types: Box<[ColumnType]>,
    /// A word of bits, then a key a column.
    pub(super) cells: Segments<AtomicU64>,
    pub(super) listed: RwLock<Listed>,
}

#[derive(Default)]
pub(super) struct Listed {
    pub(super) rows: u64,
    pub(super) columns: Vec<(Listing, Dictionary)>,
}

/// The values of a vector.
#[derive(Clone, Copy)]
pub(super) struct Row<'a>(pub(super) &'a [AtomicU64]);

impl Row<'_> {
    /// `None` is NULL.
    #[inline]
    pub(super) fn key(self, column: usize) -> Option<u64> {
        let nulls = self.0[0].load(Ordering::Relaxed);
        (nulls >> column & 1 == 0).then(|| self.0[1 + column].load(Ordering::Relaxed))
    }

    fn is_listed(self) -> bool {
        self.0[0].load(Ordering::Relaxed) & LISTED != 0
    }
}

impl Columns {
    pub(crate) fn new(types: &[ColumnType]) -> Result<Self, IndexError> {
        in_range("number of columns", types.len(), &(0..=COLUMNS_MAX))?;
        Ok(Self {
            types: types.into(),
            cells: Segments::new(1 + types.len()),
            listed: RwLock::new(Listed {
                rows: 0,
                columns: types.iter().map(|_| Default::default()).collect(),
            }),
        })
    }

    pub(crate) fn types(&self) -> &[ColumnType] {
        &self.types
    }

    /// One value a column, of its type or NULL; or none at all, for NULLs.
    pub(crate) fn check_row(&self, values: &[Value]) -> Result<(), IndexError> {
        if values.len() != self.types.len() && !values.is_empty() {
            return Err(IndexError::WrongAttributes {
                expected: self.types.len(),
                got: values.len(),
            });
        }
        let mut columns = values.iter().enumerate();
        columns.try_for_each(|(column, value)| self.check(column, value))
    }

    /// Makes room for a vector that is about to be published. One writer at a time.
    pub(crate) fn reserve(&self, id: u32) {
        if !self.types.is_empty() {
            self.cells.ensure(id);
        }
    }

    /// The checked values of a vector that nobody can see yet. One writer at a time.
    pub(crate) fn write(&self, id: u32, values: &[Value]) {
        if self.types.is_empty() {
            return;
        }
        self.reserve(id);
        let row = self.row(id);
        let mut listed = self.listed.write();
        if row.is_listed() {
            listed.remove(id, row);
        }
        let mut bits = LISTED;
        listed.rows += 1;
        for (column, (listing, dictionary)) in listed.columns.iter_mut().enumerate() {
            let key = match values.get(column) {
                None | Some(Value::Null) => None,
                Some(Value::Int(value)) => Some(key_of_int(*value)),
                Some(Value::Float(value)) => Some(key_of_float(*value)),
                Some(Value::Bool(value)) => Some(u64::from(*value)),
                Some(Value::Bytes(value)) => Some(dictionary.take(value)),
            };
            let cell = &row.0[1 + column];
            match key {
                Some(key) => cell.store(key, Ordering::Relaxed),
                None => bits |= 1 << column,
            }
            let key_of = |id| self.row(id).0[1 + column].load(Ordering::Relaxed);
            listing.insert(id, key, key_of);
        }
        row.0[0].store(bits, Ordering::Relaxed);
    }

    /// The vector is removed by `remove`: nobody has to find it any more. A checkpoint has
    /// both its values and it, or neither.
    pub(crate) fn forget<T>(&self, id: u32, remove: impl FnOnce() -> T) -> T {
        if self.types.is_empty() {
            return remove();
        }
        let mut listed = self.listed.write();
        let row = self.row(id);
        if row.is_listed() {
            listed.remove(id, row);
            row.0[0].fetch_and(!LISTED, Ordering::Relaxed);
        }
        // In this order: once it is removed, its slot may be another's.
        remove()
    }

    /// A vector's values, one a column. Byte strings that only forgotten vectors have are
    /// NULL.
    pub(crate) fn values(&self, id: u32) -> Vec<Value> {
        if self.types.is_empty() {
            return Vec::new();
        }
        let listed = self.listed.read();
        let row = self.row(id);
        let value = |(column, kind): (usize, &ColumnType)| {
            let Some(key) = row.key(column) else {
                return Value::Null;
            };
            match kind {
                ColumnType::Int => Value::Int(int_of_key(key)),
                ColumnType::Float => Value::Float(float_of_key(key)),
                ColumnType::Bool => Value::Bool(key != 0),
                ColumnType::Bytes => {
                    let bytes = listed.columns[column].1.bytes(key);
                    bytes.map_or(Value::Null, |bytes| Value::Bytes(bytes.into()))
                }
            }
        };
        self.types.iter().enumerate().map(value).collect()
    }

    /// Of the rows that are published by now; those that come later it may miss.
    pub(crate) fn predicate(&self, filter: &Filter) -> Result<Predicate, IndexError> {
        Predicate::new(filter, self)
    }

    #[inline]
    pub(crate) fn matches(&self, predicate: &Predicate, id: u32) -> bool {
        if self.types.is_empty() {
            return predicate.matches(Row(&[]));
        }
        predicate.matches(self.row(id))
    }

    /// A hint that `matches` will be asked.
    #[inline]
    pub(crate) fn prefetch(&self, id: u32) {
        if !self.types.is_empty() {
            prefetch(&self.cells.row(id)[0]);
        }
    }

    /// How many rows match, about: exact where bitmaps tell, else from a sample.
    pub(crate) fn count(&self, predicate: &Predicate) -> u64 {
        let listed = self.listed.read();
        let cover = listed.cover(predicate);
        if cover.is_exact || cover.rows == 0 {
            return cover.rows;
        }
        let (mut looked_at, mut matching, mut before) = (0, 0, 0);
        let wanted = SAMPLE.min(cover.rows);
        for part in &cover.parts {
            let upto = before + part.rows.len();
            while looked_at < wanted {
                let at = (2 * looked_at + 1) * cover.rows / (2 * wanted);
                if at >= upto {
                    break;
                }
                looked_at += 1;
                let id = part.rows.select((at - before) as u32);
                matching += u64::from(id.is_some_and(|id| self.matches(predicate, id)));
            }
            before = upto;
        }
        // None of them says that few match, not that none does.
        (cover.rows * matching.max(1)).div_ceil(wanted)
    }

    /// All rows that match, and some that do not.
    pub(crate) fn candidates(&self, predicate: &Predicate) -> RoaringBitmap {
        let listed = self.listed.read();
        let mut rows = listed.cover(predicate).union();
        if let Predicate::All(parts) = predicate {
            for part in parts {
                let cover = listed.cover(part);
                if cover.parts.len() <= NARROWING_PARTS_MAX {
                    rows &= cover.union();
                }
            }
        }
        rows
    }

    pub(crate) fn memory_bytes(&self, vectors: u32) -> usize {
        if self.types.is_empty() {
            return 0;
        }
        let listed = self.listed.read();
        let of_column = |(listing, dictionary): &(Listing, Dictionary)| {
            listing.memory_bytes() + dictionary.memory_bytes()
        };
        vectors as usize * (1 + self.types.len()) * size_of::<AtomicU64>()
            + listed.columns.iter().map(of_column).sum::<usize>()
    }

    #[inline]
    pub(super) fn row(&self, id: u32) -> Row<'_> {
        Row(self.cells.row(id))
    }
}

impl Vocabulary for Columns {
    fn check(&self, column: usize, value: &Value) -> Result<(), IndexError> {
        let Some(expected) = self.types.get(column).copied() else {
            return Err(IndexError::NoSuchColumn {
                column,
                columns: self.types.len(),
            });
        };
        if let Value::Bytes(bytes) = value {
            in_range(
                "length of a byte string",
                bytes.len(),
                &(0..=VALUE_BYTES_MAX),
            )?;
        }
        match value.column_type() {
            Some(got) if got != expected => Err(IndexError::WrongType {
                column,
                expected,
                got,
            }),
            _ => Ok(()),
        }
    }

    fn keys(&self, column: usize, is: Comparison, value: &Value) -> KeySet {
        match value {
            Value::Null => KeySet::default(),
            Value::Int(value) => ordered(is, key_of_int(*value)),
            Value::Float(value) => ordered(is, key_of_float(*value)),
            Value::Bool(value) => ordered(is, u64::from(*value)),
            Value::Bytes(bytes) => {
                let listed = self.listed.read();
                listed.columns[column].1.keys(is, bytes)
            }
        }
    }
}

/// The keys that compare so with one of them.
fn ordered(is: Comparison, key: u64) -> KeySet {
    let equal = KeySet::range(key, key);
    let less = key
        .checked_sub(1)
        .map_or_else(KeySet::default, |last| KeySet::range(0, last));
    match is {
        Comparison::Equal => equal,
        Comparison::NotEqual => equal.others(),
        Comparison::Less => less,
        Comparison::LessOrEqual => KeySet::range(0, key),
        Comparison::Greater => KeySet::range(0, key).others(),
        Comparison::GreaterOrEqual => KeySet::range(key, u64::MAX),
    }
}

/// Bitmaps that hold all rows that match.
struct Cover<'a> {
    parts: Vec<Part<'a>>,
    /// In the bitmaps together.
    rows: u64,
    /// They hold the matching rows only, each once.
    is_exact: bool,
}

impl<'a> Cover<'a> {
    fn of(parts: Vec<Part<'a>>) -> Self {
        Self {
            rows: parts.iter().map(|part| part.rows.len()).sum(),
            is_exact: parts.iter().all(|part| part.is_exact),
            parts,
        }
    }

    fn union(&self) -> RoaringBitmap {
        self.parts.iter().map(|part| part.rows).union()
    }
}

impl Listed {
    fn remove(&mut self, id: u32, row: Row<'_>) {
        self.rows -= 1;
        for (column, (listing, dictionary)) in self.columns.iter_mut().enumerate() {
            let key = row.key(column);
            listing.remove(id, key);
            key.into_iter().for_each(|key| dictionary.give_back(key));
        }
    }

    fn cover(&self, predicate: &Predicate) -> Cover<'_> {
        match predicate {
            Predicate::Holds(column, keys) => Cover::of(self.columns[*column].0.parts(keys)),
            Predicate::All(parts) => {
                let covers = parts.iter().map(|part| self.cover(part));
                match covers.min_by_key(|cover| cover.rows) {
                    Some(cover) => Cover {
                        is_exact: cover.rows == 0,
                        ..cover
                    },
                    None => self.everything(),
                }
            }
            Predicate::Any(parts) => {
                let covers = parts.iter().flat_map(|part| self.cover(part).parts);
                let cover = Cover::of(covers.collect());
                if cover.rows >= self.rows {
                    let is_exact = false;
                    return Cover {
                        is_exact,
                        ..self.everything()
                    };
                }
                Cover {
                    is_exact: cover.rows == 0,
                    ..cover
                }
            }
        }
    }

    /// All rows of any column.
    fn everything(&self) -> Cover<'_> {
        let all = KeySet::null().or(&KeySet::range(0, u64::MAX));
        let parts = self.columns.first().map(|column| column.0.parts(&all));
        Cover::of(parts.unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
