//! A node that folds slower than rows come: it may die in the middle of it, and it says so
//! when others wait for it. (That it may die while it writes a checkpoint too is tested where
//! that moment can be caught: in `cluster-node`.)
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::history::wait_until;
use integration_tests::{Cluster, Items, Session, Shape};
use std::time::Instant;

const DIMENSIONS: usize = 128;
const NODE: &str = "node-1";
/// One partition, of which reports come often.
const COORDINATOR: &str =
    "partitions_per_node = 1\nleases.ttl_ms = 3000\nleases.renew_every_ms = 200";
/// A checkpoint is due when a quarter of the rows have changed, and begins as soon as no
/// more than a quarter are in the tail: with that tail.
const CHECKPOINTS: &str =
    "apply.checkpoint_rows = 1000\napply.prune_every_ms = 20\napply.fold_threads = 1";
/// Each takes some time to fold.
const BURST: i64 = 8_000;
/// Some seconds of folding.
const FLOOD: i64 = 40_001;

fn cluster(name: &str, node: &str) -> Result<Cluster> {
    let settings = [
        ("COORDINATOR_SETTINGS", COORDINATOR),
        ("NODE_SETTINGS", node),
    ];
    let cluster = Cluster::start_with(name, Shape::ONE, &settings)?;
    cluster.wire()?.wait_for_nodes(1)?;
    Ok(cluster)
}

/// Rows that a search of now scans beside the graph.
fn tail(session: &mut Session, items: &Items) -> Result<u64> {
    session.explain(&items.nearest(1, 1))?.count("tail_rows")
}

fn checkpoints(cluster: &Cluster) -> Result<f64> {
    cluster.metric(NODE, "ruvector_node_checkpoints_total")
}

/// SIGKILL as soon as part of `rows` rows, the last of which have just been written, are seen
/// in the tail.
fn kill_in_mid_fold(
    cluster: &Cluster,
    session: &mut Session,
    items: &Items,
    rows: i64,
) -> Result<()> {
    let mut in_tail = 0;
    wait_until("rows are in the tail", || {
        in_tail = tail(session, items)?;
        Ok(in_tail > 0)
    })?;
    cluster.kill(NODE)?;
    println!("killed with about {in_tail} of {rows} rows in the tail");
    ensure!(in_tail < rows as u64, "{in_tail} of {rows}");
    Ok(())
}

/// What the node has logged last with these words: the numbers by name.
fn logged(cluster: &Cluster, words: &str, name: &str) -> Result<u64> {
    let path = cluster.run_dir().join(format!("logs/{NODE}.log"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let line = text.lines().rfind(|line| line.contains(words));
    let line = line.with_context(|| format!("{NODE} has not logged {words:?}"))?;
    let field = format!("{name}=");
    let value = line.split(' ').find_map(|word| word.strip_prefix(&field));
    let value = value.with_context(|| format!("no {name} in {line:?}"))?;
    value.parse().with_context(|| line.to_owned())
}

/// The node has taken up a checkpoint and put what changed since into its tail.
fn assert_took_up_a_checkpoint(cluster: &Cluster) -> Result<()> {
    let path = cluster.run_dir().join(format!("logs/{NODE}.log"));
    wait_until("it has recovered", || {
        let log = std::fs::read_to_string(&path)?;
        Ok(log.contains("partition recovered"))
    })?;
    let of = |words, name| logged(cluster, words, name);
    let (number, rows) = (
        of("checkpoint loaded", "number")?,
        of("checkpoint loaded", "rows")?,
    );
    println!("checkpoint {number} was loaded: {rows} rows");
    ensure!(rows > 0, "an empty one");
    let (rows, tail) = (
        of("partition recovered", "rows")?,
        of("partition recovered", "tail")?,
    );
    println!("recovered: {rows} rows, {tail} of them in the tail");
    ensure!(0 < tail && tail < rows, "{tail} of {rows}");
    let unusable = cluster.metric(NODE, "ruvector_node_checkpoints_unusable_total")?;
    ensure!(unusable == 0.0, "{unusable} were put aside");
    Ok(())
}

/// Every row of the heap is found once, and with its vector.
fn assert_whole(cluster: &Cluster, items: &Items) -> Result<()> {
    let mut session = cluster.session()?;
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
    )?;
    items.assert_every_row_once(&mut session)?;
    let recall = items.recall_at_10(&mut session, 20)?;
    ensure!(recall >= 0.9, "recall {recall}");
    Ok(())
}

#[test]
fn p2_p3_a_node_killed_in_mid_fold_has_every_row_once() -> Result<()> {
    let cluster = cluster("mid-fold", CHECKPOINTS)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "mid_fold", BURST, DIMENSIONS)?;
    session.wait_for(&items.index(), true)?;
    wait_until("a checkpoint is taken", || Ok(checkpoints(&cluster)? > 0.0))?;

    session.batch_execute("SET ruvector.read_consistency = eventual")?;
    items.insert(&mut session, BURST + 1..3 * BURST + 1)?;
    kill_in_mid_fold(&cluster, &mut session, &items, 3 * BURST)?;
    let sql = "DELETE FROM mid_fold WHERE id % 50 = 7;
               UPDATE mid_fold AS row SET embedding = next.embedding
                 FROM mid_fold AS next WHERE row.id % 50 = 8 AND next.id = row.id + 1";
    session.batch_execute(sql)?;
    cluster.restart(NODE)?;
    assert_took_up_a_checkpoint(&cluster)?;
    assert_whole(&cluster, &items)?;
    drop(session);
    cluster.finish()
}

