//! The byte strings of a column, numbered.
//!
//! A string keeps its number while a row has it. Numbers are not used again, so a search
//! that knows one never takes another string for it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::condition::Comparison;
use super::keys::KeySet;

#[derive(Default)]
pub(super) struct Dictionary {
    keys: BTreeMap<Arc<[u8]>, u64>,
    entries: BTreeMap<u64, Entry>,
    next: u64,
    /// Of all strings together.
    bytes: usize,
}

struct Entry {
    bytes: Arc<[u8]>,
    rows: u32,
}

/// A string of a dictionary that is read.
pub(super) struct StringRead {
    pub(super) bytes: Arc<[u8]>,
    pub(super) key: u64,
    pub(super) rows: u32,
}

impl Dictionary {
    /// Of distinct strings in their order, with a key each; without those that no row has.
    /// Keys are given out from `next` on.
    pub(super) fn of(mut strings: Vec<StringRead>, next: u64) -> Self {
        strings.retain(|string| string.rows > 0);
        let keys = strings
            .iter()
            .map(|string| (Arc::clone(&string.bytes), string.key));
        let keys = keys.collect();
        let bytes = strings.iter().map(|string| string.bytes.len()).sum();
        let entry = |StringRead { bytes, key, rows }| (key, Entry { bytes, rows });
        Self {
            keys,
            entries: strings.into_iter().map(entry).collect(),
            next,
            bytes,
        }
    }

    /// All strings in their order, and their keys.
    pub(super) fn strings(&self) -> impl Iterator<Item = (&Arc<[u8]>, u64)> {
        self.keys.iter().map(|(bytes, key)| (bytes, *key))
    }

    /// The string's key, for one more row.
    pub(super) fn take(&mut self, bytes: &[u8]) -> u64 {
        if let Some(key) = self.keys.get(bytes)
            && let Some(entry) = self.entries.get_mut(key)
        {
            entry.rows += 1;
            return *key;
        }
        let key = self.next;
        self.next += 1;
        self.bytes += bytes.len();
        let bytes: Arc<[u8]> = bytes.into();
        self.keys.insert(Arc::clone(&bytes), key);
        self.entries.insert(key, Entry { bytes, rows: 1 });
        key
    }

    /// One row less has it.
    pub(super) fn give_back(&mut self, key: u64) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.rows -= 1;
        if entry.rows == 0
            && let Some(entry) = self.entries.remove(&key)
        {
            self.bytes -= entry.bytes.len();
            self.keys.remove(&entry.bytes);
        }
    }

    pub(super) fn bytes(&self, key: u64) -> Option<&[u8]> {
        self.entries.get(&key).map(|entry| &*entry.bytes)
    }

    /// The keys of the strings that compare so.
    pub(super) fn keys(&self, is: Comparison, bytes: &[u8]) -> KeySet {
        use Bound::{Excluded, Included, Unbounded};
        let range = |from, to| {
            let keys = self.keys.range::<[u8], _>((from, to));
            KeySet::of(keys.map(|(_, key)| *key))
        };
        match is {
            Comparison::Equal => KeySet::of(self.keys.get(bytes).copied()),
            Comparison::NotEqual => KeySet::of(self.keys.get(bytes).copied()).others(),
            Comparison::Less => range(Unbounded, Excluded(bytes)),
            Comparison::LessOrEqual => range(Unbounded, Included(bytes)),
            Comparison::Greater => range(Excluded(bytes), Unbounded),
            Comparison::GreaterOrEqual => range(Included(bytes), Unbounded),
        }
    }

    /// About: the strings and what the two maps take for each.
    pub(super) fn memory_bytes(&self) -> usize {
        const PER_ENTRY: usize = 96;
        self.bytes + self.entries.len() * PER_ENTRY
    }
}
