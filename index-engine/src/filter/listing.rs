//! Which rows have which values of a column: bitmaps, of which each stands for a range
//! of keys.
//!
//! A value that many rows share has a bitmap of its own. Of values that few share, as
//! many are together as make some hundred rows; a range then takes whole bitmaps, and
//! the rows of two more have to be looked at.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use super::keys::KeySet;

/// A bitmap of several values is divided beyond so many rows: few enough to be looked at
/// one by one, enough to make a bitmap worth its overhead.
const ROWS_MAX: u64 = 512;
/// Of one that is made at once: some more may come.
const ROWS_FILLED: usize = ROWS_MAX as usize / 4 * 3;

#[derive(Default)]
pub(super) struct Listing {
    nulls: RoaringBitmap,
    /// By the first key that it stands for; the next one's is where it ends.
    buckets: BTreeMap<u64, Bucket>,
}

struct Bucket {
    /// Of the keys that rows have or had here.
    least: u64,
    most: u64,
    rows: RoaringBitmap,
}

/// Rows that may have one of the keys asked for.
pub(super) struct Part<'a> {
    pub(super) rows: &'a RoaringBitmap,
    /// All of them have.
    pub(super) is_exact: bool,
}

impl Listing {
    /// Of these keys and rows, and those that are NULL.
    pub(super) fn of(mut rows: Vec<(u64, u32)>, nulls: RoaringBitmap) -> Self {
        rows.sort_unstable();
        let mut buckets = BTreeMap::new();
        let mut add = |rows| {
            let bucket = Bucket::of_sorted(rows);
            buckets.extend(bucket.map(|bucket| (bucket.least, bucket)));
        };
        let (mut from, mut upto) = (0, 0);
        for value in rows.chunk_by(|one, other| one.0 == other.0) {
            if upto - from + value.len() > ROWS_FILLED {
                add(&rows[from..upto]);
                from = upto;
            }
            upto += value.len();
        }
        add(&rows[from..upto]);
        Self { nulls, buckets }
    }

    /// `key_of` answers the keys of rows listed before.
    pub(super) fn insert(&mut self, id: u32, key: Option<u64>, key_of: impl Fn(u32) -> u64) {
        let Some(key) = key else {
            self.nulls.insert(id);
            return;
        };
        let Some((first, bucket)) = self.buckets.range_mut(..=key).next_back() else {
            self.add_before_all(id, key);
            return;
        };
        let first = *first;
        if bucket.least == bucket.most && key != bucket.least && bucket.rows.len() >= ROWS_MAX {
            // Leave the shared value a bitmap of its own.
            if key > bucket.most {
                self.buckets.insert(key, Bucket::of(id, key));
            } else if let Some(shared) = self.buckets.remove(&first) {
                self.buckets.insert(first, Bucket::of(id, key));
                self.buckets.insert(shared.least, shared);
            }
            return;
        }
        bucket.add(id, key);
        if bucket.rows.len() > ROWS_MAX && bucket.least != bucket.most {
            self.divide(first, key_of);
        }
    }

    pub(super) fn remove(&mut self, id: u32, key: Option<u64>) {
        let Some(key) = key else {
            self.nulls.remove(id);
            return;
        };
        let Some((first, bucket)) = self.buckets.range_mut(..=key).next_back() else {
            return;
        };
        let first = *first;
        bucket.rows.remove(id);
        if bucket.rows.is_empty() {
            self.buckets.remove(&first);
        }
    }

