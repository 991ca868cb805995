//! Columns as a checkpoint holds them: the values of all rows side by side, as they are in
//! memory, and of each column of byte strings its dictionary.
//!
//! Values never change while a checkpoint is open, and are read beside everything else; a
//! removed row's too, for its slot is not used again until then. Dictionaries are of the
//! moment at which a checkpoint begins: a string is dropped with the last row that has it.
//! What says which rows have a value is not written: it is made anew.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLockReadGuard;
use roaring::RoaringBitmap;

use super::VALUE_BYTES_MAX;
use super::columns::{Columns, LISTED, Listed, Row};
use super::dictionary::{Dictionary, Known};
use super::listing::Listing;
use super::value::{ColumnType, float_of_key, key_of_float};
use crate::arena::copy_elements;
use crate::checkpoint::{Array, CheckpointError, Kind, Section, Taken, corrupt};
use crate::params::IndexError;
use crate::region::Region;

const WORD_BYTES: usize = size_of::<u64>();
/// Strings are written behind one another, and cut into lines: however long they are and
/// however many, a number of 32 bits counts the lines.
const LINE_BYTES: usize = 1024;
/// No index lives so long: keys are counted on from those that are read.
const KEYS_MAX: u64 = 1 << 56;

/// A column of a checkpoint.
pub(crate) struct StoredColumn {
    pub(crate) kind: ColumnType,
    /// Of its dictionary, and the lines that these fill; none where it holds no strings.
    pub(crate) strings: u32,
    pub(crate) lines: u32,
    /// In the order of strings. None where a checkpoint is read.
    held: Vec<HeldString>,
}

struct HeldString {
    bytes: Arc<[u8]>,
    key: u64,
    /// Behind its last byte among those of all.
    end: u64,
}

impl StoredColumn {
    /// As it is told of.
    pub(crate) fn told(kind: ColumnType, strings: u32, lines: u32) -> Self {
        let held = Vec::new();
        Self {
            kind,
            strings,
            lines,
            held,
        }
    }

    fn of(kind: ColumnType, dictionary: &Dictionary) -> Self {
        let mut end = 0;
        let held = dictionary.strings().map(|(bytes, key)| {
            end += bytes.len() as u64;
            let bytes = Arc::clone(bytes);
            HeldString { bytes, key, end }
        });
        let held: Vec<HeldString> = held.collect();
        Self {
            kind,
            // Fewer than rows, of at most `VALUE_BYTES_MAX` each.
            strings: held.len() as u32,
            lines: lines_of(end) as u32,
            held,
        }
    }

    fn copy_entry(&self, string: u32, into: &mut [u8]) {
        let string = &self.held[string as usize];
        let (key, end) = into.split_at_mut(WORD_BYTES);
        key.copy_from_slice(&string.key.to_ne_bytes());
        end.copy_from_slice(&string.end.to_ne_bytes());
    }

    fn copy_line(&self, line: u32, into: &mut [u8]) {
        into.fill(0);
        let mut at = u64::from(line) * LINE_BYTES as u64;
        let mut rest = into;
        let first = self.held.partition_point(|string| string.end <= at);
        for string in &self.held[first..] {
            let start = string.end - string.bytes.len() as u64;
            let bytes = &string.bytes[(at - start) as usize..];
            let (filled, behind) = rest.split_at_mut(bytes.len().min(rest.len()));
            filled.copy_from_slice(&bytes[..filled.len()]);
            at += filled.len() as u64;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
    }
}

fn lines_of(bytes: u64) -> u64 {
    bytes.div_ceil(LINE_BYTES as u64)
}

/// Columns of which no vector is removed while it is held, and none comes.
pub(crate) struct Unchanged<'a> {
    types: &'a [ColumnType],
    listed: RwLockReadGuard<'a, Listed>,
}

impl Unchanged<'_> {
    pub(crate) fn columns(&self) -> Vec<StoredColumn> {
        let columns = self.types.iter().zip(&self.listed.columns);
        let stored = columns.map(|(kind, (_, dictionary))| StoredColumn::of(*kind, dictionary));
        stored.collect()
    }
}

