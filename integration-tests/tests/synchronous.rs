//! The consumer as a synchronous standby: a commit returns once it is searchable
//! and on disk in the cluster.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Items, Session, Shape};
use std::time::{Duration, Instant};

const CONSUMER: &str = "consumer-1";

fn wait_until(session: &mut Session, what: &str, sql: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while session.value(sql)? != "t" {
        ensure!(Instant::now() < deadline, "not {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn p8_a_synchronous_commit_is_searchable_when_it_returns_and_the_consumer_waits_for_nobody()
-> Result<()> {
    let cluster = Cluster::start("synchronous", Shape::ONE)?;
    let (mut session, mut reader) = (cluster.session()?, cluster.session()?);
    let is_streaming = "SELECT count(*) > 0 FROM pg_stat_replication \
                        WHERE application_name = 'ruvector-consumer' AND state = 'streaming'";
    wait_until(&mut session, "streaming", is_streaming)?;
    session
        .batch_execute("ALTER SYSTEM SET synchronous_standby_names = '\"ruvector-consumer\"'")?;
    session.batch_execute("SELECT pg_reload_conf()")?;
    let is_synchronous = "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'";
    wait_until(&mut session, "synchronous", is_synchronous)?;

    // The consumer's own commits (the table goes into the publication) pass.
    let items = Items::indexed(&mut session, "synchronous", 200, 8)?;
    reader.batch_execute("SET ruvector.read_consistency = eventual")?;
    let began = Instant::now();
    for id in 201..221 {
        items.insert(&mut session, id..id + 1)?;
        let got = reader.ids(&items.nearest(id, 1))?;
        ensure!(
            got == [id],
            "{got:?} instead of {id}, though it had returned"
        );
    }
    println!(
        "20 synchronous commits, each searched: {:?}",
        began.elapsed()
    );
    reader
        .explain(&items.nearest(7, 10))?
        .assert_answered_by_the_cluster()?;

    // Without the consumer a commit waits, and goes on with its successor.
    cluster.kill(CONSUMER)?;
    std::thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| items.insert(&mut session, 300..301));
        std::thread::sleep(Duration::from_secs(1));
        ensure!(
            !waiting.is_finished(),
            "a commit returned without the cluster"
        );
        cluster.restart(CONSUMER)?;
        waiting.join().expect("no panic")
    })?;
    let got = reader.ids(&items.nearest(300, 1))?;
    ensure!(got == [300], "{got:?}");
    cluster.finish()
}
