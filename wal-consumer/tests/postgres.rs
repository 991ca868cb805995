//! Against a real Postgres with `wal_level = logical`: `TEST_DSN` names a
//! superuser's database, and scripts/integration.sh sets it. The tables need no
//! extension: vectors are not looked into here.
#![allow(clippy::unwrap_used)]

use cluster_core::wal_position::Lsn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};
use tokio_util::sync::CancellationToken;
use wal_consumer::replication::connection::Connection;
use wal_consumer::replication::pgoutput::Message;
use wal_consumer::replication::slot::{self, Lifetime};
use wal_consumer::replication::stream::{Feedback, StreamLimits, StreamTimes, WalEvent, WalStream};
use wal_consumer::source::postgres::Postgres;
use wal_consumer::source::{preflight, sql};
use wal_consumer::transaction::{Assembler, Transaction};

fn postgres() -> Postgres {
    config().into()
}

fn config() -> Config {
    let dsn = std::env::var("TEST_DSN")
        .expect("TEST_DSN names a Postgres; scripts/integration.sh sets it");
    dsn.parse().unwrap()
}

const WAIT: Duration = Duration::from_secs(20);

fn times() -> StreamTimes {
    StreamTimes {
        status_every: Duration::from_millis(200),
        wanted_every: Duration::from_millis(20),
    }
}

fn limits(buffer_bytes: usize) -> StreamLimits {
    StreamLimits {
        buffer_bytes,
        bytes_per_second_max: 0,
    }
}

/// The server notices a closed connection in its own time.
async fn drop_slot(client: &Client, name: &str) {
    let give_up = Instant::now() + WAIT;
    let drop = "SELECT pg_drop_replication_slot($1)";
    while let Err(problem) = client.execute(drop, &[&name]).await {
        let is_active = problem.code() == Some(&SqlState::OBJECT_IN_USE);
        assert!(is_active && Instant::now() < give_up, "{problem}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn prepare(client: &Client, name: &str) {
    client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS public.{name}; DROP PUBLICATION IF EXISTS {name}; \
             SELECT pg_drop_replication_slot('{name}') FROM pg_replication_slots WHERE slot_name = '{name}'; \
             CREATE TABLE public.{name} (id bigint PRIMARY KEY, v bytea); \
             CREATE PUBLICATION {name} FOR TABLE public.{name}"
        ))
        .await
        .unwrap();
}

async fn next_transaction(wal: &mut WalStream, assembler: &mut Assembler) -> Transaction {
    loop {
        let received = timeout(WAIT, wal.events.recv()).await.unwrap().unwrap();
        if let WalEvent::Data { at, payload } = received.event
            && let Some(transaction) = assembler.take(at, payload).unwrap()
        {
            return transaction;
        }
    }
}

async fn confirmed(client: &Client, name: &str) -> Lsn {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    client
        .query_one(sql, &[&name])
        .await
        .unwrap()
        .get::<_, String>(0)
        .parse()
        .unwrap()
}

#[tokio::test]
#[ignore = "needs a Postgres: scripts/integration.sh"]
async fn rows_before_a_slot_are_in_its_snapshot_and_rows_after_it_in_its_stream() {
    let config = postgres();
    let name = "consumer_seam";
    let client = sql::connect(&config).await.unwrap();
    prepare(&client, name).await;
    client
        .batch_execute("INSERT INTO public.consumer_seam VALUES (1, 'a')")
        .await
        .unwrap();

    let mut connection = Connection::connect(&config, "-c lock_timeout=5000")
        .await
        .unwrap();
    let system = slot::identify_system(&mut connection).await.unwrap();
    assert!(system.timeline >= 1);
    let created = slot::create(&mut connection, name, Lifetime::Permanent)
        .await
        .unwrap();
    let reading = sql::connect(&config).await.unwrap();
    preflight::begin_at_snapshot(&reading, &created.snapshot)
        .await
        .unwrap();
    drop(connection);
    client
        .batch_execute("INSERT INTO public.consumer_seam VALUES (2, 'b')")
        .await
        .unwrap();
    let seen: i64 = reading
        .query_one("SELECT count(*) FROM public.consumer_seam", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(seen, 1);

    let start = created.consistent_point;
    let connection = Connection::connect(&config, "").await.unwrap();
    let halves = slot::start(connection, name, name, start).await.unwrap();
    let feedback = Arc::new(Feedback::new(start));
    let cancel = CancellationToken::new();
    let mut wal = WalStream::spawn(halves, feedback.clone(), times(), limits(1 << 20), &cancel);
    let mut assembler = Assembler::new(1 << 20, std::env::temp_dir());
    let mut transaction = next_transaction(&mut wal, &mut assembler).await;
    let mut ids = Vec::new();
    while let Some((_, message)) = transaction.next_message().unwrap() {
        if let Message::Insert { new, .. } = message {
            ids.push(new[0].value().unwrap().to_vec());
        }
    }
    assert_eq!(ids, [2i64.to_be_bytes()]);

    // P2: received is not confirmed; only what we confirm moves the slot.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(confirmed(&client, name).await, start);
    feedback.confirm(transaction.end_lsn);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(confirmed(&client, name).await, transaction.end_lsn);

    // Closed means closed: the slot is free at once.
    wal.close().await;
    let freed = async {
        let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
        while client
            .query_one(sql, &[&name])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), freed).await.unwrap();
    drop_slot(&client, name).await;
}

