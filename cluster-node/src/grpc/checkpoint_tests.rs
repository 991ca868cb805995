#![allow(clippy::unwrap_used)]
//! Copies from a peer over loopback, while the stream flows.

use super::convert::{self, records_checksum};
use super::fetch::{FetchError, Peer, fetch};
use super::serve;
use crate::config::Config;
use crate::query::search::{PageOf, Search};
use crate::storage::copied::CopiedRecord;
use crate::testing::*;
use cluster_core::change::{Batch, Change};
use cluster_core::ids::*;
use cluster_core::map::{HashRange, PartitionMap, ReplicaState};
use proto::v1::node_client::NodeClient;
use proto::v1::{self, checkpoint_part::Kind};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// Slow enough that batches come between the parts.
const SLOW: u64 = 100_000;
const ROWS: u32 = 2_000;

/// Serves a node until the token is cancelled. Returns where.
async fn listen(t: &TestNode) -> (String, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let (_server, health) = serve(t.node.clone(), listener, stop.clone());
    health.set_serving().await;
    (address, stop)
}

/// A serving replica with rows and former versions, up to 20.
async fn filled(dir: &Path) -> TestNode {
    let t = TestNode::start_as(
        dir,
        NODE,
        Config::default(),
        moving(1, "", ReplicaState::Learner),
    );
    let t = t.await;
    let rows = |range: std::ops::Range<u32>, y: f32| {
        range
            .map(|n| upsert(n, [n as f32, y]))
            .collect::<Vec<Change>>()
    };
    t.apply(batch(0, 10, rows(0..ROWS, 0.0))).await;
    t.apply(batch(10, 20, rows(0..ROWS / 10, 1.0))).await;
    t
}

/// A learner whose node copies by itself.
struct Learner {
    t: TestNode,
    stop: CancellationToken,
    copies: JoinHandle<()>,
}

async fn learner(dir: &Path, map: PartitionMap) -> Learner {
    let config = Config {
        copy_bytes_per_second_max: SLOW,
        ..Config::default()
    };
    let t = TestNode::start_as(dir, LEARNER, config, map).await;
    let stop = CancellationToken::new();
    let copies = tokio::spawn(crate::copy::follow(t.node.clone(), stop.clone()));
    Learner { t, stop, copies }
}

