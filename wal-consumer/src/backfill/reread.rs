//! Rows read again by their key, on whatever snapshot the client's transaction
//! has. Keys travel as the raw bytes that they are.

use super::table::{self, Table, TableError};
use crate::vector;
use bytes::{BufMut, BytesMut};
use cluster_core::change::BackfillRow;
use cluster_core::collection::CollectionSpec;
use cluster_core::row_key::RowKey;
use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Retry(#[from] anyhow::Error),
}

/// A value in its type's binary format, whatever the type.
#[derive(Debug)]
struct Raw(Vec<u8>);

impl ToSql for Raw {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The rows of `keys` that exist and have a vector.
pub async fn rows(
    client: &Client,
    table: &Table,
    dimensions: u32,
    keys: &[RowKey],
) -> Result<Vec<BackfillRow>, RereadError> {
    let error = |e: tokio_postgres::Error| RereadError::Retry(anyhow::Error::new(e));
    let conditions: Vec<String> = table
        .keys
        .iter()
        .enumerate()
        .map(|(i, key)| format!("{} = ${}", key.selected(), i + 1))
        .collect();
    let select = format!(
        "SELECT {vector} FROM ONLY {name} WHERE {vector} IS NOT NULL AND {conditions}",
        vector = table.vector,
        name = table.name,
        conditions = conditions.join(" AND ")
    );
    let statement = client.prepare(&select).await.map_err(error)?;
    let mut found = Vec::new();
    for key in keys {
        let columns = key
            .columns()
            .map_err(|e| RereadError::Unusable(e.to_string()))?;
        if columns.len() != table.keys.len() {
            return Err(RereadError::Unusable(
                "a row key of another table".to_owned(),
            ));
        }
        let values: Vec<Raw> = columns.into_iter().map(|c| Raw(c.to_vec())).collect();
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as _).collect();
        let row = client.query_opt(&statement, &values).await.map_err(error)?;
        if let Some(row) = row {
            let Raw(bytes) = row.try_get(0).map_err(error)?;
            let vector = vector::decode(&bytes, dimensions)
                .map_err(|e| RereadError::Unusable(e.to_string()))?;
            found.push(BackfillRow {
                key: key.clone(),
                vector,
            });
        }
    }
    Ok(found)
}

/// The rows as they are committed now.
pub async fn current(
    client: &Client,
    spec: &CollectionSpec,
    keys: &[RowKey],
) -> Result<Vec<BackfillRow>, RereadError> {
    let table = match table::look(client, spec).await {
        Ok(table) => table,
        Err(TableError::Unusable(reason)) => return Err(RereadError::Unusable(reason)),
        Err(TableError::Gone(_)) => return Ok(Vec::new()),
        Err(TableError::Retry(error)) => return Err(RereadError::Retry(error)),
    };
    rows(client, &table, spec.dimensions, keys).await
}
