//! A set of a column's values: ranges of keys, and whether NULL is in it.

/// Ranges are inclusive, ascending and apart.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct KeySet {
    ranges: Vec<(u64, u64)>,
    has_null: bool,
}

impl KeySet {
    /// Of keys in any order, some perhaps twice.
    pub(super) fn of(keys: impl IntoIterator<Item = u64>) -> Self {
        Self::of_ranges(keys.into_iter().map(|key| (key, key)).collect(), false)
    }

    /// From the first to the last, both included; nothing if they are the wrong way round.
    pub(super) fn range(first: u64, last: u64) -> Self {
        let ranges = if first <= last {
            vec![(first, last)]
        } else {
            Vec::new()
        };
        Self {
            ranges,
            has_null: false,
        }
    }

    pub(super) fn null() -> Self {
        Self {
            ranges: Vec::new(),
            has_null: true,
        }
    }

    fn of_ranges(mut ranges: Vec<(u64, u64)>, has_null: bool) -> Self {
        ranges.sort_unstable();
        let mut apart: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match apart.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => apart.push((first, last)),
            }
        }
        apart.shrink_to_fit();
        Self {
            ranges: apart,
            has_null,
        }
    }

    /// All other values but NULL: a comparison of NULL is not true, and neither is its
    /// negation.
    pub(super) fn others(&self) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 1);
        let mut next = Some(0);
        for (first, last) in &self.ranges {
            if let Some(from) = next.filter(|from| from < first) {
                ranges.push((from, first - 1));
            }
            next = last.checked_add(1);
        }
        ranges.extend(next.map(|from| (from, u64::MAX)));
        Self {
            ranges,
            has_null: false,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<(u64, u64)>()
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        let ranges = self.ranges.iter().chain(&other.ranges).copied().collect();
        Self::of_ranges(ranges, self.has_null || other.has_null)
    }

    #[inline]
    pub(super) fn contains(&self, key: u64) -> bool {
        let after = self.ranges.partition_point(|range| range.0 <= key);
        after > 0 && key <= self.ranges[after - 1].1
    }

    #[inline]
    pub(super) fn has_null(&self) -> bool {
        self.has_null
    }

    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }
}

/// Many sets on their way to being one: what is in some of them, or in all.
pub(super) struct Gathered {
    all: bool,
    /// What is in some set; or if it is to be in all, what some set lacks.
    ranges: Vec<(u64, u64)>,
    has_null: bool,
}

impl Gathered {
    pub(super) fn new(all: bool) -> Self {
        Self {
            all,
            ranges: Vec::new(),
            has_null: all,
        }
    }

    pub(super) fn add(&mut self, set: &KeySet) {
        if self.all {
            self.has_null &= set.has_null;
            self.ranges.extend(set.others().ranges);
        } else {
            self.has_null |= set.has_null;
            self.ranges.extend_from_slice(&set.ranges);
        }
    }

    pub(super) fn into_set(self) -> KeySet {
        let ranges = KeySet::of_ranges(self.ranges, false);
        let ranges = if self.all { ranges.others() } else { ranges };
        KeySet {
            has_null: self.has_null,
            ..ranges
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Over few keys, some of them the outermost.
    const KEYS: [u64; 8] = [0, 1, 2, 3, 7, 8, u64::MAX - 1, u64::MAX];

    fn set() -> impl Strategy<Value = KeySet> {
        let ranges = prop::collection::vec((0usize..8, 0usize..8), 0..5);
        (ranges, any::<bool>()).prop_map(|(ranges, has_null)| {
            let empty = KeySet::default();
            let set = ranges.iter().fold(empty, |set, (a, b)| {
                set.or(&KeySet::range(KEYS[*a], KEYS[*b]))
            });
            if has_null {
                set.or(&KeySet::null())
            } else {
                set
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sets_hold_what_their_parts_say(a in set(), b in set()) {
            let gathered = |all| {
                let mut gathered = Gathered::new(all);
                [&a, &b].into_iter().for_each(|set| gathered.add(set));
                gathered.into_set()
            };
            let (and, or, others) = (gathered(true), a.or(&b), a.others());
            prop_assert_eq!(&gathered(false), &or);
            for key in KEYS.into_iter().chain([4, 5, 6, 9, 1 << 63]) {
                prop_assert_eq!(and.contains(key), a.contains(key) && b.contains(key));
                prop_assert_eq!(or.contains(key), a.contains(key) || b.contains(key));
                prop_assert_eq!(others.contains(key), !a.contains(key));
            }
            prop_assert_eq!(and.has_null(), a.has_null() && b.has_null());
            prop_assert_eq!(or.has_null(), a.has_null() || b.has_null());
            prop_assert!(!others.has_null());
            for set in [and, or, others] {
                prop_assert!(set.ranges().is_sorted_by(|x, y| x.1 < y.0 && y.0 - x.1 > 1));
            }
        }
    }
}
