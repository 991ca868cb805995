//! The dictionary of a column as it is read from a checkpoint: what must hold of it, and
//! which of its strings rows have. No string comes under the key that another had.

use super::VALUE_BYTES_MAX;
use super::dictionary::{Dictionary, StringRead};
use super::stored::{WORD_BYTES, lines_of};
use crate::checkpoint::{CheckpointError, Kind, corrupt};

/// No index lives so long: keys are counted on from those that are read, and what has been
/// written then is to be read again.
pub(super) const KEYS_MAX: u64 = (1 << 56) - (1 << 32);

/// The strings of a column that is read.
pub(super) struct DictionaryRead {
    /// In their order.
    strings: Vec<StringRead>,
    /// Ascending keys, and which string it is that has one.
    by_key: Vec<(u64, u32)>,
    /// Behind all keys, those of removed rows included.
    next: u64,
}

impl DictionaryRead {
    /// Key and end of each string, and the strings, if what they say can be. `lines` is how
    /// many the header says that they fill; errors name the column by `number`.
    pub(super) fn parse(
        number: usize,
        entries: &[u8],
        text: &[u8],
        lines: u32,
    ) -> Result<Self, CheckpointError> {
        let bad = |kind: Kind, what: String| {
            let what = format!("column {number}: {what}");
            Err(corrupt(kind.name(), what))
        };
        let entries = entries.as_chunks::<WORD_BYTES>().0.as_chunks::<2>().0;
        let mut strings: Vec<StringRead> = Vec::with_capacity(entries.len());
        let mut start = 0;
        for (string, entry) in entries.iter().enumerate() {
            let [key, end] = entry.map(u64::from_ne_bytes);
            if key >= KEYS_MAX {
                let what = format!("the key of string {string} is {key}");
                return bad(Kind::Dictionary, what);
            }
            let bytes = usize::try_from(end)
                .ok()
                .and_then(|end| text.get(start..end));
            let Some(bytes) = bytes.filter(|bytes| bytes.len() <= VALUE_BYTES_MAX) else {
                let what = format!("string {string} is from byte {start} to {end}");
                return bad(Kind::Dictionary, what);
            };
            start += bytes.len();
            if strings.last().is_some_and(|before| *before.bytes >= *bytes) {
                let what = format!("string {string} is not above the one before it");
                return bad(Kind::Strings, what);
            }
            strings.push(StringRead {
                bytes: bytes.into(),
                key,
                rows: 0,
            });
        }
        if lines_of(start as u64) != u64::from(lines) {
            let what = format!("the last string ends at byte {start}");
            return bad(Kind::Dictionary, what);
        }
        Self::of(strings)
            .or_else(|key| bad(Kind::Dictionary, format!("two strings have key {key}")))
    }

    /// Keys are below `KEYS_MAX`. If two are one, that is the error.
    fn of(strings: Vec<StringRead>) -> Result<Self, u64> {
        let keys = strings.iter().map(|string| string.key);
        let mut by_key: Vec<(u64, u32)> = keys.zip(0..).collect();
        by_key.sort_unstable();
        let next = by_key.last().map_or(0, |last| last.0 + 1);
        match by_key.windows(2).find(|two| two[0].0 == two[1].0) {
            Some(two) => Err(two[0].0),
            None => Ok(Self {
                strings,
                by_key,
                next,
            }),
        }
    }

    /// A row has the key, which is below `KEYS_MAX`. Is there such a string? There need not
    /// be one of a row that is not there.
    pub(super) fn note(&mut self, key: u64, is_there: bool) -> bool {
        self.next = self.next.max(key + 1);
        if !is_there {
            return true;
        }
        let Ok(at) = self.by_key.binary_search_by_key(&key, |known| known.0) else {
            return false;
        };
        self.strings[self.by_key[at].1 as usize].rows += 1;
        true
    }

    /// Of those that a row has.
    pub(super) fn dictionary(self) -> Dictionary {
        Dictionary::of(self.strings, self.next)
    }
}
