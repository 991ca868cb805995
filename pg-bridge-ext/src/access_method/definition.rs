//! What an index is, read from the relation cache: column, metric, options and
//! the key that names rows to the cluster.

use super::options;
use cluster_core::collection::Metric;
use pgrx::pg_sys::{self, name_data_to_str};
use std::ffi::c_int;

/// A column of the replica identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    pub attnum: i16,
    pub kind: pg_sys::Oid,
}

/// The unique index whose columns name a row, the same in the WAL and here.
#[derive(Clone, Debug)]
pub struct RowKeyIndex {
    pub index_oid: pg_sys::Oid,
    /// In the order of attribute numbers, as in the row key.
    pub columns: Vec<KeyColumn>,
}

#[derive(Clone, Debug)]
pub struct Definition {
    pub index_oid: pg_sys::Oid,
    pub table_oid: pg_sys::Oid,
    pub schema_name: String,
    pub table_name: String,
    pub index_name: String,
    pub column_name: String,
    pub column_attnum: i16,
    pub column_typmod: i32,
    pub metric: Metric,
    pub m: u32,
    pub ef_construction: u32,
    /// Or why the cluster cannot follow the table.
    pub key: Result<RowKeyIndex, String>,
}

impl Definition {
    /// # Safety
    /// Both relations are open, and the index is one of ours on the table.
    pub unsafe fn of(table: pg_sys::Relation, index: pg_sys::Relation) -> Self {
        let table_form = (*table).rd_rel;
        let column_attnum = *(*(*index).rd_index).indkey.values.as_ptr();
        let column = attribute(table, column_attnum);
        let namespace = pg_sys::get_namespace_name((*table_form).relnamespace);
        let schema_name = if namespace.is_null() {
            String::new()
        } else {
            std::ffi::CStr::from_ptr(namespace)
                .to_string_lossy()
                .into_owned()
        };
        Self {
            index_oid: (*index).rd_id,
            table_oid: (*table).rd_id,
            schema_name,
            table_name: name_data_to_str(&(*table_form).relname).to_owned(),
            index_name: name_data_to_str(&(*(*index).rd_rel).relname).to_owned(),
            column_name: name_data_to_str(&(*column).attname).to_owned(),
            column_attnum,
            column_typmod: (*attribute(index, 1)).atttypmod,
            metric: metric(index),
            m: options::m(index),
            // An ALTER INDEX may have raised m alone, and no rebuild fails for it.
            ef_construction: options::ef_construction(index).max(2 * options::m(index)),
            key: followable(table, column, index).and_then(|()| row_key_index(table)),
        }
    }

    /// 0 when the column has no declared dimensions.
    pub fn dimensions(&self) -> u32 {
        u32::try_from(self.column_typmod).unwrap_or(0)
    }

    /// What rows mean to the cluster. When it changes, what the cluster holds
    /// is of no use; it is compared at every scan.
    pub fn fingerprint(&self) -> String {
        let mut text = format!(
            "table {} column {} dimensions {} metric {} key",
            self.table_oid.to_u32(),
            self.column_attnum,
            self.dimensions(),
            self.metric
        );
        match &self.key {
            Ok(key) => {
                for column in &key.columns {
                    text.push_str(&format!(" {}:{}", column.attnum, column.kind.to_u32()));
                }
            }
            Err(_) => text.push_str(" none"),
        }
        text
    }
}

/// FNV-1a, for the metapage: 64 bits of a text that only we write.
pub fn fingerprint_hash(fingerprint: &str) -> u64 {
    fingerprint
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        })
}

/// # Safety
/// The relation is open and has such an attribute (from 1).
unsafe fn attribute(
    relation: pg_sys::Relation,
    attnum: i16,
) -> *const pg_sys::FormData_pg_attribute {
    (*(*relation).rd_att)
        .attrs
        .as_ptr()
        .add(attnum as usize - 1)
}

unsafe fn metric(index: pg_sys::Relation) -> Metric {
    let support = pg_sys::index_getprocid(index, 1, 1);
    let number =
        pg_sys::OidFunctionCall1Coll(support, pg_sys::InvalidOid, pg_sys::Datum::from(0usize));
    match number.value() as i32 {
        1 => Metric::L2,
        2 => Metric::Cosine,
        3 => Metric::InnerProduct,
        other => pgrx::error!("operator class of a ruhnsw index has unknown metric {other}"),
    }
}

unsafe fn followable(
    table: pg_sys::Relation,
    column: *const pg_sys::FormData_pg_attribute,
    index: pg_sys::Relation,
) -> Result<(), String> {
    let form = (*table).rd_rel;
    if (*form).relpersistence != pg_sys::RELPERSISTENCE_PERMANENT as std::ffi::c_char {
        return Err(
            "the table is temporary or unlogged, so the WAL does not carry its rows".into(),
        );
    }
    if (*column).attgenerated != 0 {
        return Err("the column is generated, so the WAL does not carry its values".into());
    }
    if (*attribute(index, 1)).atttypmod < 1 {
        return Err("the column does not have dimensions".into());
    }
    Ok(())
}

/// Finds the index that names rows: the replica identity; with REPLICA IDENTITY
/// FULL, the primary key. Postgres lists only valid, immediate, whole-table ones.
///
/// # Safety
/// The table is open.
pub unsafe fn row_key_index(table: pg_sys::Relation) -> Result<RowKeyIndex, String> {
    let mut index_oid = pg_sys::RelationGetReplicaIndex(table);
    let identity = (*(*table).rd_rel).relreplident as u8;
    if index_oid == pg_sys::InvalidOid && identity == b'f' {
        index_oid = pg_sys::RelationGetPrimaryKeyIndex(table);
    }
    if index_oid == pg_sys::InvalidOid {
        return Err(match identity {
            b'n' => "the table has REPLICA IDENTITY NOTHING".into(),
            b'i' => "the index of the table's REPLICA IDENTITY is not usable".into(),
            _ => "the table has no primary key (or a deferrable one)".into(),
        });
    }
    let index = pg_sys::index_open(index_oid, pg_sys::AccessShareLock as c_int);
    let form = (*index).rd_index;
    let attnums =
        std::slice::from_raw_parts((*form).indkey.values.as_ptr(), (*form).indnkeyatts as usize);
    let mut columns: Vec<KeyColumn> = attnums
        .iter()
        .filter(|&&attnum| attnum > 0)
        .map(|&attnum| KeyColumn {
            attnum,
            kind: (*attribute(table, attnum)).atttypid,
        })
        .collect();
    let complete = columns.len() == attnums.len();
    let is_generated = columns
        .iter()
        .any(|column| (*attribute(table, column.attnum)).attgenerated != 0);
    pg_sys::index_close(index, pg_sys::AccessShareLock as c_int);
    columns.sort_by_key(|column| column.attnum);
    if is_generated {
        return Err("the table's key has a generated column, which the WAL does not carry".into());
    }
    if complete && !columns.is_empty() {
        Ok(RowKeyIndex { index_oid, columns })
    } else {
        Err("the table's key is not made of plain columns".into())
    }
}
