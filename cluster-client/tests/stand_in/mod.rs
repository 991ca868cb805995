//! Nodes that lie down, hang, lose their leases or know a newer map, over loopback
//! gRPC.
#![allow(clippy::unwrap_used, dead_code)]

use bytes::Bytes;
use cluster_client::{ClientConfig, ClusterClient, Consistency, ScanSpec};
use cluster_core::ids::*;
use cluster_core::map::*;
use proto::v1;
use proto::v1::node_server::{Node as NodeService, NodeServer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub const ROWS: u64 = 500;
pub const COLLECTION: CollectionId = CollectionId(1);

/// Holds all rows `0..ROWS` of its partitions; row n is at distance n, and in the
/// partition n modulo their count. A cursor's token tells how far it has come.
pub struct StandIn {
    pub map: parking_lot::Mutex<PartitionMap>,
    pub id: NodeId,
    pub address: String,
    pub hangs: AtomicBool,
    /// Its lease is over.
    pub is_lapsed: AtomicBool,
    /// What it then does where a request accepts that.
    pub serves_stale: AtomicBool,
    pub searches: AtomicU64,
    pub map_requests: AtomicU64,
}

impl StandIn {
    fn page(&self, cursor: &v1::PartitionCursor, rows: u64) -> v1::PartitionPage {
        let map = self.map.lock();
        let partitions = map.partitions_of(COLLECTION);
        let at = partitions
            .iter()
            .position(|p| p.id.0 == cursor.partition_id);
        let serves = at.is_some_and(|at| {
            let mut replicas = partitions[at].replicas.iter();
            replicas.any(|r| r.node == self.id && r.generation.0 == cursor.generation)
        });
        if !serves {
            let kind = v1::partition_error::Kind::Estale.into();
            let error = Some(v1::PartitionError {
                kind,
                message: "not mine".to_owned(),
            });
            return v1::PartitionPage {
                partition_id: cursor.partition_id,
                error,
                ..Default::default()
            };
        }
        let (at, count) = (at.unwrap() as u64, partitions.len() as u64);
        let all = (0..ROWS).filter(|row| row % count == at);
        let from = cursor.resume_token as usize;
        let hits: Vec<_> = all.clone().skip(from).take(rows as usize).collect();
        let to = from + hits.len();
        v1::PartitionPage {
            partition_id: cursor.partition_id,
            bound: hits.last().map_or(f64::INFINITY, |last| *last as f64),
            exhausted: to == all.count(),
            resume_token: to as u64,
            hits: hits
                .into_iter()
                .map(|row| v1::Hit {
                    key: Bytes::copy_from_slice(&row.to_be_bytes()),
                    distance: row as f64,
                })
                .collect(),
            ..Default::default()
        }
    }
}

pub type Nothing<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl NodeService for StandIn {
    type ApplyStream = Nothing<v1::ApplyResponse>;
    type BackfillStream = Nothing<v1::BackfillResponse>;
    type FetchCheckpointStream = Nothing<v1::CheckpointPart>;

    async fn fetch_checkpoint(
        &self,
        _: Request<v1::FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        Err(Status::unimplemented("fetch_checkpoint"))
    }

    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        self.searches.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let request = request.into_inner();
        let rows = u64::from(request.page_rows);
        let known = {
            let map = self.map.lock();
            map.stamp()
        };
        let is_lapsed = self.is_lapsed.load(Ordering::Relaxed);
        let serves_stale = self.serves_stale.load(Ordering::Relaxed) && request.accepts_stale;
        if is_lapsed && !serves_stale {
            return Err(proto::error::estale("lease over", known.0, known.1));
        }
        let pages = request.partitions.iter().map(|cursor| {
            let page = self.page(cursor, rows);
            v1::PartitionPage {
                is_stale: is_lapsed && page.error.is_none(),
                ..page
            }
        });
        let pages = pages.collect();
        let (epoch, map_version) = (known.0.0, known.1.0);
        Ok(Response::new(v1::SearchResponse {
            pages,
            epoch,
            map_version,
        }))
    }

    async fn get_map(
        &self,
        request: Request<v1::GetMapRequest>,
    ) -> Result<Response<v1::PartitionMap>, Status> {
        self.map_requests.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let request = request.into_inner();
        let map = self.map.lock();
        if (map.epoch.0, map.version.0) < (request.epoch, request.version) {
            return Err(proto::error::not_ready("this node's map is older"));
        }
        Ok(Response::new((&*map).into()))
    }

    async fn digest(
        &self,
        _: Request<v1::DigestRequest>,
    ) -> Result<Response<v1::DigestResponse>, Status> {
        Err(Status::unimplemented("nobody compares a stand-in"))
    }

    async fn close_cursors(
        &self,
        _: Request<v1::CloseCursorsRequest>,
    ) -> Result<Response<v1::CloseCursorsResponse>, Status> {
        Ok(Response::new(v1::CloseCursorsResponse {}))
    }

    async fn apply(
        &self,
        _: Request<Streaming<v1::ApplyRequest>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        Err(Status::unimplemented("apply"))
    }

    async fn backfill(
        &self,
        _: Request<Streaming<v1::BackfillRequest>>,
    ) -> Result<Response<Self::BackfillStream>, Status> {
        Err(Status::unimplemented("backfill"))
    }

    async fn list_pending(
        &self,
        _: Request<v1::ListPendingRequest>,
    ) -> Result<Response<v1::ListPendingResponse>, Status> {
        Err(Status::unimplemented("list_pending"))
    }

    async fn fetch_row(
        &self,
        _: Request<v1::FetchRowRequest>,
    ) -> Result<Response<v1::FetchRowResponse>, Status> {
        Err(Status::unimplemented("fetch_row"))
    }

    async fn install_consumer(
        &self,
        _: Request<v1::InstallConsumerRequest>,
    ) -> Result<Response<v1::InstallConsumerResponse>, Status> {
        Err(Status::unimplemented("install_consumer"))
    }
}

