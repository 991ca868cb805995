//! The table of a collection: whether it can be followed, and its membership in
//! the publication.
//!
//! A table without a usable replica identity is never published: its owner's
//! UPDATE and DELETE would fail from then on.

use super::Shared;
use crate::feed::router;
use crate::source::sql::{self, identifier};
use crate::source::{definitions, rights};
use anyhow::Context;
use cluster_core::collection::CollectionSpec;
use cluster_core::ids::SourceId;
use cluster_core::map::PartitionMap;
use cluster_core::wal_position::Lsn;
use std::collections::BTreeSet;
use tokio_postgres::Client;
use tokio_postgres::types::Oid;

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The collection cannot be kept. The text is for the table's owner.
    #[error("{0}")]
    Unusable(String),
    /// The table is gone; the stream will say that the index is, too.
    #[error("table {0} is gone")]
    Gone(String),
    /// Not now: a lock, a connection.
    #[error(transparent)]
    Retry(#[from] anyhow::Error),
}

#[derive(Debug, Clone)]
pub struct KeyColumn {
    pub name: String,
    pub type_oid: Oid,
    /// Without a binary format its text output stands in row keys.
    pub has_binary: bool,
}

impl KeyColumn {
    pub fn selected(&self) -> String {
        let name = identifier(&self.name);
        if self.has_binary {
            name
        } else {
            format!("{name}::text")
        }
    }
}

#[derive(Debug, Clone)]
pub struct Table {
    /// Quoted, with its schema.
    pub name: String,
    /// In attribute-number order.
    pub keys: Vec<KeyColumn>,
    /// Quoted.
    pub vector: String,
    pub rows_estimated: u64,
}

/// A table that is published, the OID of its membership, and where the server's WAL
/// ended once that was seen.
#[derive(Debug, Clone)]
pub struct Published {
    pub table: Table,
    pub membership: Oid,
    pub seen_at: Lsn,
}

const LOOK: &str = "
SELECT c.relkind::text AS kind, c.relpersistence::text AS persistence,
       c.relreplident::text AS identity, n.nspname::text AS schema, c.relname::text AS name,
       greatest(c.reltuples, 0)::int8 AS rows,
       (SELECT a.attname::text FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum = $2 AND NOT a.attisdropped
           AND a.attgenerated = '') AS vector
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";

/// The key columns of the index that identifies rows in the stream (of the
/// primary key under FULL), if it is valid and immediate.
const KEYS: &str = "
SELECT a.attnum, a.attname::text AS name, a.atttypid AS type_oid,
       t.typsend::oid <> 0 AS has_binary
  FROM pg_class c
  JOIN pg_index i ON i.indrelid = c.oid
   AND CASE c.relreplident WHEN 'i' THEN i.indisreplident
                           WHEN 'n' THEN false ELSE i.indisprimary END
  JOIN pg_attribute a ON a.attrelid = c.oid
   AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
  JOIN pg_type t ON t.oid = a.atttypid
 WHERE c.oid = $1 AND i.indisvalid AND i.indimmediate AND i.indisunique
 ORDER BY a.attnum";

