//! From a tuple of the stream to what it does to a collection's rows.
//!
//! Columns are found by the catalog's attribute numbers while the catalog still
//! looks as the stream's Relation message says; otherwise by the name and type
//! that the catalog gives the number, then by the name of when the index was made.
//! What cannot be told stops the collection with a reason; the source goes on.

use crate::replication::pgoutput::{OldTuple, Relation};
use crate::replication::tuple::{Cell, Tuple};
use crate::vector;
use cluster_core::change::VectorColumn;
use cluster_core::collection::CollectionSpec;
use cluster_core::row_key::RowKey;

/// Why a collection cannot go on. The text is for the user who owns the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

/// A column of the table as the catalog lists it now: neither dropped nor
/// generated, in attribute-number order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveColumn {
    pub attnum: i16,
    pub name: String,
    pub type_oid: u32,
}

/// Where a collection's columns stand in the tuples of its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnMap {
    columns: usize,
    keys: Vec<usize>,
    vector: usize,
    dimensions: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RowOp {
    Upsert {
        key: RowKey,
        vector: VectorColumn,
    },
    /// A key change: delete here, insert there.
    Move {
        old: RowKey,
        new: RowKey,
        vector: VectorColumn,
    },
    Delete {
        key: RowKey,
    },
}

impl ColumnMap {
    pub fn new(
        relation: &Relation,
        live: &[LiveColumn],
        spec: &CollectionSpec,
    ) -> Result<Self, Unusable> {
        let name = || format!("{}.{}", relation.schema, relation.name);
        let is_current = relation.columns.len() == live.len()
            && relation
                .columns
                .iter()
                .zip(live)
                .all(|(c, l)| c.name == l.name && c.type_oid == l.type_oid);
        let flagged: Vec<usize> = (0..relation.columns.len())
            .filter(|i| relation.columns[*i].is_key)
            .collect();
        let (vector, keys) = if is_current {
            let at = |attnum: i16| live.iter().position(|l| l.attnum == attnum);
            let keys: Option<Vec<usize>> = spec.key_attnums.iter().map(|a| at(*a)).collect();
            (at(spec.column_attnum), keys)
        } else {
            let renamed = live
                .iter()
                .find(|l| l.attnum == spec.column_attnum)
                .and_then(|l| {
                    let columns = &mut relation.columns.iter();
                    columns.position(|c| c.name == l.name && c.type_oid == l.type_oid)
                });
            let named = || {
                let columns = &mut relation.columns.iter();
                columns.position(|c| c.name == spec.column_name)
            };
            // Renamed twice since: it has the catalog's type, and nothing else has.
            let alone = || {
                let kind = live
                    .iter()
                    .find(|l| l.attnum == spec.column_attnum)?
                    .type_oid;
                let of_kind = |i: &usize| relation.columns[*i].type_oid == kind;
                let mut all = (0..relation.columns.len()).filter(of_kind);
                all.next().filter(|_| all.next().is_none())
            };
            let vector = renamed.or_else(named).or_else(alone);
            // With FULL every column is flagged, and the catalog's names have to tell.
            let by_name = || {
                let at = |attnum: &i16| {
                    let now = live.iter().find(|l| l.attnum == *attnum)?;
                    let columns = &mut relation.columns.iter();
                    columns.position(|c| c.name == now.name && c.type_oid == now.type_oid)
                };
                spec.key_attnums.iter().map(at).collect()
            };
            let keys = if flagged.len() == spec.key_attnums.len() {
                Some(flagged.clone())
            } else {
                by_name()
            };
            (vector, keys)
        };
        let vector = vector.ok_or_else(|| {
            Unusable(format!("column {} of {} is gone", spec.column_name, name()))
        })?;
        let keys = keys.filter(|keys| !keys.is_empty() && keys.iter().all(|k| flagged.contains(k)));
        let keys = keys.ok_or_else(|| {
            Unusable(format!(
                "the replica identity of {} is another one than when {} was created; REINDEX it",
                name(),
                spec.index_name
            ))
        })?;
        Ok(Self {
            columns: relation.columns.len(),
            keys,
            vector,
            dimensions: spec.dimensions,
        })
    }

    pub fn insert(&self, new: &Tuple) -> Result<RowOp, Unusable> {
        Ok(RowOp::Upsert {
            key: self.key(new, None)?,
            vector: self.vector(new, None)?,
        })
    }

    pub fn update(&self, old: Option<&OldTuple>, new: &Tuple) -> Result<RowOp, Unusable> {
        let vector = self.vector(new, old)?;
        let key = self.key(new, old)?;
        let Some(old) = old else {
            return Ok(RowOp::Upsert { key, vector });
        };
        let before = self.key(old.tuple(), None)?;
        if before == key {
            Ok(RowOp::Upsert { key, vector })
        } else {
            Ok(RowOp::Move {
                old: before,
                new: key,
                vector,
            })
        }
    }

    pub fn delete(&self, old: &OldTuple) -> Result<RowOp, Unusable> {
        Ok(RowOp::Delete {
            key: self.key(old.tuple(), None)?,
        })
    }

    /// A key column that is out of line and untouched stands in the old tuple.
    fn key(&self, tuple: &Tuple, old: Option<&OldTuple>) -> Result<RowKey, Unusable> {
        self.check(tuple)?;
        if let Some(old) = old {
            self.check(old.tuple())?;
        }
        let mut columns = Vec::with_capacity(self.keys.len());
        for index in &self.keys {
            let cell = match &tuple[*index] {
                Cell::Unchanged => old.map_or(&Cell::Unchanged, |old| &old.tuple()[*index]),
                cell => cell,
            };
            let value = cell
                .value()
                .ok_or_else(|| Unusable("a column of the replica identity has no value".into()))?;
            columns.push(&value[..]);
        }
        RowKey::from_columns(columns).map_err(|e| Unusable(e.to_string()))
    }

    fn vector(&self, new: &Tuple, old: Option<&OldTuple>) -> Result<VectorColumn, Unusable> {
        self.check(new)?;
        let cell = match (&new[self.vector], old) {
            // A key-only old tuple says nothing of the vector, not even NULL.
            (Cell::Unchanged, Some(OldTuple::Full(old))) => {
                self.check(old)?;
                &old[self.vector]
            }
            (cell, _) => cell,
        };
        match cell {
            Cell::Null => Ok(VectorColumn::Null),
            Cell::Unchanged => Ok(VectorColumn::Unchanged),
            Cell::Binary(bytes) => vector::decode(bytes, self.dimensions)
                .map(VectorColumn::Value)
                .map_err(|e| Unusable(e.to_string())),
            Cell::Text(_) => Err(Unusable("the indexed column has no binary format".into())),
        }
    }

    fn check(&self, tuple: &Tuple) -> Result<(), Unusable> {
        if tuple.len() == self.columns {
            Ok(())
        } else {
            Err(Unusable(format!(
                "a row of {} columns, not {}",
                tuple.len(),
                self.columns
            )))
        }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
pub mod tests;