impl Columns {
    pub(crate) fn unchanged(&self) -> Unchanged<'_> {
        Unchanged {
            types: &self.types,
            listed: self.listed.read(),
        }
    }

    /// Of the rows that were there when the columns were taken.
    pub(crate) fn sections<'a>(
        &'a self,
        rows: u32,
        columns: &'a [StoredColumn],
    ) -> Vec<Section<'a>> {
        if self.types.is_empty() {
            return Vec::new();
        }
        use Taken::Beside;
        let cells = move |row, into: &mut [u8]| self.row(row).copy(into);
        let cells = Section::read_by(Kind::Cells, rows, Beside, &self.cells, cells);
        let mut sections = vec![cells];
        for (column, loaded) in columns.iter().zip(&self.loaded) {
            if column.kind != ColumnType::Bytes {
                continue;
            }
            let (entries, lines) = (&loaded.entries, &loaded.lines);
            let entry = |string, into: &mut [u8]| column.copy_entry(string, into);
            let line = |line, into: &mut [u8]| column.copy_line(line, into);
            sections.extend([
                Section::read_by(Kind::StringEnds, column.strings, Beside, entries, entry),
                Section::read_by(Kind::Strings, column.lines, Beside, lines, line),
            ]);
        }
        sections
    }

    /// Takes up sections that were filled, if what they say can be.
    pub(crate) fn restore(
        &mut self,
        rows: u32,
        columns: &[StoredColumn],
        is_removed: impl Fn(u32) -> bool,
    ) -> Result<(), CheckpointError> {
        if self.types.is_empty() {
            return Ok(());
        }
        let is_there: Vec<bool> = (0..rows).map(|row| !is_removed(row)).collect();
        for row in 0..rows {
            self.row(row).check(row, &self.types)?;
        }
        let loaded = std::mem::replace(&mut self.loaded, Loaded::of(self.types.len()));
        let mut listed = Vec::new();
        for (number, (column, mut loaded)) in columns.iter().zip(loaded).enumerate() {
            let mut dictionary = match column.kind {
                ColumnType::Bytes => Some(loaded.words(number, column)?),
                _ => None,
            };
            let listing = self.listing_of(number, &is_there, dictionary.as_mut())?;
            let dictionary = dictionary.map_or_else(Dictionary::default, Words::dictionary);
            listed.push((listing, dictionary));
        }
        let there = (0..rows).zip(&is_there).filter(|(_, is_there)| **is_there);
        let mut count = 0;
        for (row, _) in there {
            self.row(row).0[0].fetch_or(LISTED, Ordering::Relaxed);
            count += 1;
        }
        *self.listed.get_mut() = Listed {
            rows: count,
            columns: listed,
        };
        Ok(())
    }

    /// Which rows have which values of a column. Notes which strings they have.
    fn listing_of(
        &self,
        column: usize,
        is_there: &[bool],
        mut words: Option<&mut Words>,
    ) -> Result<Listing, CheckpointError> {
        let mut nulls = RoaringBitmap::new();
        let mut keys = Vec::new();
        for (row, is_there) in (0..).zip(is_there) {
            let key = self.row(row).key(column);
            if let (Some(key), Some(words)) = (key, &mut words)
                && !words.note(key, *is_there)
            {
                return Err(bad_cell(row, column, "names no string"));
            }
            match key {
                _ if !is_there => (),
                Some(key) => keys.push((key, row)),
                None => {
                    nulls.insert(row);
                }
            }
        }
        Ok(Listing::of(keys, nulls))
    }
}

impl Row<'_> {
    /// The values; those of NULL are zeros. Whether it is listed is not the checkpoint's.
    fn copy(self, into: &mut [u8]) {
        let (nulls, keys) = into.split_at_mut(WORD_BYTES);
        let bits = self.0[0].load(Ordering::Relaxed) & !LISTED;
        nulls.copy_from_slice(&bits.to_ne_bytes());
        for (column, into) in keys.chunks_exact_mut(WORD_BYTES).enumerate() {
            into.copy_from_slice(&self.key(column).unwrap_or(0).to_ne_bytes());
        }
    }

    /// Whether the values are of their types. What strings there are, it does not know.
    fn check(self, row: u32, types: &[ColumnType]) -> Result<(), CheckpointError> {
        if self.0[0].load(Ordering::Relaxed) >> types.len() != 0 {
            let what = format!("row {row} is NULL in columns that are not there");
            return Err(corrupt(Kind::Cells.name(), what));
        }
        for (column, kind) in types.iter().enumerate() {
            let key = self.key(column);
            let is_good = key.is_none_or(|key| match kind {
                ColumnType::Int => true,
                ColumnType::Float => key == key_of_float(float_of_key(key)),
                ColumnType::Bool => key <= 1,
                ColumnType::Bytes => key < KEYS_MAX,
            });
            if !is_good {
                return Err(bad_cell(row, column, "is no value of its type"));
            }
        }
        Ok(())
    }
}

fn bad_cell(row: u32, column: usize, what: &str) -> CheckpointError {
    let what = format!("row {row}, column {column}: {what}");
    corrupt(Kind::Cells.name(), what)
}

/// What the dictionary of a column is read into.
pub(super) struct Loaded {
    /// Key and end of each string.
    entries: Staged,
    lines: Staged,
}

impl Loaded {
    pub(super) fn of(columns: usize) -> Box<[Self]> {
        let of_column = |_| Self {
            entries: Staged::new(2 * WORD_BYTES),
            lines: Staged::new(LINE_BYTES),
        };
        (0..columns).map(of_column).collect()
    }