impl Learner {
    /// Ends the node, so that its disk can be opened again.
    async fn kill(self) {
        self.stop.cancel();
        self.copies.await.unwrap();
        let storage = Arc::downgrade(&self.t.node.storage);
        self.t.stop().await;
        while storage.upgrade().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_rows(&self, rows: u64) {
        let copied = || {
            let progress = self.t.replica().learner_progress();
            progress.map_or(u64::MAX, |progress| progress.rows_copied)
        };
        while copied() < rows {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn feed(nodes: [&TestNode; 2], batch: Batch) {
    for t in nodes {
        t.apply(batch.clone()).await;
    }
}

/// Changes that a heap could see, from the rows that exist.
fn changes(n: u64, heap: &mut BTreeSet<u32>) -> Vec<Change> {
    let pick = |by: u64| (n * by % u64::from(ROWS)) as u32;
    let mut changes = Vec::new();
    for key in [pick(37), pick(739), ROWS - 1 - pick(11)] {
        if heap.remove(&key) {
            changes.push(delete(key));
        }
    }
    for (key, x) in [(pick(53), 0.5), (ROWS + n as u32, 0.25), (pick(37), 0.125)] {
        heap.insert(key);
        changes.push(upsert(key, [n as f32, x]));
    }
    if heap.contains(&pick(91)) {
        changes.push(unchanged(pick(91)));
    }
    changes
}

async fn found(t: &TestNode, generation: u64, xmin: u64) -> Vec<u32> {
    let search = Search {
        snapshot_xmin: xmin,
        page_rows: 10_000,
        partitions: vec![PageOf {
            partition: PARTITION,
            generation: Generation(generation),
            token: 0,
        }],
        exact: true,
        deadline: Duration::from_secs(5),
        ..search()
    };
    let page = t.page(search).await.unwrap();
    let mut found: Vec<_> = page.hits.iter().map(|(key, _)| number(key)).collect();
    found.sort();
    found
}

/// The same records on disk, and the same answers.
async fn assert_same(peer: &TestNode, learner: &TestNode) {
    assert!(peer.records() == learner.records(), "the records differ");
    learner
        .maps
        .send_replace(Arc::new(moving(9, "", ReplicaState::Serving)));
    for xmin in [CURRENT, ALL_XIDS] {
        assert_eq!(found(peer, 1, xmin).await, found(learner, 2, xmin).await);
    }
}

async fn copy_while_batches_flow(truncates: bool) {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let peer = filled(dirs[0].path()).await;
    let (address, _stop) = listen(&peer).await;
    let learner = learner(dirs[1].path(), moving(2, &address, ReplicaState::Learner)).await;
    learner.t.attach(end(20)).await;
    let mut heap: BTreeSet<u32> = (0..ROWS).collect();
    let mut parts_seen = BTreeSet::new();
    let mut to = 20;
    for n in 0..70 {
        let mut changes = changes(n, &mut heap);
        if truncates && n == 25 {
            changes.insert(0, Change::Truncate);
            let key_of = |change: &Change| match change {
                Change::Upsert { key, .. } => Some(number(key)),
                _ => None,
            };
            changes.retain(|change| !matches!(change, Change::Delete { .. }));
            changes.retain(|change| *change != unchanged((n * 91 % u64::from(ROWS)) as u32));
            heap = changes.iter().filter_map(key_of).collect();
        }
        feed([&peer, &learner.t], batch(to, to + 10, changes)).await;
        to += 10;
        if let Some(progress) = learner.t.replica().learner_progress() {
            parts_seen.insert(progress.rows_copied);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        parts_seen.len() > 2,
        "batches came between parts: {parts_seen:?}"
    );
    learner.t.until_live().await;
    let watermarks = learner.t.replica().standing().watermarks;
    assert_eq!((watermarks.applied, watermarks.durable), (end(to), end(to)));
    assert_same(&peer, &learner.t).await;
    assert_eq!(learner.t.replica().rows(), heap.len() as u64);
    // And it goes on as its peer does.
    feed(
        [&peer, &learner.t],
        batch(to, to + 10, changes(99, &mut heap)),
    )
    .await;
    assert_same(&peer, &learner.t).await;
    learner.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_learner_that_copies_while_batches_flow_ends_with_its_peers_rows() {
    copy_while_batches_flow(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_truncate_during_the_copy_leaves_what_its_peer_has() {
    copy_while_batches_flow(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_an_interrupted_copy_goes_on_where_it_was_on_disk() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let peer = filled(dirs[0].path()).await;
    let (address, stop) = listen(&peer).await;
    let map = moving(2, &address, ReplicaState::Learner);
    let first = learner(dirs[1].path(), map).await;
    first.t.attach(end(20)).await;
    let mut heap: BTreeSet<u32> = (0..ROWS).collect();
    feed([&peer, &first.t], batch(20, 30, changes(1, &mut heap))).await;
    first.until_rows(1).await;
    // The peer goes first, then the learner's node.
    stop.cancel();
    feed([&peer, &first.t], batch(30, 40, changes(2, &mut heap))).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let copied = first.t.replica().learner_progress().unwrap().rows_copied;
    assert!(copied < u64::from(ROWS));
    feed([&peer, &first.t], batch(40, 50, changes(3, &mut heap))).await;
    first.kill().await;
    // It comes back elsewhere.
    let (address, _stop) = listen(&peer).await;
    let map = moving(3, &address, ReplicaState::Learner);
    let second = learner(dirs[1].path(), map).await;
    assert_eq!(second.t.replica().standing().watermarks.durable, end(50));
    second.t.attach(end(30)).await;
    feed([&peer, &second.t], batch(30, 60, changes(4, &mut heap))).await;
    second.t.until_live().await;
    let again = second.t.node.metrics.copy_rows.get();
    let total = u64::from(ROWS) + 4;
    assert!(again <= total - copied, "{again} of {total} after {copied}");
    assert_same(&peer, &second.t).await;
    second.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_turns_to_another_peer_when_one_does_not_answer() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let alive = NodeId(9);
    let with_two_peers = |address: &str| {
        let mut map = moving(1, "127.0.0.1:1", ReplicaState::Learner);
        let mut node = map.nodes[&NODE].clone();
        (node.id, node.address) = (alive, address.to_owned());
        map.nodes.insert(alive, node);
        let replicas = &mut map.partitions.get_mut(&PARTITION).unwrap().replicas;
        let mut second = replicas[0].clone();
        (second.node, second.generation) = (alive, Generation(3));
        replicas.push(second);
        map
    };
    let peer = TestNode::start_as(dirs[0].path(), alive, Config::default(), with_two_peers(""));
    let peer = peer.await;
    peer.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let (address, _stop) = listen(&peer).await;
    let learner = learner(dirs[1].path(), with_two_peers(&address)).await;
    learner.t.attach(end(10)).await;
    learner.t.until_live().await;
    assert!(peer.records() == learner.t.records());
    learner.stop.cancel();
}

// ------------------------------------------------------- a peer that misbehaves

/// Answers a copy with these parts, whatever is asked, and then ends.
struct Crooked(Vec<v1::CheckpointPart>);

type Answers<T> = ReceiverStream<Result<T, Status>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this peer only sends checkpoints"))
}

#[tonic::async_trait]
impl v1::node_server::Node for Crooked {
    type ApplyStream = Answers<v1::ApplyResponse>;
    type BackfillStream = Answers<v1::BackfillResponse>;
    type FetchCheckpointStream = Answers<v1::CheckpointPart>;

    async fn fetch_checkpoint(
        &self,
        _: Request<v1::FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        let (parts, stream) = mpsc::channel(self.0.len());
        for part in self.0.clone() {
            parts.send(Ok(part)).await.unwrap();
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn apply(
        &self,
        _: Request<Streaming<v1::ApplyRequest>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        no()
    }
    async fn backfill(
        &self,
        _: Request<Streaming<v1::BackfillRequest>>,
    ) -> Result<Response<Self::BackfillStream>, Status> {
        no()
    }
    async fn list_pending(
        &self,
        _: Request<v1::ListPendingRequest>,
    ) -> Result<Response<v1::ListPendingResponse>, Status> {
        no()
    }
    async fn fetch_row(
        &self,
        _: Request<v1::FetchRowRequest>,
    ) -> Result<Response<v1::FetchRowResponse>, Status> {
        no()
    }
    async fn install_consumer(
        &self,
        _: Request<v1::InstallConsumerRequest>,
    ) -> Result<Response<v1::InstallConsumerResponse>, Status> {
        no()
    }
    async fn search(
        &self,
        _: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        no()
    }
    async fn digest(
        &self,
        _: Request<v1::DigestRequest>,
    ) -> Result<Response<v1::DigestResponse>, Status> {
        no()
    }
    async fn close_cursors(
        &self,
        _: Request<v1::CloseCursorsRequest>,
    ) -> Result<Response<v1::CloseCursorsResponse>, Status> {
        no()
    }
    async fn get_map(
        &self,
        _: Request<v1::GetMapRequest>,
    ) -> Result<Response<v1::PartitionMap>, Status> {
        no()
    }
}

async fn crooked(parts: Vec<v1::CheckpointPart>) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = v1::node_server::NodeServer::new(Crooked(parts));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    honest_peer(address)
}

fn honest_peer(address: String) -> Peer {
    Peer {
        node: NODE,
        address,
        partition: PARTITION,
        generation: Generation(1),
        range: None,
    }
}

fn request(at_least: u64) -> v1::FetchCheckpointRequest {
    v1::FetchCheckpointRequest {
        epoch: 1,
        partition_id: PARTITION.0,
        generation: 1,
        at_least: Some(end(at_least).into()),
        after_key: Default::default(),
        bytes_per_second_max: 400_000,
        range: None,
    }
}

async fn all_parts(address: &str) -> Vec<v1::CheckpointPart> {
    parts_of(address, request(20)).await
}

async fn parts_of(address: &str, request: v1::FetchCheckpointRequest) -> Vec<v1::CheckpointPart> {
    let client = NodeClient::connect(format!("http://{address}")).await;
    let answer = client.unwrap().fetch_checkpoint(request).await.unwrap();
    let mut stream = answer.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        parts.push(part);
    }
    parts
}

fn records(part: &mut v1::CheckpointPart) -> &mut v1::CheckpointRecords {
    match part.kind.as_mut().unwrap() {
        Kind::Records(records) => records,
        other => panic!("not records: {other:?}"),
    }
}

fn damage(part: &mut v1::CheckpointPart) {
    let record = &mut records(part).records[3];
    let mut value = record.value.to_vec();
    value[7] ^= 1;
    record.value = value.into();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_sends_amiss_is_refused_and_a_torn_copy_is_not_taken_for_whole() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let peer = filled(dirs[0].path()).await;
    let (address, _stop) = listen(&peer).await;
    let parts = all_parts(&address).await;
    assert!(parts.len() > 4, "{} parts", parts.len());
    let map = moving(2, &address, ReplicaState::Learner);
    let t = TestNode::start_as(dirs[1].path(), LEARNER, Config::default(), map).await;
    t.attach(end(20)).await;
    let fetched = async |parts: Vec<v1::CheckpointPart>| {
        let peer = crooked(parts).await;
        let replica = t.replica();
        let wanted = replica.copy_wanted().unwrap();
        let refused = fetch(&t.node, &replica, wanted, &peer).await.unwrap_err();
        assert!(replica.is_learning() && replica.copy_wanted().is_some());
        refused
    };
    let altered = |alter: &dyn Fn(&mut Vec<v1::CheckpointPart>)| {
        let mut parts = parts.clone();
        alter(&mut parts);
        parts
    };
    let version = fetched(altered(&|parts| {
        if let Some(Kind::Header(header)) = &mut parts[0].kind {
            header.format_version = 1;
        }
    }));
    let version = version.await;
    assert!(matches!(version, FetchError::Format(1)), "{version}");
    let headless = fetched(altered(&|parts| drop(parts.remove(0)))).await;
    assert!(matches!(headless, FetchError::Bad(_)), "{headless}");
    let corrupt = fetched(altered(&|parts| damage(&mut parts[1]))).await;
    assert!(matches!(corrupt, FetchError::Bad(_)), "{corrupt}");
    assert!(corrupt.to_string().contains("checksum"), "{corrupt}");
    assert_eq!(t.records(), [], "nothing of a corrupt part is kept");
    // The part's own checksum holds, its record's does not.
    let forged = fetched(altered(&|parts| {
        damage(&mut parts[1]);
        let part = records(&mut parts[1]);
        part.checksum = records_checksum(&part.records);
    }));
    let forged = forged.await;
    assert!(matches!(forged, FetchError::Corrupt(_)), "{forged}");
    let swapped = fetched(altered(&|parts| parts.swap(1, 2))).await;
    assert!(swapped.to_string().contains("order"), "{swapped}");
    // Attached above what the peer had then.
    t.attach(end(21)).await;
    let old = fetched(parts.clone()).await;
    assert!(old.to_string().contains("below"), "{old}");
    peer.nothing_else(30).await;
    crate::partition::housekeeping::persist_watermarks(&peer.node.replicas, &peer.node.storage);
    let parts = all_parts(&address).await;
    // The count tells that a part never came.
    let mut holed = parts.clone();
    holed.remove(1);
    let hole = fetched(holed).await;
    assert!(matches!(hole, FetchError::Hole { .. }), "{hole}");
    let mut torn = parts.clone();
    torn.pop();
    let torn = fetched(torn).await;
    assert!(matches!(torn, FetchError::CutShort), "{torn}");
    t.nothing_else(30).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(t.replica().is_learning(), "no End, no whole copy");
    // What is missing now is only the end.
    let honest = honest_peer(address);
    let replica = t.replica();
    let wanted = replica.copy_wanted().unwrap();
    fetch(&t.node, &replica, wanted, &honest).await.unwrap();
    t.until_live().await;
    assert_same(&peer, &t).await;
}

// ------------------------------------------------------------------ the sender

/// The records that a request brings, as the learner would decode them.
async fn copied(address: &str, range: HashRange) -> Vec<CopiedRecord> {
    let range = Some(range.into());
    let parts = parts_of(
        address,
        v1::FetchCheckpointRequest {
            range,
            bytes_per_second_max: 0,
            ..request(20)
        },
    );
    let mut copied = Vec::new();
    for part in parts.await {
        if let Some(Kind::Records(wire)) = part.kind {
            let (raw, _) = convert::records_from_wire(wire).unwrap();
            copied.extend(raw.iter().map(|r| r.decode(PARTITION, 2).unwrap()));
        }
    }
    copied
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_p7_two_halves_get_every_record_once_former_versions_with_their_rows() {
    let dir = tempfile::tempdir().unwrap();
    let peer = filled(dir.path()).await;
    let (address, _stop) = listen(&peer).await;
    let middle = u64::MAX / 3;
    let low = HashRange { lo: 0, hi: middle };
    let high = HashRange {
        lo: middle + 1,
        hi: u64::MAX,
    };
    let all = copied(&address, HashRange::WHOLE).await;
    let halves = [copied(&address, low).await, copied(&address, high).await];
    for (half, range) in halves.iter().zip([low, high]) {
        assert!(
            half.len() > all.len() / 10,
            "{} of {}",
            half.len(),
            all.len()
        );
        for record in half {
            let (CopiedRecord::Row(key, _)
            | CopiedRecord::Tombstone(key, _)
            | CopiedRecord::Former(key, _)) = record;
            assert!(range.contains(key.placement_hash()));
        }
    }
    let formers = |records: &[CopiedRecord]| {
        let is_former = |r: &&CopiedRecord| matches!(r, CopiedRecord::Former(..));
        records.iter().filter(is_former).count()
    };
    assert!(formers(&halves[0]) > 0 && formers(&halves[1]) > 0);
    assert_eq!(halves[0].len() + halves[1].len(), all.len());
    assert!(
        all.iter()
            .all(|r| halves[0].contains(r) || halves[1].contains(r))
    );
}

async fn refusal(address: &str, request: v1::FetchCheckpointRequest) -> Status {
    let client = NodeClient::connect(format!("http://{address}")).await;
    match client.unwrap().fetch_checkpoint(request).await {
        Err(status) => status,
        Ok(answer) => {
            let mut stream = answer.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the copy was not refused"),
                    Err(status) => return status,
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_only_a_replica_that_serves_under_a_lease_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    let (address, _stop) = listen(&t).await;
    let other = v1::FetchCheckpointRequest {
        generation: 2,
        ..request(20)
    };
    assert!(proto::error::is_estale(&refusal(&address, other).await));
    t.maps
        .send_replace(Arc::new(map_in(2, ReplicaState::Demoted)));
    assert!(proto::error::is_estale(
        &refusal(&address, request(20)).await
    ));
    t.maps
        .send_replace(Arc::new(map_in(3, ReplicaState::Releasing)));
    assert!(
        all_parts(&address).await.len() > 2,
        "it may still be copied"
    );
    // Until it is durable here, nobody is told that it is.
    let waiting = header(&address, 30);
    let arriving = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        t.apply(batch(20, 30, vec![upsert(5_000, [1.0, 1.0])]))
            .await;
    };
    let (first, ()) = tokio::join!(waiting, arriving);
    assert_eq!(first.watermark, Some(end(30).into()));
    t.node.storage.damage(PARTITION, &key(7));
    let lost = refusal(&address, request(20)).await;
    assert_eq!(lost.code(), Code::DataLoss, "{lost}");
    assert!(t.replica().problem().is_some());
}

async fn header(address: &str, at_least: u64) -> v1::CheckpointHeader {
    let client = NodeClient::connect(format!("http://{address}")).await;
    let answer = client.unwrap().fetch_checkpoint(request(at_least)).await;
    let first = answer.unwrap().into_inner().message().await.unwrap();
    match first.unwrap().kind.unwrap() {
        Kind::Header(header) => header,
        other => panic!("not a header: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_without_a_lease_and_beyond_the_limit_nothing_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        checkpoints_max: 1,
        ..Config::default()
    };
    let t = TestNode::start_with(dir.path(), config).await;
    t.apply(batch(0, 20, vec![upsert(1, [1.0, 0.0])])).await;
    let taken = t.node.checkpoints.clone().try_acquire_owned().unwrap();
    let (address, stop) = listen(&t).await;
    let busy = refusal(&address, request(20)).await;
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}");
    drop(taken);
    assert_eq!(all_parts(&address).await.len(), 3);
    stop.cancel();
    let dir = tempfile::tempdir().unwrap();
    let mut t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 20, vec![upsert(1, [1.0, 0.0])])).await;
    Arc::get_mut(&mut t.node).unwrap().lease = crate::lease::Lease::new(0);
    let (address, _stop) = listen(&t).await;
    assert!(proto::error::is_estale(
        &refusal(&address, request(20)).await
    ));
}