pub struct Cluster {
    pub nodes: Vec<Arc<StandIn>>,
    pub servers: Vec<tokio::task::JoinHandle<()>>,
    pub client: ClusterClient,
}

/// Nodes 1 to 3; every one of four partitions has two replicas.
pub async fn cluster() -> Cluster {
    let mut map = PartitionMap {
        epoch: LeaseEpoch(1),
        version: MapVersion(1),
        ..PartitionMap::default()
    };
    let mut listeners = Vec::new();
    for id in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let id = NodeId(id);
        let (disk_uuid, zone) = (String::new(), String::new());
        map.nodes.insert(
            id,
            Node {
                id,
                disk_uuid,
                address,
                zone,
                is_draining: false,
            },
        );
        listeners.push(listener);
    }
    for (at, range) in HashRange::tile(4).into_iter().enumerate() {
        let id = PartitionId(at as u64 + 1);
        let nodes = [at as u64 % 3 + 1, (at as u64 + 1) % 3 + 1];
        let replicas = nodes.map(|node| Replica {
            node: NodeId(node),
            generation: Generation(1),
            state: ReplicaState::Serving,
        });
        let replicas = replicas.to_vec();
        map.partitions.insert(
            id,
            Partition {
                id,
                collection: COLLECTION,
                range,
                replicas,
            },
        );
    }
    let (mut nodes, mut servers) = (Vec::new(), Vec::new());
    for (at, listener) in listeners.into_iter().enumerate() {
        let node = Arc::new(StandIn {
            map: parking_lot::Mutex::new(map.clone()),
            id: NodeId(at as u64 + 1),
            address: listener.local_addr().unwrap().to_string(),
            hangs: AtomicBool::new(false),
            is_lapsed: AtomicBool::new(false),
            serves_stale: AtomicBool::new(false),
            searches: AtomicU64::new(0),
            map_requests: AtomicU64::new(0),
        });
        let service = NodeServer::from_arc(node.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        servers.push(tokio::spawn(async move { serving.await.unwrap() }));
        nodes.push(node);
    }
    // Nobody listens there: the coordinators are dead.
    let client = client_of("127.0.0.1:1");
    assert!(client.offer_map(map));
    Cluster {
        nodes,
        servers,
        client,
    }
}

pub fn client_of(coordinator: &str) -> ClusterClient {
    ClusterClient::new(ClientConfig {
        coordinators: vec![coordinator.to_owned()],
        hedge_after: Duration::from_millis(50),
        ..ClientConfig::default()
    })
}

/// What every node knows from now on.
pub fn tell_all(nodes: &[Arc<StandIn>], version: u64) {
    for node in nodes {
        node.map.lock().version = MapVersion(version);
    }
}

/// Whoever asks: the stand-in does not look.
pub const ASKED_BY: cluster_core::server::AskedBy = cluster_core::server::AskedBy {
    start: cluster_core::ids::ServerStart(1),
    database_oid: 1,
};

pub fn spec(timeout: Duration) -> ScanSpec {
    ScanSpec {
        asked_by: ASKED_BY,
        source: SourceId(1),
        collection: COLLECTION,
        query: vec![0.0; 4].into(),
        ef_search: 100,
        page_rows: 64,
        consistency: Consistency::Eventual,
        min_lsn: 0,
        snapshot_xmin: u64::MAX,
        deadline: tokio::time::Instant::now() + timeout,
        exact: false,
    }
}

pub async fn read_all(client: &ClusterClient, mut between: impl FnMut(usize)) -> Vec<u64> {
    let (mut scan, mut page) = client
        .open_scan(spec(Duration::from_secs(10)))
        .await
        .unwrap();
    let mut rows = Vec::new();
    for number in 0.. {
        assert_eq!(page.stats.partitions, 4);
        let keys = page.rows.iter().map(|(key, _)| key[..].try_into().unwrap());
        rows.extend(keys.map(u64::from_be_bytes));
        if page.exhausted {
            break;
        }
        between(number);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        page = scan.next_page(deadline).await.unwrap();
    }
    scan.close();
    rows
}

pub fn all_rows() -> Vec<u64> {
    (0..ROWS).collect()
}