pub async fn look(client: &Client, spec: &CollectionSpec) -> Result<Table, TableError> {
    let error = |e: tokio_postgres::Error| TableError::Retry(anyhow::Error::new(e));
    let row = client
        .query_opt(LOOK, &[&spec.table_oid, &spec.column_attnum])
        .await
        .map_err(error)?
        .ok_or_else(|| TableError::Gone(spec.table_name.clone()))?;
    let schema: String = row.try_get("schema").map_err(error)?;
    let name: String = row.try_get("name").map_err(error)?;
    let shown = format!("{schema}.{name}");
    let unusable = |why: &str| TableError::Unusable(format!("table {shown} {why}"));
    let kind: String = row.try_get("kind").map_err(error)?;
    if kind != "r" {
        return Err(unusable("is not an ordinary table"));
    }
    if row.try_get::<_, String>("persistence").map_err(error)? != "p" {
        return Err(unusable(
            "is unlogged or temporary: its changes are not in the WAL",
        ));
    }
    let vector: Option<String> = row.try_get("vector").map_err(error)?;
    let vector = vector.ok_or_else(|| unusable("has no such column, or it is generated"))?;
    let mut attnums = Vec::new();
    let mut keys = Vec::new();
    for row in client
        .query(KEYS, &[&spec.table_oid])
        .await
        .map_err(error)?
    {
        attnums.push(row.try_get::<_, i16>("attnum").map_err(error)?);
        keys.push(KeyColumn {
            name: row.try_get("name").map_err(error)?,
            type_oid: row.try_get("type_oid").map_err(error)?,
            has_binary: row.try_get("has_binary").map_err(error)?,
        });
    }
    if keys.is_empty() {
        return Err(unusable(
            "has no usable replica identity: it needs a primary key that is not deferrable",
        ));
    }
    let mut expected = spec.key_attnums.clone();
    expected.sort_unstable();
    if attnums != expected {
        let index = &spec.index_name;
        return Err(unusable(&format!(
            "has another replica identity than when {index} was created; REINDEX it"
        )));
    }
    let rows: i64 = row.try_get("rows").map_err(error)?;
    Ok(Table {
        name: format!("{}.{}", identifier(&schema), identifier(&name)),
        keys,
        vector: identifier(&vector),
        rows_estimated: u64::try_from(rows).unwrap_or(0),
    })
}

const MEMBERSHIP: &str = "
SELECT r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
 WHERE p.pubname = $1 AND r.prrelid = $2";

/// Puts the table into the publication, in a short transaction that waits for
/// no lock for long, and looks again while it holds the table's lock.
pub async fn publish(shared: &Shared, spec: &CollectionSpec) -> Result<Published, TableError> {
    let _one_at_a_time = shared.publication_lock.lock().await;
    let client = sql::connect(&shared.postgres).await?;
    let table = look(&client, spec).await?;
    if let Some(membership) = membership(&client, shared, spec).await? {
        return seen(&client, table, membership).await;
    }
    let publish = rights::publish(&client, &shared.publication, spec.table_oid, &table.name);
    let alter = format!(
        "BEGIN; SET LOCAL lock_timeout = {}; {}",
        shared.context.config.publication_lock_timeout_ms,
        publish.await?
    );
    client
        .batch_execute(&alter)
        .await
        .context("adding the table to the publication")?;
    // Dropping the client rolls back.
    let table = look(&client, spec).await?;
    let membership = membership(&client, shared, spec)
        .await?
        .context("the table is not in the publication that it was added to")?;
    client
        .batch_execute("COMMIT")
        .await
        .context("adding the table to the publication")?;
    seen(&client, table, membership).await
}

async fn seen(client: &Client, table: Table, membership: Oid) -> Result<Published, TableError> {
    let row = client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await;
    let at: String = row
        .and_then(|row| row.try_get(0))
        .context("reading where the server's WAL ends")?;
    Ok(Published {
        table,
        membership,
        seen_at: at.parse().context("a WAL position")?,
    })
}

async fn membership(
    client: &Client,
    shared: &Shared,
    spec: &CollectionSpec,
) -> Result<Option<Oid>, TableError> {
    let error = |e: tokio_postgres::Error| TableError::Retry(anyhow::Error::new(e));
    let row = client
        .query_opt(MEMBERSHIP, &[&shared.publication, &spec.table_oid])
        .await
        .map_err(error)?;
    row.map(|row| row.try_get(0)).transpose().map_err(error)
}

const PUBLISHED: &str = "
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name
  FROM pg_publication_rel r
  JOIN pg_publication p ON p.oid = r.prpubid
  JOIN pg_class c ON c.oid = r.prrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = $1 AND c.oid <> 'ruvector.collections'::regclass";

