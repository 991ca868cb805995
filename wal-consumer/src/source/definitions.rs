//! `ruvector.collections`: which indexes there are. The table is in the
//! publication, so that they come and go in commit order; a new slot reads it
//! at its snapshot first.

use crate::replication::pgoutput::Relation;
use crate::replication::tuple::{Cell, Reader, Tuple};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use cluster_core::collection::{CollectionSpec, Metric};
use cluster_core::ids::SourceId;
use tokio_postgres::Client;

pub const SCHEMA: &str = "ruvector";
pub const TABLE: &str = "collections";

pub fn is_definitions(relation: &Relation) -> bool {
    relation.schema == SCHEMA && relation.name == TABLE
}

/// A row of the table in the stream.
pub fn from_tuple(
    source: SourceId,
    relation: &Relation,
    row: &Tuple,
) -> anyhow::Result<CollectionSpec> {
    let columns = Columns { relation, row };
    Ok(CollectionSpec {
        source,
        index_oid: columns.oid("index_oid")?,
        definition_generation: columns.u64("definition_generation")?,
        table_oid: columns.oid("table_oid")?,
        schema_name: columns.text("schema_name")?,
        table_name: columns.text("table_name")?,
        index_name: columns.text("index_name")?,
        column_name: columns.text("column_name")?,
        column_attnum: columns.i16("column_attnum")?,
        key_attnums: ascending(columns.i16s("key_attnums")?),
        metric: metric(&columns.text("metric")?)?,
        dimensions: columns.u32("dimensions")?,
        m: columns.u32("m")?,
        ef_construction: columns.u32("ef_construction")?,
    })
}

/// What a deleted or replaced row tells: its index, and its generation when the
/// old row is whole.
pub fn from_old_tuple(relation: &Relation, row: &Tuple) -> anyhow::Result<(u32, Option<u64>)> {
    let columns = Columns { relation, row };
    Ok((
        columns.oid("index_oid")?,
        columns.u64("definition_generation").ok(),
    ))
}

struct Columns<'a> {
    relation: &'a Relation,
    row: &'a Tuple,
}

impl Columns<'_> {
    fn cell(&self, name: &str) -> anyhow::Result<&Bytes> {
        let index = self.relation.columns.iter().position(|c| c.name == name);
        let cell = index.and_then(|i| self.row.get(i));
        match cell {
            Some(Cell::Binary(bytes)) => Ok(bytes),
            _ => bail!("{SCHEMA}.{TABLE} has no value for {name}"),
        }
    }

    fn number<const N: usize>(&self, name: &str) -> anyhow::Result<[u8; N]> {
        let bytes = self.cell(name)?;
        <[u8; N]>::try_from(&bytes[..])
            .ok()
            .with_context(|| format!("{SCHEMA}.{TABLE}.{name} has {} bytes", bytes.len()))
    }

    fn oid(&self, name: &str) -> anyhow::Result<u32> {
        Ok(u32::from_be_bytes(self.number(name)?))
    }

    fn u32(&self, name: &str) -> anyhow::Result<u32> {
        Ok(u32::try_from(i32::from_be_bytes(self.number(name)?))?)
    }

    fn u64(&self, name: &str) -> anyhow::Result<u64> {
        Ok(u64::try_from(i64::from_be_bytes(self.number(name)?))?)
    }

    fn i16(&self, name: &str) -> anyhow::Result<i16> {
        Ok(i16::from_be_bytes(self.number(name)?))
    }

    fn text(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::str::from_utf8(self.cell(name)?)?.to_owned())
    }

    fn i16s(&self, name: &str) -> anyhow::Result<Vec<i16>> {
        parse_i16_array(self.cell(name)?.clone())
            .with_context(|| format!("{SCHEMA}.{TABLE}.{name}"))
    }
}

/// array_send: dimensions, flags, element type, then (length, bound) per
/// dimension, then (length, value) per element.
fn parse_i16_array(bytes: Bytes) -> anyhow::Result<Vec<i16>> {
    let mut r = Reader::new(bytes);
    let dimensions = r.u32("array cut off")?;
    r.u32("array cut off")?;
    r.u32("array cut off")?;
    if dimensions == 0 {
        return Ok(Vec::new());
    }
    ensure!(dimensions == 1, "an array of {dimensions} dimensions");
    let count = r.u32("array cut off")? as usize;
    r.u32("array cut off")?;
    ensure!(count == r.remaining() / 6, "array cut off");
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        ensure!(r.u32("array cut off")? == 2, "an element is no int2");
        values.push(r.u16("array cut off")?.cast_signed());
    }
    r.end("bytes left over")?;
    Ok(values)
}

/// The order of a row key's columns, whatever the order of the index's.
fn ascending(mut attnums: Vec<i16>) -> Vec<i16> {
    attnums.sort_unstable();
    attnums
}

fn metric(name: &str) -> anyhow::Result<Metric> {
    Metric::from_name(name).with_context(|| format!("unknown metric {name:?}"))
}

/// All rows, as the client's transaction sees them.
pub async fn read_all(client: &Client, source: SourceId) -> anyhow::Result<Vec<CollectionSpec>> {
    let sql = "SELECT index_oid, definition_generation, table_oid, schema_name, table_name, \
               index_name, column_name, column_attnum, key_attnums, metric, dimensions, m, \
               ef_construction FROM ruvector.collections";
    let rows = client
        .query(sql, &[])
        .await
        .context("reading ruvector.collections")?;
    rows.iter()
        .map(|row| {
            let positive = |name: &str| -> anyhow::Result<u32> {
                Ok(u32::try_from(row.try_get::<_, i32>(name)?)?)
            };
            Ok(CollectionSpec {
                source,
                index_oid: row.try_get("index_oid")?,
                definition_generation: u64::try_from(
                    row.try_get::<_, i64>("definition_generation")?,
                )?,
                table_oid: row.try_get("table_oid")?,
                schema_name: row.try_get("schema_name")?,
                table_name: row.try_get("table_name")?,
                index_name: row.try_get("index_name")?,
                column_name: row.try_get("column_name")?,
                column_attnum: row.try_get("column_attnum")?,
                key_attnums: ascending(row.try_get("key_attnums")?),
                metric: metric(row.try_get("metric")?)?,
                dimensions: positive("dimensions")?,
                m: positive("m")?,
                ef_construction: positive("ef_construction")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn int2_arrays_are_read_and_cut_ones_refused() {
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 21, 0, 0, 0, 2, 0, 0, 0, 1];
        bytes.extend([0, 0, 0, 2, 0, 1, 0, 0, 0, 2, 0, 4]);
        assert_eq!(parse_i16_array(bytes.clone().into()).unwrap(), [1, 4]);
        for cut in 0..bytes.len() {
            assert!(
                parse_i16_array(Bytes::copy_from_slice(&bytes[..cut])).is_err(),
                "{cut}"
            );
        }
        let empty = vec![0; 12];
        assert_eq!(parse_i16_array(empty.into()).unwrap(), Vec::<i16>::new());
    }
}
