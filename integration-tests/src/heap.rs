//! A table as the heap has it, and whether every replica of its index has the same.

use crate::cluster::Cluster;
use crate::direct_search::{DirectSearch, assert_replicas_hold};
use crate::items::{Items, clustered_vector, literal};
use crate::sql::Session;
use anyhow::{Context, Result, ensure};
use cluster_core::row_key::RowKey;
use std::collections::BTreeMap;

impl Items {
    /// The rows that have a vector, by key, with their distances from `query`.
    pub fn heap(&self, session: &mut Session, query: &[f32]) -> Result<BTreeMap<Vec<u8>, f64>> {
        session.batch_execute("SET enable_indexscan = off; SET enable_seqscan = on")?;
        let sql = format!(
            "SELECT id, embedding <-> '{}' FROM {} WHERE embedding IS NOT NULL",
            literal(query),
            self.name
        );
        let rows = session.query(&sql, &[])?;
        session.batch_execute("RESET enable_indexscan; RESET enable_seqscan")?;
        let by_key = rows.iter().map(|row| {
            let id: i64 = row.get(0);
            let key = RowKey::from_columns([id.to_be_bytes().as_slice()])
                .ok()
                .context("a row key")?;
            Ok((key.as_bytes().to_vec(), row.get(1)))
        });
        by_key.collect()
    }

    /// The table rests: SQL finds every row once, and every replica holds the heap's
    /// rows with the heap's vectors, and no others.
    pub fn assert_equals_heap(&self, cluster: &Cluster, rows_min: usize) -> Result<()> {
        let mut session = cluster.session()?;
        session.wait_for(&self.index(), false)?;
        session.batch_execute(
            "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 20000",
        )?;
        self.assert_every_row_once(&mut session)?;
        let query = clustered_vector(7, self.dimensions);
        let end = session.value("SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")?;
        let heap = self.heap(&mut session, &query)?;
        ensure!(heap.len() >= rows_min, "{} rows are no test", heap.len());
        let wire = cluster.wire()?;
        let search = DirectSearch::new(wire.map()?, &self.index(), query)?;
        assert_replicas_hold(&wire, &search, end.parse()?, &heap)
    }
}
