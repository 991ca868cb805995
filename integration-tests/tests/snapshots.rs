//! P1: the heap decides under the query's snapshot: no row that the snapshot
//! does not see, and none missing that it sees although it has ended since.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Items, Session, Standby, clustered_vector, literal};
use std::time::{Duration, Instant};

#[test]
fn p1_rows_deleted_and_updated_by_others_stay_in_an_older_snapshot() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    let items = Items::indexed(&mut writer, "snap_rr", 400, 12)?;
    let query = literal(&clustered_vector(50, 12));
    let sql = format!("SELECT id FROM snap_rr ORDER BY embedding <-> '{query}' LIMIT 20");
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let before = reader.ids(&sql)?;
    writer.batch_execute(&format!(
        "DELETE FROM snap_rr WHERE id IN ({}); UPDATE snap_rr SET embedding = '{}' WHERE id IN ({})",
        join(&before[..7]),
        literal(&[50.0f32; 12]),
        join(&before[7..14])
    ))?;
    // The writer's own read waits until the cluster has applied its changes.
    assert!(!writer.ids(&sql)?.iter().any(|id| before[..14].contains(id)));
    assert_eq!(
        reader.ids(&sql)?,
        before,
        "the older snapshot sees what it saw"
    );
    reader.explain(&sql)?.assert_answered_by_the_cluster()?;
    items.assert_every_row_once(&mut reader)?;
    reader.batch_execute("COMMIT")?;
    assert!(!reader.ids(&sql)?.iter().any(|id| before[..14].contains(id)));
    items.assert_every_row_once(&mut reader)
}

#[test]
fn p1_an_open_cursor_sees_neither_less_nor_more_than_its_snapshot() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    Items::indexed(&mut writer, "snap_cursor", 1_000, 12)?;
    let query = literal(&clustered_vector(5, 12));
    reader.batch_execute(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM snap_cursor ORDER BY embedding <-> '{query}'"
    ))?;
    let mut got = reader.ids("FETCH 10 FROM c")?;
    writer.batch_execute(&format!(
        "DELETE FROM snap_cursor WHERE id % 2 = 0;
         UPDATE snap_cursor SET embedding = '{}' WHERE id % 5 = 0;
         INSERT INTO snap_cursor SELECT i, 0, '{query}' FROM generate_series(5001, 5050) i",
        literal(&[-30.0f32; 12])
    ))?;
    writer.ids(&format!(
        "SELECT id FROM snap_cursor ORDER BY embedding <-> '{query}' LIMIT 1"
    ))?;
    got.extend(reader.ids("FETCH ALL FROM c")?);
    reader.batch_execute("COMMIT")?;
    got.sort_unstable();
    assert_eq!(got, (1..=1_000).collect::<Vec<i64>>());
    Ok(())
}

#[test]
fn p1_a_row_inserted_by_an_open_transaction_is_invisible_to_others() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    Items::indexed(&mut writer, "snap_open", 100, 12)?;
    let near = literal(&[8.0f32; 12]);
    let sql = format!("SELECT id FROM snap_open ORDER BY embedding <-> '{near}' LIMIT 1");
    writer.batch_execute(&format!(
        "BEGIN; INSERT INTO snap_open VALUES (901, 0, '{near}')"
    ))?;
    assert_ne!(reader.ids(&sql)?, [901]);
    writer.batch_execute("COMMIT")?;
    reader.batch_execute("SET ruvector.read_consistency = strong")?;
    assert_eq!(reader.ids(&sql)?, [901]);
    Ok(())
}

#[test]
fn p1_a_snapshot_older_than_the_backfill_is_scanned_exactly() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    let items = Items::create(&mut writer, "snap_older", 200, 12)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    reader.ids("SELECT count(*) FROM snap_older")?;
    writer.batch_execute("DELETE FROM snap_older WHERE id <= 100")?;
    items.create_index(&mut writer, "vector_l2_ops")?;
    let query = literal(&clustered_vector(1, 12));
    let got = reader.ids(&format!(
        "SELECT id FROM snap_older ORDER BY embedding <-> '{query}'"
    ))?;
    assert_eq!(
        got.len(),
        200,
        "the snapshot from before the DELETE sees all rows"
    );
    Ok(())
}

/// Former versions that the nodes keep, all together.
fn kept(cluster: &Cluster) -> Result<f64> {
    let mut sum = 0.0;
    for node in cluster.node_processes()? {
        sum += cluster.metric(&node, "ruvector_node_former_versions")?;
    }
    Ok(sum)
}

