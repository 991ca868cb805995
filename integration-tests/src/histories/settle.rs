//! Once nobody writes: heap, searches and every replica agree exactly (P2, P3).
//!
//! Two judges compare the replicas with the heap. `ruvector_verify` compares every key
//! and each bit of every vector on each replica's disk, and names what differs. The other
//! one shares no line of its code: keys are made by SQL, rows come through each node's
//! searches, and distances from one probe are Postgres's own. So a mistake that verify
//! shares with what it judges (how a key is written, how a stored row is read, which replicas there are)
//! does not hide behind it, and what a node holds in memory, of which verify says
//! nothing, is seen as well. One probe is enough, for verify has the bits.

use super::check::{Asker, Check, Compared, Consistency};
use super::record::Record;
use super::script::Script;
use super::shape::Table;
use crate::cluster::Cluster;
use crate::direct_search::{DirectSearch, assert_replicas_hold};
use crate::settled::wait_until_settled;
use crate::sql::Session;
use crate::verified::{Difference, Verified};
use crate::wire::Wire;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const REPLICAS: usize = 2;
const RECONNECTS_WITHIN: Duration = Duration::from_secs(60);
const ALL_SERVE_WITHIN: Duration = Duration::from_secs(30);
/// Longer than a node keeps a search that nobody goes on with.
const SEARCHES_END_WITHIN: Duration = Duration::from_secs(20);
const POLL_EVERY: Duration = Duration::from_millis(100);
/// No row is made from it.
const PROBE: u64 = 1_000_001;

pub fn check(cluster: &Cluster, wire: &Wire, script: &Script, record: &Record) -> Result<()> {
    let mut session = cluster.session_within(RECONNECTS_WITHIN)?;
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 50000; \
         SET history.writer = 0",
    )?;
    for sql in repairs(&mut session, script)? {
        session.batch_execute(&sql).with_context(|| sql.clone())?;
        record.tell("settle", &sql, "done");
    }
    wait_until_settled(wire, REPLICAS, "all replicas serve again")?;
    for leaf in indexes(&mut session, script)? {
        session.wait_for(&leaf.index, false)?;
    }
    for table in &script.tables {
        answers_are_the_heaps(&mut session, table)?;
    }
    record.tell("settle", "searches", "agree with the heap");
    let end = session.value("SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")?;
    let leaves = indexes(&mut session, script)?;
    ensure!(!leaves.is_empty(), "no index is left");
    for leaf in &leaves {
        replicas_are_equal(&mut session, &leaf.index)?;
        replicas_hold_the_heap(&mut session, wire, leaf, end.parse()?)
            .with_context(|| format!("replicas of {}", leaf.index))?;
    }
    record.tell("settle", "replicas", "agree with the heap");
    Ok(())
}

/// Searches that the cluster has answered since the server started: how much of a
/// history went past the index is seen here.
pub fn searches(cluster: &Cluster) -> Result<u64> {
    let mut session = cluster.session_within(RECONNECTS_WITHIN)?;
    let sql = "SELECT coalesce(sum(value), 0)::bigint FROM ruvector_visibility_stats WHERE counter = 'searches'";
    Ok(session.value(sql)?.parse()?)
}

/// Commands that were cut off leave invalid indexes, detached partitions, or no index.
fn repairs(session: &mut Session, script: &Script) -> Result<Vec<String>> {
    let schema = format!("h{}", script.seed);
    let invalid = session.query(
        "SELECT format('DROP INDEX %s', indexrelid::regclass) FROM pg_index JOIN pg_class c ON c.oid = indexrelid \
         WHERE NOT indisvalid AND c.relkind = 'i' AND c.relnamespace = $1::text::regnamespace \
         AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid)",
        &[&schema],
    )?;
    let mut repairs: Vec<String> = invalid.iter().map(|row| row.get(0)).collect();
    for table in &script.tables {
        let name = table.full_name();
        let detached = format!(
            "SELECT to_regclass('{name}_1') IS NOT NULL AND NOT EXISTS \
             (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('{name}_1'))"
        );
        if table.is_partitioned && session.value(&detached)? == "t" {
            repairs.push(format!("DELETE FROM {name}_rest WHERE part = 1"));
            // A column that came or went meanwhile did so on one side only.
            for side in [name.clone(), format!("{name}_1")] {
                repairs.push(format!("ALTER TABLE {side} DROP COLUMN IF EXISTS extra"));
            }
            repairs.push(format!(
                "ALTER TABLE {name} ATTACH PARTITION {name}_1 FOR VALUES IN (1)"
            ));
        }
        repairs.push(table.create_index("IF NOT EXISTS"));
    }
    Ok(repairs)
}

/// An index with rows of its own, and how a row key is made of its table's columns.
struct Leaf {
    oid: u32,
    index: String,
    table: String,
    key: String,
}

