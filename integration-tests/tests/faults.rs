//! Processes die; what was committed is found again, and no query lies.
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use integration_tests::{Cluster, Items, Shape};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn p2_p3_nothing_is_lost_or_resurrected_when_each_process_is_killed() -> Result<()> {
    let cluster = Cluster::start("kills", Shape::ONE)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "kills", 2_000, 24)?;
    let mut next = 2_001;
    for process in ["node-1", "consumer-1", "coordinator-1", "postgres"] {
        items.insert(&mut session, next..next + 100)?;
        session.execute(&format!("DELETE FROM kills WHERE id = {}", next - 50), &[])?;
        session.execute(
            &format!(
                "UPDATE kills SET label = label + 1 WHERE id > {}",
                next - 200
            ),
            &[],
        )?;
        if process == "postgres" {
            cluster.stop_postgres_immediately()?;
        } else {
            cluster.kill(process)?;
            // Committed while the process is down.
            items.insert(&mut session, next + 100..next + 150)?;
        }
        cluster.restart(process)?;
        next += 200;
        session = cluster.session_within(Duration::from_secs(30))?;
        session.batch_execute(
            "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
        )?;
        items.assert_every_row_once(&mut session)?;
        items.assert_equals_exact(&mut session, 10)?;
    }
    cluster.finish()
}

#[test]
fn p2_p3_the_embedded_default_survives_sigkill() -> Result<()> {
    let cluster = Cluster::start_dev("dev")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "dev_kill", 2_000, 24)?;
    items.insert(&mut session, 2_001..2_101)?;
    session.execute("DELETE FROM dev_kill WHERE id <= 30", &[])?;
    cluster.kill("dev")?;
    items.insert(&mut session, 2_101..2_201)?;
    session.execute(
        "UPDATE dev_kill SET embedding = embedding WHERE id < 100",
        &[],
    )?;
    cluster.restart("dev")?;
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
    )?;
    items.assert_every_row_once(&mut session)?;
    items.assert_equals_exact(&mut session, 10)?;
    cluster.finish()
}

#[test]
fn an_index_made_while_no_coordinator_answers_is_built_later() -> Result<()> {
    let cluster = Cluster::start("late", Shape::ONE)?;
    let mut session = cluster.session()?;
    let items = Items::create(&mut session, "late", 500, 16)?;
    cluster.kill("coordinator-1")?;
    std::thread::sleep(Duration::from_secs(7));
    session.warnings();
    session.batch_execute(
        "CREATE INDEX late_embedding_idx ON late USING ruhnsw (embedding vector_l2_ops)",
    )?;
    let warnings = session.warnings().join("; ");
    assert!(
        warnings.contains("coordinator") || warnings.contains("cluster"),
        "warnings: {warnings:?}"
    );
    session.batch_execute("SET ruvector.on_unavailable = exact")?;
    assert_eq!(
        session.ids(&items.nearest(1, 5))?,
        session.exact_ids(&items.nearest(1, 5))?
    );
    cluster.restart("coordinator-1")?;
    session.batch_execute("SET ruvector.on_unavailable = error")?;
    session.wait_for(&items.index(), false)?;
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)?;
    cluster.finish()
}

#[test]
fn p11_with_the_whole_cluster_down_scans_are_exact_within_their_limits_and_writes_go_on()
-> Result<()> {
    let cluster = Cluster::start("outage", Shape::ONE)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "outage", 500, 16)?;
    for process in ["node-1", "consumer-1", "coordinator-1"] {
        cluster.kill(process)?;
    }
    items.insert(&mut session, 501..601)?;
    assert_eq!(
        session.client_error(&items.nearest(1, 5)).as_deref(),
        Some("RV003"),
        "on_unavailable = error"
    );
    session.batch_execute("SET ruvector.on_unavailable = exact")?;
    assert_eq!(
        session.ids(&items.nearest(1, 5))?,
        session.exact_ids(&items.nearest(1, 5))?
    );
    let explained = session.explain(&items.nearest(1, 5))?;
    assert_ne!(
        explained.property("Fallback")?,
        "none",
        "{}",
        explained.text
    );
    session.batch_execute("SET ruvector.exact_scan_max_rows = 100")?;
    assert_eq!(
        session.client_error(&items.nearest(1, 5)).as_deref(),
        Some("RV003"),
        "above the limit"
    );
    cluster.finish()
}

#[test]
fn a_server_that_is_not_set_up_for_the_cluster_scans_exactly_and_says_why() -> Result<()> {
    for (name, settings, word) in [
        (
            "wal-level",
            ("PG_SETTINGS", "wal_level = replica"),
            "wal_level",
        ),
        ("preload", ("PG_PRELOAD", ""), "shared_preload_libraries"),
    ] {
        let cluster = Cluster::start_with(name, Shape::ONE, &[settings])?;
        let mut session = cluster.session()?;
        let items = Items::create(&mut session, "unready", 100, 8)?;
        session.warnings();
        session.batch_execute(
            "CREATE INDEX unready_embedding_idx ON unready USING ruhnsw (embedding vector_l2_ops)",
        )?;
        let warnings = session.warnings().join("; ");
        assert!(warnings.contains(word), "{name}: warnings {warnings:?}");
        assert_eq!(
            session.ids(&items.nearest(1, 5))?,
            session.exact_ids(&items.nearest(1, 5))?
        );
        let reason =
            session.value("SELECT reason FROM ruvector_index_status('unready_embedding_idx')")?;
        assert!(reason.contains(word), "{name}: {reason}");
        cluster.finish()?;
    }
    Ok(())
}

#[test]
fn p7_p11_one_of_three_nodes_killed_during_queries_fails_none_and_falls_back_never() -> Result<()> {
    let cluster = Cluster::start("node-kill", Shape::THREE)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "node_kill", 3_000, 24)?;
    let probe = |i: i64| items.nearest(50_000 + i, 10);
    let wants: Vec<Vec<i64>> = (0..20)
        .map(|i| session.exact_ids(&probe(i)))
        .collect::<Result<_>>()?;
    let (stop, queries) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut session = cluster.session()?;
                    for i in (0..20).cycle() {
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        let got = session.ids(&probe(i))?;
                        assert_eq!(got, wants[i as usize]);
                        queries.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        let before = queries.load(Ordering::Relaxed);
        cluster.kill("node-2")?;
        std::thread::sleep(Duration::from_secs(6));
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("no panic")?;
        }
        assert!(
            before > 0 && queries.load(Ordering::Relaxed) > before + 20,
            "queries went on"
        );
        Ok(())
    })?;
    session
        .explain(&probe(1))?
        .assert_answered_by_the_cluster()?;
    cluster.restart("node-2")?;
    items.insert(&mut session, 3_001..3_100)?;
    items.assert_equals_exact(&mut session, 10)?;
    cluster.finish()
}