    fn words(&mut self, number: usize, column: &StoredColumn) -> Result<Words, CheckpointError> {
        let bad = |kind: Kind, what: String| {
            let what = format!("column {number}: {what}");
            Err(corrupt(kind.name(), what))
        };
        let lines = self.lines.bytes();
        let entries = self.entries.bytes().as_chunks::<WORD_BYTES>().0;
        let mut known: Vec<Known> = Vec::with_capacity(column.strings as usize);
        let mut start = 0;
        for (string, entry) in entries.as_chunks::<2>().0.iter().enumerate() {
            let [key, end] = entry.map(u64::from_ne_bytes);
            if key >= KEYS_MAX {
                return bad(
                    Kind::StringEnds,
                    format!("the key of string {string} is {key}"),
                );
            }
            let bytes = usize::try_from(end)
                .ok()
                .and_then(|end| lines.get(start..end));
            let Some(bytes) = bytes.filter(|bytes| bytes.len() <= VALUE_BYTES_MAX) else {
                let what = format!("string {string} is from byte {start} to {end}");
                return bad(Kind::StringEnds, what);
            };
            start += bytes.len();
            if known.last().is_some_and(|before| *before.bytes >= *bytes) {
                let what = format!("string {string} is not above the one before it");
                return bad(Kind::Strings, what);
            }
            let bytes = Arc::from(bytes);
            known.push(Known {
                key,
                bytes,
                rows: 0,
            });
        }
        if lines_of(start as u64) != u64::from(column.lines) {
            let what = format!("the last string ends at byte {start}");
            return bad(Kind::StringEnds, what);
        }
        Words::of(known).or_else(|key| bad(Kind::StringEnds, format!("two strings have key {key}")))
    }
}

/// The strings of a column that is read.
struct Words {
    /// In their order.
    known: Vec<Known>,
    /// Ascending keys, and which string it is that has one.
    by_key: Vec<(u64, u32)>,
    /// Behind all keys, those of removed rows included.
    next: u64,
}

impl Words {
    /// Keys are below `KEYS_MAX`. If two are one, that is the error.
    fn of(known: Vec<Known>) -> Result<Self, u64> {
        let keys = known.iter().map(|string| string.key);
        let mut by_key: Vec<(u64, u32)> = keys.zip(0..).collect();
        by_key.sort_unstable();
        let next = by_key.last().map_or(0, |last| last.0 + 1);
        match by_key.windows(2).find(|two| two[0].0 == two[1].0) {
            Some(two) => Err(two[0].0),
            None => Ok(Self {
                known,
                by_key,
                next,
            }),
        }
    }

    /// A row has the key, which is below `KEYS_MAX`. Is there such a string? There need not
    /// be one of a row that is not there.
    fn note(&mut self, key: u64, is_there: bool) -> bool {
        self.next = self.next.max(key + 1);
        if !is_there {
            return true;
        }
        let Ok(at) = self.by_key.binary_search_by_key(&key, |known| known.0) else {
            return false;
        };
        self.known[self.by_key[at].1 as usize].rows += 1;
        true
    }

    /// Of those that a row has.
    fn dictionary(self) -> Dictionary {
        Dictionary::of(self.known, self.next)
    }
}

/// Rows that are read, behind one another, in memory that is made once for all of them.
struct Staged {
    row_bytes: usize,
    memory: OnceLock<Region<AtomicU8>>,
}

impl Staged {
    fn new(row_bytes: usize) -> Self {
        let memory = OnceLock::new();
        Self { row_bytes, memory }
    }

    fn elements(&self) -> &[AtomicU8] {
        self.memory.get().map_or(&[], Region::elements)
    }

    fn bytes(&mut self) -> &[u8] {
        let elements = self.elements();
        // SAFETY: an atomic byte is a byte, and nobody writes it while `self` is borrowed.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(elements.as_ptr().cast(), elements.len())
        }
    }
}

impl Array for Staged {
    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn ensure_all(&self, rows: u32) -> Result<(), IndexError> {
        if rows > 0 {
            let bytes = rows as usize * self.row_bytes;
            self.memory.get_or_init(|| Region::zeroed(bytes));
        }
        Ok(())
    }

    fn memory_at(&self, at: usize) -> (NonNull<u8>, usize) {
        let behind = &self.elements()[at..];
        (NonNull::from(behind).cast(), behind.len())
    }

    #[allow(unsafe_code)]
    unsafe fn copy_row(&self, row: u32, into: &mut [u8]) {
        let from = row as usize * self.row_bytes;
        // SAFETY: atomics.
        unsafe { copy_elements(&self.elements()[from..from + self.row_bytes], into) };
    }
}

const _: () = assert!(size_of::<AtomicU64>() == WORD_BYTES);

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