#[tokio::test]
#[ignore = "needs a Postgres: scripts/integration.sh"]
async fn a_wanted_position_of_an_idle_source_arrives_within_milliseconds() {
    let config = postgres();
    let name = "consumer_wanted";
    let client = sql::connect(&config).await.unwrap();
    prepare(&client, name).await;
    let mut connection = Connection::connect(&config, "").await.unwrap();
    let created = slot::create(&mut connection, name, Lifetime::Permanent)
        .await
        .unwrap();
    drop(connection);
    let connection = Connection::connect(&config, "").await.unwrap();
    let halves = slot::start(connection, name, name, created.consistent_point)
        .await
        .unwrap();
    let feedback = Arc::new(Feedback::new(created.consistent_point));
    let cancel = CancellationToken::new();
    let times = StreamTimes {
        status_every: Duration::from_secs(60),
        ..times()
    };
    let mut wal = WalStream::spawn(halves, feedback.clone(), times, limits(1 << 20), &cancel);
    // WAL that is not in the publication.
    client
        .batch_execute("CREATE TEMP TABLE t AS SELECT 1; SELECT txid_current()")
        .await
        .unwrap();
    let flushed = "SELECT pg_current_wal_flush_lsn()::text";
    let target: Lsn = client
        .query_one(flushed, &[])
        .await
        .unwrap()
        .get::<_, String>(0)
        .parse()
        .unwrap();
    feedback.want(target);
    let reached = async {
        loop {
            let received = wal.events.recv().await.unwrap();
            if let WalEvent::Keepalive { wal_end } = received.event
                && wal_end >= target
            {
                return;
            }
        }
    };
    timeout(Duration::from_secs(2), reached).await.unwrap();
    wal.close().await;
    drop_slot(&client, name).await;
}

#[tokio::test]
#[ignore = "needs a Postgres: scripts/integration.sh"]
async fn a_stream_that_nobody_reads_outlives_the_servers_timeout() {
    let config = postgres();
    let name = "consumer_blocked";
    let client = sql::connect(&config).await.unwrap();
    prepare(&client, name).await;
    let mut connection = Connection::connect(&config, "").await.unwrap();
    let created = slot::create(&mut connection, name, Lifetime::Permanent)
        .await
        .unwrap();
    drop(connection);
    let connection = Connection::connect(&config, "-c wal_sender_timeout=1s")
        .await
        .unwrap();
    let halves = slot::start(connection, name, name, created.consistent_point)
        .await
        .unwrap();
    let feedback = Arc::new(Feedback::new(created.consistent_point));
    let cancel = CancellationToken::new();
    let mut wal = WalStream::spawn(halves, feedback, times(), limits(64 << 10), &cancel);
    let rows = "INSERT INTO public.consumer_blocked \
                SELECT i, decode(repeat('ab', 1000), 'hex') FROM generate_series(1, 20000) AS i";
    client.batch_execute(rows).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut assembler = Assembler::new(1 << 20, std::env::temp_dir());
    let mut transaction = next_transaction(&mut wal, &mut assembler).await;
    let mut last = 0;
    while let Some((ordinal, _)) = transaction.next_message().unwrap() {
        last = ordinal.unwrap_or(last);
    }
    assert_eq!(last, 20_000);
    assert!(wal.ended.try_recv().is_err(), "the stream is alive");
    wal.close().await;
    drop_slot(&client, name).await;
}

#[tokio::test]
#[ignore = "needs a Postgres: scripts/integration.sh"]
async fn a_wrong_password_is_an_error_that_says_so() {
    let mut config = config();
    assert!(
        config.get_password().is_some(),
        "a role without a password accepts any"
    );
    config.password("wrong");
    let error = Connection::connect(&config.into(), "").await.err().unwrap();
    assert!(format!("{error:#}").contains("password"), "{error:#}");
}