    /// The bitmaps that hold all rows with one of the keys, each once.
    pub(super) fn parts<'a>(&'a self, keys: &KeySet) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        if keys.has_null() && !self.nulls.is_empty() {
            parts.push(Part {
                rows: &self.nulls,
                is_exact: true,
            });
        }
        // The last bucket taken: several ranges may end in one.
        let mut taken = None;
        for (first, last) in keys.ranges() {
            let before = self.buckets.range(..*first).next_back();
            for (at, bucket) in before.into_iter().chain(self.buckets.range(*first..=*last)) {
                if taken == Some(*at) || bucket.most < *first || *last < bucket.least {
                    continue;
                }
                taken = Some(*at);
                parts.push(Part {
                    rows: &bucket.rows,
                    is_exact: *first <= bucket.least && bucket.most <= *last,
                });
            }
        }
        parts
    }

    /// About: two bytes a row, and what bitmaps and the tree take for themselves.
    pub(super) fn memory_bytes(&self) -> usize {
        let of_bitmap = |rows: &RoaringBitmap| {
            let statistics = rows.statistics();
            let held = statistics.n_bytes_array_containers
                + statistics.n_bytes_run_containers
                + statistics.n_bytes_bitset_containers;
            held as usize + statistics.n_containers as usize * 48
        };
        let buckets = self.buckets.values();
        let held: usize = buckets.map(|bucket| of_bitmap(&bucket.rows)).sum();
        of_bitmap(&self.nulls) + held + self.buckets.len() * (size_of::<Bucket>() + 16)
    }

    fn add_before_all(&mut self, id: u32, key: u64) {
        let Some(first) = self.buckets.first_key_value().map(|(first, _)| *first) else {
            self.buckets.insert(key, Bucket::of(id, key));
            return;
        };
        let Some(mut bucket) = self.buckets.remove(&first) else {
            return;
        };
        if bucket.rows.len() >= ROWS_MAX {
            self.buckets.insert(first, bucket);
            self.buckets.insert(key, Bucket::of(id, key));
        } else {
            bucket.add(id, key);
            self.buckets.insert(key, bucket);
        }
    }

    /// In two by the middle key, such that no value is in both.
    fn divide(&mut self, first: u64, key_of: impl Fn(u32) -> u64) {
        let Some(bucket) = self.buckets.remove(&first) else {
            return;
        };
        let mut rows: Vec<(u64, u32)> = bucket.rows.iter().map(|id| (key_of(id), id)).collect();
        rows.sort_unstable();
        let middle = rows[rows.len() / 2].0;
        let mut at = rows.partition_point(|row| row.0 < middle);
        if at == 0 {
            at = rows.partition_point(|row| row.0 <= middle);
        }
        let (low, high) = rows.split_at(at);
        let (low, high) = (Bucket::of_sorted(low), Bucket::of_sorted(high));
        self.buckets.extend(low.map(|bucket| (first, bucket)));
        self.buckets
            .extend(high.map(|bucket| (bucket.least, bucket)));
    }
}

impl Bucket {
    fn of(id: u32, key: u64) -> Self {
        Self {
            least: key,
            most: key,
            rows: RoaringBitmap::from_iter([id]),
        }
    }

    fn of_sorted(rows: &[(u64, u32)]) -> Option<Self> {
        let (least, most) = (rows.first()?.0, rows.last()?.0);
        Some(Self {
            least,
            most,
            rows: rows.iter().map(|row| row.1).collect(),
        })
    }

    fn add(&mut self, id: u32, key: u64) {
        self.least = self.least.min(key);
        self.most = self.most.max(key);
        self.rows.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

        /// Whatever the order and the number of rows of a value.
        #[test]
        fn parts_hold_all_rows_of_the_keys_and_little_else(
            seed in any::<u64>(),
            distinct in prop::sample::select(vec![1u64, 2, 3, 40, 900, 1 << 40]),
            rows in prop::sample::select(vec![3u32, 1_500, 6_000]),
            ascending in any::<bool>(),
            at_once in prop::sample::select(vec![0u32, 900, 6_000]),
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state >> 20
            };
            // Small values are common.
            let key = |r: u64| (r % 1_000 + 1) * (r >> 10) % distinct;
            let mut keys: Vec<u64> = (0..rows).map(|_| key(next())).collect();
            if ascending {
                keys.sort_unstable();
            }
            let first = keys.iter().copied().zip(0..at_once.min(rows)).collect();
            let mut listing = Listing::of(first, RoaringBitmap::new());
            let mut there = vec![true; rows as usize];
            for (id, key) in (0u32..).zip(&keys).skip(at_once as usize) {
                listing.insert(id, Some(*key), |id| keys[id as usize]);
            }
            listing.insert(rows, None, |_| 0);
            for id in (0..rows).filter(|id| id % 7 == 3) {
                listing.remove(id, Some(keys[id as usize]));
                there[id as usize] = false;
            }
            for _ in 0..20 {
                let (a, b) = (key(next()), key(next()));
                let set = KeySet::range(a.min(b), a.max(b)).or(&KeySet::of([key(next()), key(next())]));
                let mut found = RoaringBitmap::new();
                let mut unsure = 0;
                for part in listing.parts(&set) {
                    prop_assert_eq!(found.intersection_len(part.rows), 0, "a row is in two parts");
                    found |= part.rows;
                    if part.is_exact {
                        prop_assert!(part.rows.iter().all(|id| set.contains(keys[id as usize])));
                    } else {
                        unsure += part.rows.len();
                    }
                }
                for id in 0..rows {
                    let is_wanted = there[id as usize] && set.contains(keys[id as usize]);
                    prop_assert!(!is_wanted || found.contains(id), "{id} is missing");
                }
                // Two ends of a range, and two keys.
                prop_assert!(unsure <= 4 * (ROWS_MAX + 1), "{unsure} rows to be looked at");
            }
            let all = listing.parts(&KeySet::null().or(&KeySet::range(0, u64::MAX)));
            let held: u64 = all.iter().map(|part| part.rows.len()).sum();
            prop_assert_eq!(held, there.iter().filter(|there| **there).count() as u64 + 1);
        }
    }
}