/// Takes every table out of the publication that no collection needs, whoever
/// has left it there. One that is locked does not keep the others in.
pub async fn unpublish_unused(shared: &Shared) -> anyhow::Result<()> {
    let _one_at_a_time = shared.publication_lock.lock().await;
    let map = shared.context.client.map();
    let source = shared.context.source;
    let client = sql::connect(&shared.postgres).await?;
    let defined = definitions::read_all(&client, source).await?;
    let needed = needed_tables(&map, source, &defined);
    let mut problem = Ok(());
    for row in client.query(PUBLISHED, &[&shared.publication]).await? {
        let oid: Oid = row.try_get("oid")?;
        if needed.contains(&oid) {
            continue;
        }
        let schema = identifier(row.try_get("schema")?);
        let table = format!("{schema}.{}", identifier(row.try_get("name")?));
        let unpublish = rights::unpublish(&client, &shared.publication, oid, &table);
        let alter = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; {}",
            shared.context.config.publication_lock_timeout_ms,
            unpublish.await?
        );
        let end = match client.batch_execute(&alter).await {
            Ok(()) => {
                // A CREATE INDEX may have held the lock that this waited for.
                let defined = definitions::read_all(&client, source).await?;
                let is_needed = needed_tables(&map, source, &defined).contains(&oid);
                if is_needed { "ROLLBACK" } else { "COMMIT" }
            }
            Err(error) => {
                problem = Err(error).context("taking a table out of the publication");
                "ROLLBACK"
            }
        };
        client.batch_execute(end).await?;
    }
    problem
}

/// The tables of the collections that are fed, and of definitions that are not
/// collections yet: those are on their way in the stream.
fn needed_tables(
    map: &PartitionMap,
    source: SourceId,
    defined: &[CollectionSpec],
) -> BTreeSet<Oid> {
    let of_source = map.collections.values().filter(|c| c.spec.source == source);
    let fed = of_source.filter(|c| router::is_fed(map, source, c.id));
    let coming = defined.iter().filter(|spec| {
        map.collection_by_index(source, spec.index_oid, spec.definition_generation)
            .is_none()
    });
    let fed = fed.map(|c| c.spec.table_oid);
    fed.chain(coming.map(|spec| spec.table_oid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_core::collection::{Collection, CollectionState, Metric};
    use cluster_core::ids::{BackfillId, CollectionId};

    fn spec(source: u64, index_oid: u32, table_oid: u32) -> CollectionSpec {
        CollectionSpec {
            source: SourceId(source),
            index_oid,
            definition_generation: 1,
            table_oid,
            schema_name: "public".to_owned(),
            table_name: "t".to_owned(),
            index_name: "i".to_owned(),
            column_name: "v".to_owned(),
            column_attnum: 2,
            key_attnums: vec![1],
            metric: Metric::L2,
            dimensions: 2,
            m: 16,
            ef_construction: 64,
        }
    }

    #[test]
    fn a_table_stays_published_for_what_is_fed_and_for_what_is_still_coming() {
        let mut map = PartitionMap::default();
        let building = CollectionState::Building {
            backfill: BackfillId(1),
        };
        let failed = CollectionState::Failed {
            reason: "why".to_owned(),
        };
        let collections = [
            (1, spec(1, 11, 101), building.clone()),
            (2, spec(1, 12, 102), failed),
            (3, spec(2, 13, 103), building),
        ];
        for (id, spec, state) in collections {
            let id = CollectionId(id);
            let last_backfill = BackfillId(1);
            let collection = Collection {
                id,
                spec,
                state,
                last_backfill,
                reconcile: None,
            };
            map.collections.insert(id, collection);
        }
        let defined = [spec(1, 11, 101), spec(1, 12, 102), spec(1, 14, 104)];
        let needed = needed_tables(&map, SourceId(1), &defined);
        assert_eq!(needed, BTreeSet::from([101, 104]));
    }
}
