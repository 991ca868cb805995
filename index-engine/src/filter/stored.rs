//! Columns as a checkpoint holds them: the values of all rows side by side, as they are in
//! memory, and of each column of byte strings its dictionary.
//!
//! Values never change while a checkpoint is open, and are read beside everything else; a
//! removed row's too, for its slot is not used again until then. Dictionaries are of the
//! moment at which a checkpoint begins: a string is dropped with the last row that has it.
//! What says which rows have a value is not written: it is made anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLockReadGuard;
use roaring::RoaringBitmap;

use super::columns::{Columns, LISTED, Listed, Row};
use super::dictionary::Dictionary;
use super::dictionary_read::{DictionaryRead, KEYS_MAX};
use super::listing::Listing;
use super::value::{ColumnType, float_of_key, key_of_float};
use crate::checkpoint::{CheckpointError, Kind, Section, Staged, Taken, corrupt};

pub(super) const WORD_BYTES: usize = size_of::<u64>();
/// Strings are written behind one another, and cut into lines: however long they are and
/// however many, a number of 32 bits counts the lines.
const LINE_BYTES: usize = 1024;

/// A column of a checkpoint.
pub(crate) struct StoredColumn {
    pub(crate) kind: ColumnType,
    /// Of its dictionary, and the lines that these fill; none where it holds no strings.
    pub(crate) strings: u32,
    pub(crate) lines: u32,
    /// In the order of strings. None where a checkpoint is read.
    held: Vec<HeldString>,
    /// Key and end of each string as they are read, and the lines. None where one is written.
    entries: Staged,
    text: Staged,
}

struct HeldString {
    bytes: Arc<[u8]>,
    key: u64,
    /// Behind its last byte among those of all.
    end: u64,
}

impl StoredColumn {
    /// As a header announces it.
    pub(crate) fn announced(kind: ColumnType, strings: u32, lines: u32) -> Self {
        Self {
            kind,
            strings,
            lines,
            held: Vec::new(),
            entries: Staged::new(2 * WORD_BYTES),
            text: Staged::new(LINE_BYTES),
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
        // Fewer than rows, of at most `VALUE_BYTES_MAX` each.
        let (strings, lines) = (held.len() as u32, lines_of(end) as u32);
        Self {
            held,
            ..Self::announced(kind, strings, lines)
        }
    }

    /// What was read of it.
    fn dictionary(mut self, number: usize) -> Result<DictionaryRead, CheckpointError> {
        let (entries, text) = (self.entries.bytes(), self.text.bytes());
        DictionaryRead::parse(number, entries, text, self.lines)
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

pub(super) fn lines_of(bytes: u64) -> u64 {
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
        for column in columns {
            if column.kind != ColumnType::Bytes {
                continue;
            }
            let (entries, text) = (&column.entries, &column.text);
            let entry = |string, into: &mut [u8]| column.copy_entry(string, into);
            let line = |line, into: &mut [u8]| column.copy_line(line, into);
            sections.extend([
                Section::read_by(Kind::Dictionary, column.strings, Beside, entries, entry),
                Section::read_by(Kind::Strings, column.lines, Beside, text, line),
            ]);
        }
        sections
    }

    /// Takes up sections that were filled, if what they say can be.
    pub(crate) fn restore(
        &mut self,
        rows: u32,
        columns: Vec<StoredColumn>,
        is_removed: impl Fn(u32) -> bool,
    ) -> Result<(), CheckpointError> {
        if self.types.is_empty() {
            return Ok(());
        }
        let is_there: Vec<bool> = (0..rows).map(|row| !is_removed(row)).collect();
        for row in 0..rows {
            self.row(row).check(row, &self.types)?;
        }
        let mut listed = Vec::new();
        for (number, column) in columns.into_iter().enumerate() {
            let mut dictionary = match column.kind {
                ColumnType::Bytes => Some(column.dictionary(number)?),
                _ => None,
            };
            let listing = self.listing_of(number, &is_there, dictionary.as_mut())?;
            let dictionary =
                dictionary.map_or_else(Dictionary::default, DictionaryRead::dictionary);
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
        mut strings: Option<&mut DictionaryRead>,
    ) -> Result<Listing, CheckpointError> {
        let mut nulls = RoaringBitmap::new();
        let mut keys = Vec::new();
        for (row, is_there) in (0..).zip(is_there) {
            let key = self.row(row).key(column);
            if let (Some(key), Some(strings)) = (key, &mut strings)
                && !strings.note(key, *is_there)
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

const _: () = assert!(size_of::<AtomicU64>() == WORD_BYTES);

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