/// How many waits for folding begin in the node's log, and how many end.
fn waits_in_log(cluster: &Cluster, begins: &str) -> Result<[usize; 2]> {
    let log = std::fs::read_to_string(cluster.run_dir().join(format!("logs/{NODE}.log")))?;
    let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    Ok([begins, "changes wait no longer"].map(lines))
}

/// Whoever is asked what the cluster does names the partition, its index and its tail.
#[test]
fn p8_rows_that_wait_for_folding_are_told_to_the_operator_until_they_wait_no_more() -> Result<()> {
    let cluster = cluster(
        "flood",
        "apply.tail_rows_max = 2000\napply.fold_threads = 1",
    )?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "flood", 100, DIMENSIONS)?;
    let status = format!(
        "SELECT coalesce(reason, '') FROM ruvector_index_status('{}')",
        items.index()
    );
    wait_until("nothing waits", || Ok(session.value(&status)?.is_empty()))?;
    let flooded = Instant::now();
    items.insert(&mut session, 101..FLOOD)?;
    let reason = "waits for folding: its tail holds ";
    let named = format!("of {} on node 1 {reason}", items.index());
    wait_until("the index's status says so", || {
        Ok(session.value(&status)?.contains(&named))
    })?;
    let limit = "at most 2000 (apply.tail_rows_max)";
    // Between two waits a report may say nothing.
    for (command, field) in [("status", "/problems"), ("lag", "/0/waits")] {
        wait_until("ctl says so", || {
            let said = cluster.ctl(command)?;
            let said = said.pointer(field).context("no such field")?.to_string();
            Ok(said.contains(&named) && said.contains(limit))
        })?;
    }

    session.wait_for(&items.index(), true)?;
    wait_until("it is told no more", || {
        Ok(session.value(&status)?.is_empty())
    })?;
    let said = cluster.ctl("status")?["problems"].to_string();
    ensure!(!said.contains(reason), "status: {said}");
    // It says that a wait is over within a second of it.
    wait_until("the log tells the end of every wait", || {
        let [began, ended] = waits_in_log(&cluster, reason)?;
        Ok(began > 0 && began == ended)
    })?;
    let [told, _] = waits_in_log(&cluster, reason)?;
    println!("told {told} times in the log");
    // Waits of one commit after another are one: waits end by the second.
    let at_most = flooded.elapsed().as_secs() as usize + 1;
    ensure!(told <= at_most, "{told} times in {at_most} s");
    assert_whole(&cluster, &items)?;
    drop(session);
    cluster.finish()
}
