//! A condition made ready for one index: no negations, one set of keys a column.
//!
//! `NOT` goes down to the comparisons by De Morgan's laws, which hold in SQL's logic of
//! three values too. What is left asks for truth only, so that unknown may count as false.

use super::columns::Row;
use super::condition::{Comparison, Filter};
use super::keys::{Gathered, KeySet};
use super::value::Value;
use super::{FILTER_DEPTH_MAX, FILTER_KEYS_MAX, FILTER_TERMS_MAX};
use crate::params::{IndexError, in_range};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Predicate {
    /// The column's value is one of these.
    Holds(usize, KeySet),
    All(Vec<Predicate>),
    Any(Vec<Predicate>),
}

/// What a predicate has to know of the columns.
pub(super) trait Vocabulary {
    /// Refuses a column that is not there, and a value of another type.
    fn check(&self, column: usize, value: &Value) -> Result<(), IndexError>;
    /// The keys that compare so with the value; none with NULL.
    fn keys(&self, column: usize, is: Comparison, value: &Value) -> KeySet;
}

impl Predicate {
    pub(super) fn new(filter: &Filter, columns: &impl Vocabulary) -> Result<Self, IndexError> {
        let mut maker = Maker {
            columns,
            terms: 0,
            keys: 0,
        };
        maker.make(filter, false, 0)
    }

    /// Of every row.
    pub(crate) fn is_always_true(&self) -> bool {
        matches!(self, Self::All(parts) if parts.is_empty())
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Holds(_, keys) => keys.memory_bytes(),
            Self::All(parts) | Self::Any(parts) => {
                let own = parts.capacity() * size_of::<Self>();
                own + parts.iter().map(Self::memory_bytes).sum::<usize>()
            }
        }
    }

    /// Is it true of this row?
    #[inline]
    pub(super) fn matches(&self, row: Row<'_>) -> bool {
        match self {
            Self::Holds(column, keys) => match row.key(*column) {
                Some(key) => keys.contains(key),
                None => keys.has_null(),
            },
            Self::All(parts) => parts.iter().all(|part| part.matches(row)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(row)),
        }
    }
}

struct Maker<'a, V> {
    columns: &'a V,
    terms: usize,
    keys: usize,
}

impl<V: Vocabulary> Maker<'_, V> {
    fn make(
        &mut self,
        filter: &Filter,
        negated: bool,
        depth: usize,
    ) -> Result<Predicate, IndexError> {
        in_range("depth of the filter", depth, &(0..=FILTER_DEPTH_MAX))?;
        self.count(1)?;
        match filter {
            Filter::Not(part) => self.make(part, !negated, depth + 1),
            Filter::All(parts) => self.join(parts, negated, !negated, depth),
            Filter::Any(parts) => self.join(parts, negated, negated, depth),
            Filter::IsNull { column } => {
                self.columns.check(*column, &Value::Null)?;
                let null = KeySet::null();
                let keys = if negated {
                    KeySet::default().others()
                } else {
                    null
                };
                Ok(Predicate::Holds(*column, keys))
            }
            Filter::Compare { column, is, value } => {
                self.columns.check(*column, value)?;
                let is = if negated { opposite(*is) } else { *is };
                let keys = self.keys(*column, is, value)?;
                Ok(Predicate::Holds(*column, keys))
            }
            Filter::In { column, values } => {
                self.columns.check(*column, &Value::Null)?;
                self.is_in(*column, values, negated)
            }
        }
    }

    fn is_in(
        &mut self,
        column: usize,
        values: &[Value],
        negated: bool,
    ) -> Result<Predicate, IndexError> {
        self.count(values.len())?;
        if values.is_empty() {
            // False of NULL too: there is nothing that it is compared with.
            let none = Vec::new();
            return Ok(if negated {
                Predicate::All(none)
            } else {
                Predicate::Any(none)
            });
        }
        let mut all = Vec::with_capacity(values.len());
        for value in values {
            self.columns.check(column, value)?;
            let keys = self.keys(column, Comparison::Equal, value)?;
            all.extend(keys.ranges().iter().map(|range| range.0));
        }
        let keys = match negated {
            // It may be the NULL: unknown.
            true if values.contains(&Value::Null) => KeySet::default(),
            true => KeySet::of(all).others(),
            false => KeySet::of(all),
        };
        Ok(Predicate::Holds(column, keys))
    }

    /// What is asked of one column becomes one set.
    fn join(
        &mut self,
        parts: &[Filter],
        negated: bool,
        all: bool,
        depth: usize,
    ) -> Result<Predicate, IndexError> {
        let mut joined = Joined::new(all);
        for part in parts {
            match self.make(part, negated, depth + 1)? {
                Predicate::All(parts) if all => parts.into_iter().for_each(|p| joined.add(p)),
                Predicate::Any(parts) if !all => parts.into_iter().for_each(|p| joined.add(p)),
                part => joined.add(part),
            }
        }
        Ok(joined.finish())
    }

    /// Byte strings that compare with one are listed: what is gathered has a bound.
    fn keys(&mut self, column: usize, is: Comparison, value: &Value) -> Result<KeySet, IndexError> {
        let keys = self.columns.keys(column, is, value);
        self.keys += keys.ranges().len();
        in_range("keys of the filter", self.keys, &(0..=FILTER_KEYS_MAX))?;
        Ok(keys)
    }

    fn count(&mut self, terms: usize) -> Result<(), IndexError> {
        self.terms += terms;
        in_range("terms of the filter", self.terms, &(0..=FILTER_TERMS_MAX))
    }
}

/// Parts of an `AND` or an `OR`. Those of one column are gathered and become one set in the
/// end: put together one by one they would be gone through as often as there are parts.
struct Joined {
    all: bool,
    columns: Vec<(usize, Gathered)>,
    others: Vec<Predicate>,
}

impl Joined {
    fn new(all: bool) -> Self {
        Self {
            all,
            columns: Vec::new(),
            others: Vec::new(),
        }
    }

    fn add(&mut self, part: Predicate) {
        let (column, keys) = match part {
            Predicate::Holds(column, keys) => (column, keys),
            other => return self.others.push(other),
        };
        let at = self.columns.iter().position(|known| known.0 == column);
        let at = at.unwrap_or_else(|| {
            self.columns.push((column, Gathered::new(self.all)));
            self.columns.len() - 1
        });
        self.columns[at].1.add(&keys);
    }

    fn finish(self) -> Predicate {
        let all = self.all;
        let columns = self.columns.into_iter();
        let columns =
            columns.map(|(column, gathered)| Predicate::Holds(column, gathered.into_set()));
        let mut joined: Vec<Predicate> = columns.chain(self.others).collect();
        match (joined.pop(), all) {
            (Some(only), _) if joined.is_empty() => only,
            (last, true) => Predicate::All(joined.into_iter().chain(last).collect()),
            (last, false) => Predicate::Any(joined.into_iter().chain(last).collect()),
        }
    }
}

fn opposite(is: Comparison) -> Comparison {
    match is {
        Comparison::Equal => Comparison::NotEqual,
        Comparison::NotEqual => Comparison::Equal,
        Comparison::Less => Comparison::GreaterOrEqual,
        Comparison::LessOrEqual => Comparison::Greater,
        Comparison::Greater => Comparison::LessOrEqual,
        Comparison::GreaterOrEqual => Comparison::Less,
    }
}
