#![allow(clippy::unwrap_used)]
//! The wire over loopback: apply, backfill and search as their callers do it.

use super::serve;
use crate::config::Config;
use crate::testing::*;
use cluster_core::change::Change;
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::convert::vector_to_bytes;
use proto::v1::node_client::NodeClient;
use proto::v1::{self, apply_request, apply_response, backfill_request};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

struct Wire {
    t: TestNode,
    client: NodeClient<Channel>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

async fn wire() -> Wire {
    wire_with(map()).await
}

async fn wire_with(map: PartitionMap) -> Wire {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start_as(dir.path(), NODE, Config::default(), map).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (_server, health) = serve(t.node.clone(), listener, stop.clone());
    health.set_serving().await;
    crate::spawn_workers(&t.node, &stop).unwrap();
    let client = NodeClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    Wire {
        t,
        client,
        stop,
        _dir: dir,
    }
}

impl Wire {
    async fn open(
        &mut self,
        token: u64,
    ) -> (mpsc::Sender<v1::ApplyRequest>, Streaming<v1::ApplyResponse>) {
        let (requests, stream) = mpsc::channel(16);
        let open = apply_request::Kind::Open(v1::ApplyOpen {
            source_id: 1,
            incarnation: 1,
            consumer_epoch: token,
            epoch: 1,
            map_version: 1,
        });
        requests.send(request(open)).await.unwrap();
        let answer = self.client.apply(ReceiverStream::new(stream)).await;
        (requests, answer.unwrap().into_inner())
    }
}

fn request(kind: apply_request::Kind) -> v1::ApplyRequest {
    v1::ApplyRequest { kind: Some(kind) }
}

fn apply(previous: u64, to: u64, changes: Vec<Change>) -> v1::ApplyRequest {
    let batch = batch(previous, to, changes);
    request(apply_request::Kind::Batch((&batch).into()))
}

async fn next(responses: &mut Streaming<v1::ApplyResponse>) -> apply_response::Kind {
    let next = tokio::time::timeout(Duration::from_secs(5), responses.message());
    next.await.unwrap().unwrap().unwrap().kind.unwrap()
}

async fn until_durable(responses: &mut Streaming<v1::ApplyResponse>, lsn: u64) {
    loop {
        if let apply_response::Kind::Watermarks(watermarks) = next(responses).await {
            let durable: WalPosition = watermarks.partitions[0].durable.unwrap().into();
            if durable >= end(lsn) {
                return;
            }
        }
    }
}

fn search_request(min_lsn: u64) -> v1::SearchRequest {
    v1::SearchRequest {
        incarnation: 1,
        epoch: 1,
        map_version: 1,
        source_id: 1,
        collection_id: 2,
        query: vector_to_bytes(&[0.0, 0.0]),
        ef_search: 100,
        page_rows: 10,
        consistency: v1::Consistency::Position.into(),
        min_lsn,
        snapshot_xmin: u64::MAX,
        deadline_ms: 3_000,
        exact: false,
        accepts_stale: false,
        asked_by: None,
        partitions: vec![v1::PartitionCursor {
            partition_id: PARTITION.0,
            generation: 1,
            resume_token: 0,
        }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_stream_in_are_acknowledged_when_durable_and_found_at_their_position() {
    let mut w = wire().await;
    let (requests, mut responses) = w.open(1).await;
    let apply_response::Kind::Opened(opened) = next(&mut responses).await else {
        panic!("the first answer is Opened");
    };
    assert_eq!(opened.partitions[0].partition_id, PARTITION.0);
    let rows = vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])];
    requests.send(apply(0, 10, rows)).await.unwrap();
    until_durable(&mut responses, 10).await;
    let nothing = apply_request::Kind::NothingElse(v1::NothingElse {
        to: Some(end(20).into()),
        except_partition_ids: vec![],
        oldest_xmin: 5,
        confirmed: Some(end(10).into()),
    });
    requests.send(request(nothing)).await.unwrap();
    until_durable(&mut responses, 20).await;
    // A search for what has not arrived makes the consumer ask for it.
    let mut client = w.client.clone();
    let waiting = tokio::spawn(async move { client.search(search_request(30)).await });
    loop {
        if let apply_response::Kind::Wanted(wanted) = next(&mut responses).await {
            assert_eq!(WalPosition::from(wanted), end(30));
            break;
        }
    }
    requests.send(apply(20, 30, vec![delete(1)])).await.unwrap();
    let found = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!(found.pages[0].error, None);
    assert_eq!(found.pages[0].hits.len(), 1);
    assert_eq!(found.pages[0].hits[0].distance, 2.0);
    assert!(found.pages[0].exhausted);
    assert_eq!(w.t.node.report().partitions[0].rows, 1);
    w.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_answered_and_a_bad_message_ends_the_stream() {
    let mut w = wire().await;
    let (requests, mut responses) = w.open(1).await;
    next(&mut responses).await;
    let gapped = apply(10, 20, vec![upsert(1, [1.0, 0.0])]);
    requests.send(gapped).await.unwrap();
    let apply_response::Kind::Gap(gap) = next(&mut responses).await else {
        panic!("a gap is answered");
    };
    assert_eq!(WalPosition::from(gap.previous.unwrap()), end(10));
    let mut wrong = batch(0, 20, vec![upsert(1, [1.0, 0.0])]);
    wrong.changes[0].change = Change::Upsert {
        key: key(1),
        vector: cluster_core::change::VectorColumn::Value(vec![1.0; 3].into()),
    };
    let wrong = request(apply_request::Kind::Batch((&wrong).into()));
    requests.send(wrong).await.unwrap();
    let status = loop {
        match responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream must end with its reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("expected 2 dimensions, not 3"),
        "{status}"
    );
    w.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_later_consumer_ends_the_stream_of_an_earlier_one() {
    let mut w = wire().await;
    let (_first, mut earlier) = w.open(1).await;
    next(&mut earlier).await;
    let (_second, mut later) = w.open(2).await;
    next(&mut later).await;
    let status = loop {
        if let Err(status) = earlier.message().await {
            break status;
        }
    };
    assert!(proto::error::is_estale(&status), "{status}");
    let (_third, mut refused) = w.open(1).await;
    let status = refused.message().await.unwrap_err();
    assert!(proto::error::is_estale(&status), "{status}");
    w.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_is_opened_filled_and_closed_over_the_wire() {
    let mut w = wire().await;
    let open = backfill_request::Kind::Open(v1::BackfillOpen {
        reconcile_since: 0,
        consumer_epoch: 1,
        source_id: 1,
        partition_id: PARTITION.0,
        backfill_id: 1,
        published: None,
    });
    let chunk = backfill_request::Kind::Chunk(v1::BackfillChunk {
        partition_id: PARTITION.0,
        backfill_id: 1,
        chunk: 1,
        stamp: Some(WalPosition::end_of(cluster_core::ids::Incarnation(1), Lsn(5)).into()),
        rows: vec![(&row(1, [1.0, 0.0])).into()],
        mark: None,
    });
    let close = backfill_request::Kind::Close(v1::BackfillClose {
        partition_id: PARTITION.0,
        backfill_id: 1,
    });
    let late = backfill_request::Kind::Chunk(v1::BackfillChunk {
        partition_id: PARTITION.0,
        backfill_id: 1,
        chunk: 2,
        stamp: Some(end(5).into()),
        rows: vec![],
        mark: None,
    });
    let requests = [open, chunk, close, late].map(|kind| v1::BackfillRequest { kind: Some(kind) });
    let answers = w.client.backfill(tokio_stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    for number in [0, 1, u64::MAX] {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.chunk, answer.refused.as_str()), (number, ""));
    }
    let refused = answers.message().await.unwrap().unwrap();
    assert!(refused.refused.contains("not open"), "{}", refused.refused);
    w.t.nothing_else(20).await;
    assert_eq!(w.t.find(CURRENT).await, [1]);
    w.stop.cancel();
}

fn attach(generation: u64, from: u64) -> v1::ApplyRequest {
    request(apply_request::Kind::Attach(v1::AttachLearner {
        partition_id: PARTITION.0,
        generation,
        from: Some(end(from).into()),
    }))
}

fn nothing_else(to: u64) -> v1::ApplyRequest {
    request(apply_request::Kind::NothingElse(v1::NothingElse {
        to: Some(end(to).into()),
        confirmed: Some(end(1).into()),
        ..Default::default()
    }))
}

/// The next news of the partition.
async fn watermark(responses: &mut Streaming<v1::ApplyResponse>) -> v1::PartitionWatermark {
    loop {
        if let apply_response::Kind::Watermarks(watermarks) = next(responses).await {
            return watermarks.partitions[0];
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_learner_reports_what_it_logged_on_disk_and_only_of_the_stream_that_attached_it() {
    let mut w = wire_with(map_in(1, ReplicaState::Learner)).await;
    let (requests, mut responses) = w.open(1).await;
    let apply_response::Kind::Opened(opened) = next(&mut responses).await else {
        panic!("the first answer is Opened");
    };
    assert!(opened.partitions[0].is_learning);
    let durable = |watermark: v1::PartitionWatermark| {
        assert!(watermark.is_learning);
        assert_eq!(watermark.applied.unwrap(), WalPosition::ZERO.into());
        WalPosition::from(watermark.durable.unwrap())
    };
    // Not attached yet: this says nothing about the learner.
    requests.send(nothing_else(90)).await.unwrap();
    requests.send(attach(1, 10)).await.unwrap();
    assert_eq!(durable(watermark(&mut responses).await), end(10));
    let rows = vec![upsert(1, [1.0, 0.0])];
    requests.send(apply(10, 20, rows)).await.unwrap();
    assert_eq!(durable(watermark(&mut responses).await), end(20));
    requests.send(nothing_else(30)).await.unwrap();
    assert_eq!(durable(watermark(&mut responses).await), end(30));
    let report = w.t.node.report().partitions.remove(0);
    assert_eq!(WalPosition::from(report.durable.unwrap()), end(30));
    assert_eq!(report.applied, Some(WalPosition::ZERO.into()));
    assert!(report.learner.unwrap().log_bytes > 0);
    // A new stream that has not attached it moves nothing.
    let (requests, mut responses) = w.open(2).await;
    next(&mut responses).await;
    requests.send(nothing_else(90)).await.unwrap();
    requests.send(apply(40, 50, vec![delete(1)])).await.unwrap();
    let apply_response::Kind::Gap(gap) = next(&mut responses).await else {
        panic!("a gap is answered");
    };
    assert_eq!(WalPosition::from(gap.watermark.unwrap()), end(30));
    // Attached again, the same stream feeds it on.
    requests.send(attach(1, 30)).await.unwrap();
    requests.send(apply(30, 60, vec![delete(1)])).await.unwrap();
    assert_eq!(durable(watermark(&mut responses).await), end(60));
    w.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_stale_replica_does_not_take_nothing_else_for_all_there_was() {
    for (state, reaches) in [(ReplicaState::Serving, 90), (ReplicaState::Stale, 20)] {
        let mut w = wire_with(map_in(1, ReplicaState::Serving)).await;
        w.t.nothing_else(20).await;
        w.t.maps.send_replace(std::sync::Arc::new(map_in(2, state)));
        let (requests, mut responses) = w.open(1).await;
        next(&mut responses).await;
        requests.send(nothing_else(90)).await.unwrap();
        // Whatever is answered to this, what came before it has been taken.
        requests.send(attach(9, 10)).await.unwrap();
        while !matches!(next(&mut responses).await, apply_response::Kind::Gap(_)) {}
        let report = w.t.node.report().partitions.remove(0);
        let applied = WalPosition::from(report.applied.unwrap());
        assert_eq!(applied, end(reaches), "{state:?}");
        w.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_is_not_here_is_answered_with_a_gap_and_the_stream_goes_on() {
    let mut w = wire().await;
    let (requests, mut responses) = w.open(1).await;
    next(&mut responses).await;
    for _ in 0..2 {
        requests.send(attach(9, 10)).await.unwrap();
        let apply_response::Kind::Gap(gap) = next(&mut responses).await else {
            panic!("each attachment is answered");
        };
        assert_eq!(WalPosition::from(gap.previous.unwrap()), end(10));
    }
    w.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_serving_replica_never_begins_anew() {
    let mut w = wire().await;
    w.t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let (requests, mut responses) = w.open(1).await;
    next(&mut responses).await;
    requests.send(attach(1, 20)).await.unwrap();
    let apply_response::Kind::Gap(gap) = next(&mut responses).await else {
        panic!("a gap is answered");
    };
    assert_eq!(WalPosition::from(gap.watermark.unwrap()), end(10));
    assert_eq!(w.t.find(CURRENT).await, [1]);
    w.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_gives_no_rows_away() {
    let mut w = wire_with(map_in(1, ReplicaState::Learner)).await;
    let pending = v1::ListPendingRequest {
        partition_id: PARTITION.0,
        limit: 1,
    };
    let row = v1::FetchRowRequest {
        partition_id: PARTITION.0,
        key: key(1).as_bytes().to_vec().into(),
        before: Some(end(10).into()),
    };
    let checkpoint = v1::FetchCheckpointRequest {
        epoch: 1,
        partition_id: PARTITION.0,
        generation: 1,
        at_least: Some(end(1).into()),
        ..Default::default()
    };
    let refused = [
        w.client.list_pending(pending).await.unwrap_err(),
        w.client.fetch_row(row).await.unwrap_err(),
        w.client.fetch_checkpoint(checkpoint).await.unwrap_err(),
    ];
    for status in refused {
        assert!(proto::error::is_estale(&status), "{status}");
    }
    w.stop.cancel();
}