fn wait_until_kept(cluster: &Cluster, what: &str, is_so: impl Fn(f64) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so(kept(cluster)?) {
        let kept = kept(cluster)?;
        ensure!(Instant::now() < deadline, "not {what}: {kept} are kept");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// While `holder` needs them, no version that has ended is dropped; then all are.
fn assert_kept_while_held(
    cluster: &Cluster,
    items: &Items,
    release: impl FnOnce() -> Result<()>,
) -> Result<()> {
    const ENDED: f64 = 60.0;
    let mut writer = cluster.session()?;
    writer.batch_execute(&format!(
        "DELETE FROM {table} WHERE id <= 30; UPDATE {table} SET embedding = embedding + embedding WHERE id BETWEEN 31 AND 60",
        table = items.name
    ))?;
    // Each is on both nodes.
    wait_until_kept(cluster, "kept", |kept| kept >= 2.0 * ENDED)?;
    // Longer than nodes and consumer let pass between two looks, and what comes after
    // goes by.
    let until = Instant::now() + Duration::from_secs(4);
    let mut id = 5_000;
    while Instant::now() < until {
        items.insert(&mut writer, id..id + 1)?;
        writer.batch_execute(&format!("DELETE FROM {} WHERE id = {id}", items.name))?;
        id += 1;
        let kept = kept(cluster)?;
        ensure!(kept >= 2.0 * ENDED, "{kept} are kept, of {ENDED} twice");
        std::thread::sleep(Duration::from_millis(200));
    }
    release()?;
    wait_until_kept(cluster, "dropped", |kept| kept == 0.0)
}

/// Nothing older holds anything.
fn nothing_kept(cluster: &Cluster, session: &mut Session, name: &str) -> Result<Items> {
    let items = Items::indexed(session, name, 200, 8)?;
    wait_until_kept(cluster, "none", |kept| kept == 0.0)?;
    Ok(items)
}

#[test]
fn p1_former_versions_are_kept_for_an_open_snapshot_and_dropped_after() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut reader = cluster.session()?;
    let items = nothing_kept(&cluster, &mut reader, "kept_open")?;
    let all = "SELECT id FROM kept_open ORDER BY embedding <-> '[0,0,0,0,0,0,0,0]'";
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let before = reader.ids(all)?;
    assert_kept_while_held(&cluster, &items, || {
        ensure!(reader.ids(all)? == before, "the snapshot sees what it saw");
        reader.explain(all)?.assert_answered_by_the_cluster()?;
        Ok(reader.batch_execute("COMMIT")?)
    })
}

#[test]
fn p1_former_versions_are_kept_while_a_prepared_transaction_may_need_them() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = nothing_kept(&cluster, &mut session, "kept_prepared")?;
    session.batch_execute(
        "BEGIN; INSERT INTO kept_prepared VALUES (900, 0, NULL); PREPARE TRANSACTION 'keeps'",
    )?;
    let held = assert_kept_while_held(&cluster, &items, || {
        Ok(session.batch_execute("COMMIT PREPARED 'keeps'")?)
    });
    if held.is_err() {
        // It would hold the next test's, too.
        let _ = cluster
            .session()?
            .batch_execute("ROLLBACK PREPARED 'keeps'");
    }
    held
}

#[test]
fn p1_former_versions_are_kept_for_a_standby_that_reports_its_snapshots() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = nothing_kept(&cluster, &mut session, "kept_standby")?;
    let standby = Standby::of(&cluster)?;
    let mut reader = standby.session()?;
    for setting in [
        "hot_standby_feedback = on",
        "wal_receiver_status_interval = '1s'",
    ] {
        reader.batch_execute(&format!("ALTER SYSTEM SET {setting}"))?;
    }
    reader.batch_execute("SELECT pg_reload_conf()")?;
    let count = "SELECT count(*) FROM kept_standby";
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    ensure!(reader.ids(count)? == [200]);
    let reported = "SELECT count(*) FROM pg_stat_replication WHERE backend_xmin IS NOT NULL";
    let deadline = Instant::now() + Duration::from_secs(15);
    while session.value(reported)? == "0" {
        ensure!(Instant::now() < deadline, "the standby reports no snapshot");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_kept_while_held(&cluster, &items, || {
        ensure!(reader.ids(count)? == [200]);
        Ok(reader.batch_execute("COMMIT")?)
    })?;
    standby.stop()
}

fn join(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}
