//! The keys that a scan has given, for partitions that start again.

use std::collections::HashSet;
use std::hash::Hash;

/// Most scans never restart, so keys are only listed until one does.
#[derive(Debug)]
pub(super) struct GivenKeys<K> {
    listed: Vec<K>,
    set: HashSet<K>,
    keys_max: usize,
    is_overfull: bool,
}

impl<K: Eq + Hash + Clone> GivenKeys<K> {
    pub fn new(keys_max: usize) -> Self {
        Self {
            listed: Vec::new(),
            set: HashSet::new(),
            keys_max,
            is_overfull: false,
        }
    }

    pub fn record<'a>(&mut self, keys: impl Iterator<Item = &'a K>)
    where
        K: 'a,
    {
        if self.is_overfull {
            return;
        }
        self.listed.extend(keys.cloned());
        if self.listed.len() + self.set.len() > self.keys_max {
            self.is_overfull = true;
            self.listed = Vec::new();
            self.set = HashSet::new();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.set.is_empty() && !self.is_overfull
    }

    /// Whether the keys given can no longer be told.
    pub fn is_overfull(&self) -> bool {
        self.is_overfull
    }

    pub fn contains(&mut self, key: &K) -> bool {
        self.set.extend(self.listed.drain(..));
        self.set.contains(key)
    }
}