/// All indexes of the history's tables, as Postgres's catalog has them. Values of the
/// replica identity's columns, each behind its length, in the order of the table's columns.
fn indexes(session: &mut Session, script: &Script) -> Result<Vec<Leaf>> {
    let rows = session.query(
        "SELECT i.indexrelid, i.indexrelid::regclass::text, t.oid::regclass::text, \
                (SELECT string_agg(format('int4send(octet_length(%1$s(%2$I))) || %1$s(%2$I)', y.typsend, a.attname), \
                                   ' || ' ORDER BY a.attnum) \
                 FROM pg_index k JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY (k.indkey) \
                 JOIN pg_type y ON y.oid = a.atttypid \
                 WHERE k.indrelid = t.oid \
                   AND CASE t.relreplident WHEN 'i' THEN k.indisreplident ELSE k.indisprimary END) \
         FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam \
         JOIN pg_class t ON t.oid = i.indrelid \
         WHERE m.amname = 'ruhnsw' AND x.relkind = 'i' AND x.relnamespace = $1::text::regnamespace",
        &[&format!("h{}", script.seed)],
    )?;
    rows.iter()
        .map(|row| {
            Ok(Leaf {
                oid: row.try_get(0)?,
                index: row.try_get(1)?,
                table: row.try_get(2)?,
                key: row.try_get(3)?,
            })
        })
        .collect()
}

/// Every row, by way of the index.
fn answers_are_the_heaps(session: &mut Session, table: &Table) -> Result<()> {
    let check = Check::of(table, PROBE);
    let rows = session.query(&check.sql(), &[])?;
    let mut compared = Compared::default();
    compared.take(&rows)?;
    compared
        .judge(None, Consistency::Strong, &Asker::now(0))
        .with_context(|| check.sql())?;
    let nearest = format!(
        "SELECT n FROM {} ORDER BY {}",
        table.full_name(),
        table.distance(PROBE)
    );
    session.explain(&nearest)?.assert_answered_by_the_cluster()
}

/// By the product's own comparison. A difference counts at once. That all replicas are
/// named and serve may take a moment: the server has to hear of the newest map, and one
/// that was slow, on a busy machine, was left behind once more and learns anew.
fn replicas_are_equal(session: &mut Session, index: &str) -> Result<()> {
    let deadline = Instant::now() + ALL_SERVE_WITHIN;
    loop {
        let verified = Verified::all(session, index);
        let verified = verified.with_context(|| format!("verifying {index}"))?;
        let mut per_partition: BTreeMap<i64, usize> = BTreeMap::new();
        for replica in &verified {
            *per_partition.entry(replica.partition).or_default() += 1;
        }
        let are_all_named =
            !verified.is_empty() && per_partition.values().all(|count| *count == REPLICAS);
        if are_all_named && verified.iter().all(Verified::is_equal) {
            return Ok(());
        }
        if verified.iter().any(Verified::serves_a_difference) || Instant::now() > deadline {
            let named = Difference::all(session, index)?;
            bail!("replicas of {index} differ from the heap in {named:?}: {verified:?}");
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// By a scan of each replica: keys, and distances from a probe.
fn replicas_hold_the_heap(session: &mut Session, wire: &Wire, leaf: &Leaf, end: u64) -> Result<()> {
    let dimensions = format!(
        "SELECT coalesce(atttypmod, 0) FROM pg_attribute \
        WHERE attrelid = '{}'::regclass AND attname = 'embedding'",
        leaf.table
    );
    let dimensions: u64 = session.value(&dimensions)?.parse()?;
    let operator = format!(
        "SELECT o.oprname FROM pg_index i JOIN pg_opclass c ON c.oid = i.indclass[0] \
        JOIN pg_amop a ON a.amopfamily = c.opcfamily JOIN pg_operator o ON o.oid = a.amopopr \
        WHERE i.indexrelid = {}",
        leaf.oid
    );
    let operator = session.value(&operator)?;
    let vector = format!("history_vector({dimensions}, {PROBE})");
    let query: Vec<f32> = session
        .query_one(&format!("SELECT {vector}::real[]"), &[])?
        .try_get(0)?;
    let heap = format!(
        "SELECT {}, embedding {operator} {vector} FROM {} WHERE embedding IS NOT NULL",
        leaf.key, leaf.table
    );
    let mut rows: BTreeMap<Vec<u8>, f64> = BTreeMap::new();
    for row in session.query(&heap, &[])? {
        rows.insert(row.try_get(0)?, row.try_get(1)?);
    }
    // As long as a search is open that came before the end of a version, the node goes on
    // finding that version: the heap has the last word. It holds none for ever.
    let deadline = Instant::now() + SEARCHES_END_WITHIN;
    loop {
        let search = DirectSearch::of_index(wire.map()?, leaf.oid, query.clone())?;
        match assert_replicas_hold(wire, &search, end, &rows) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(POLL_EVERY),
            held => return held,
        }
    }
}
