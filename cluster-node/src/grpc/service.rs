//! The Node service: each handler converts, asks the node, converts back.

use super::{apply_stream, backfill_stream, checkpoint, convert};
use crate::node::Node;
use crate::partition::replica::Replica;
use crate::query::search::{PageError, PagingError, SearchError};
use crate::source::Source;
use crate::storage::StorageError;
use cluster_core::apply::StoredVector;
use cluster_core::ids::*;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use proto::convert::{BadMessage, required, vector_to_bytes};
use proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Keys that one ListPending answers at most.
const PENDING_KEYS_MAX: usize = 10_000;
/// What a throttled caller is told to wait.
const THROTTLE: Duration = Duration::from_millis(20);

pub struct NodeService {
    node: Arc<Node>,
    stop: CancellationToken,
}

impl NodeService {
    pub fn new(node: Arc<Node>, stop: CancellationToken) -> Self {
        Self { node, stop }
    }
}

pub fn disk(error: StorageError) -> Status {
    match error {
        StorageError::Corrupt(corrupt) => Status::data_loss(corrupt.to_string()),
        StorageError::Disk { .. } => Status::internal(error.to_string()),
    }
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(|panic| Status::internal(panic.to_string()))?
        .map_err(disk)
}

/// Takes a consumer's token durably; ESTALE for a lower one (P5).
pub async fn install(
    node: &Arc<Node>,
    id: SourceId,
    token: ConsumerEpoch,
) -> Result<Arc<Source>, Status> {
    let at = node.clone();
    let (source, installed) = blocking(move || {
        let source = at.sources.get(id)?;
        let installed = source.install(&at.storage, token)?;
        Ok((source, installed))
    })
    .await?;
    match installed {
        Ok(()) => Ok(source),
        Err(old) => Err(node.estale("consumer", old.to_string())),
    }
}

#[tonic::async_trait]
impl v1::node_server::Node for NodeService {
    type ApplyStream = ReceiverStream<Result<v1::ApplyResponse, Status>>;
    type BackfillStream = ReceiverStream<Result<v1::BackfillResponse, Status>>;

    async fn apply(
        &self,
        request: Request<Streaming<v1::ApplyRequest>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let (responses, stream) = mpsc::channel(apply_stream::RESPONSES_MAX);
        let requests = request.into_inner();
        let (node, stop) = (self.node.clone(), self.stop.clone());
        tokio::spawn(apply_stream::run(node, requests, responses, stop));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn backfill(
        &self,
        request: Request<Streaming<v1::BackfillRequest>>,
    ) -> Result<Response<Self::BackfillStream>, Status> {
        let (responses, stream) = mpsc::channel(backfill_stream::OUTSTANDING_MAX);
        let requests = request.into_inner();
        let (node, stop) = (self.node.clone(), self.stop.clone());
        tokio::spawn(backfill_stream::run(node, requests, responses, stop));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_pending(
        &self,
        request: Request<v1::ListPendingRequest>,
    ) -> Result<Response<v1::ListPendingResponse>, Status> {
        let request = request.into_inner();
        let partition = PartitionId(request.partition_id);
        let replica = self.caught_up(partition)?;
        let limit = (request.limit as usize).min(PENDING_KEYS_MAX);
        let keys = replica.pending_keys(limit).into_iter();
        Ok(Response::new(v1::ListPendingResponse {
            keys: keys.map(|key| key.as_bytes().to_vec().into()).collect(),
        }))
    }

    async fn fetch_row(
        &self,
        request: Request<v1::FetchRowRequest>,
    ) -> Result<Response<v1::FetchRowResponse>, Status> {
        use v1::fetch_row_response::Found;
        let request = request.into_inner();
        let partition = PartitionId(request.partition_id);
        let key = RowKey::from_bytes(request.key.to_vec()).map_err(BadMessage::from)?;
        let before: WalPosition = required(request.before, "before")?.into();
        let replica = self.caught_up(partition)?;
        if let Some(problem) = replica.problem() {
            return Err(Status::data_loss(problem));
        }
        let storage = self.node.storage.clone();
        // What it holds may be of before a gap: the caller reads the table instead.
        let trusted_from = replica.trusted_from();
        let found = blocking(move || storage.row_before(partition, &key, before, trusted_from));
        let found = found.await?;
        let (found, vector) = match found {
            Some(StoredVector::Value(vector)) => (Found::Value, vector_to_bytes(&vector)),
            Some(StoredVector::Pending) => (Found::Pending, Default::default()),
            None => (Found::Nothing, Default::default()),
        };
        Ok(Response::new(v1::FetchRowResponse {
            found: found.into(),
            vector,
        }))
    }

    async fn install_consumer(
        &self,
        request: Request<v1::InstallConsumerRequest>,
    ) -> Result<Response<v1::InstallConsumerResponse>, Status> {
        let request = request.into_inner();
        let id = SourceId(request.source_id);
        install(&self.node, id, ConsumerEpoch(request.consumer_epoch)).await?;
        let replicas = self.node.replicas.of_source(id);
        Ok(Response::new(v1::InstallConsumerResponse {
            partitions: replicas.iter().map(|r| convert::watermark(r)).collect(),
        }))
    }

    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        let started = Instant::now();
        let node = &self.node;
        node.metrics.searches.inc();
        let search = convert::search(request.into_inner(), &node.config.search)?;
        let answered = node.search(search).await;
        node.metrics
            .search_seconds
            .observe(started.elapsed().as_secs_f64());
        let answers = answered.map_err(|error| self.refusal(error))?;
        let pages = answers.into_iter();
        Ok(Response::new(v1::SearchResponse {
            pages: pages.map(|(id, page)| convert::page(id, page)).collect(),
            epoch: node.lease.epoch().0,
            map_version: node.map_version().0,
        }))
    }

    async fn digest(
        &self,
        request: Request<v1::DigestRequest>,
    ) -> Result<Response<v1::DigestResponse>, Status> {
        let digest = convert::digest(request.into_inner())?;
        let answered = self.node.digest(digest).await;
        let piece = answered.map_err(|error| match error {
            PagingError::Request(error) => self.refusal(error),
            PagingError::Page(PageError::Stale(reason)) => self.node.estale(reason, reason),
            PagingError::Page(PageError::Lagging(message)) => proto::error::lagging(message),
            PagingError::Page(PageError::Corrupt(problem)) => Status::data_loss(problem),
            PagingError::Page(error) => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(piece.into()))
    }

    async fn close_cursors(
        &self,
        request: Request<v1::CloseCursorsRequest>,
    ) -> Result<Response<v1::CloseCursorsResponse>, Status> {
        let tokens = request.into_inner().resume_tokens;
        self.node.queries.cursors.close(&tokens);
        Ok(Response::new(v1::CloseCursorsResponse {}))
    }

    type FetchCheckpointStream = ReceiverStream<Result<v1::CheckpointPart, Status>>;

    async fn fetch_checkpoint(
        &self,
        request: Request<v1::FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        let request = request.into_inner();
        let parts = checkpoint::send(self.node.clone(), request, self.stop.clone()).await?;
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn get_map(
        &self,
        request: Request<v1::GetMapRequest>,
    ) -> Result<Response<v1::PartitionMap>, Status> {
        let request = request.into_inner();
        let map = self.node.map();
        if (map.epoch.0, map.version.0) < (request.epoch, request.version) {
            return Err(proto::error::not_ready("this node's map is older"));
        }
        Ok(Response::new(map.as_ref().into()))
    }
}

impl NodeService {
    fn refusal(&self, error: SearchError) -> Status {
        match error {
            SearchError::Stale(reason) => self.node.estale(reason, reason),
            SearchError::Invalid(message) => Status::invalid_argument(message),
            SearchError::Stranger(stranger) => proto::error::stranger(stranger.to_string()),
            SearchError::Throttled(_) => proto::error::throttled(error.to_string(), THROTTLE),
        }
    }

    /// The replica, unless it is still copying: its rows are none that a replica
    /// of the stream ever had.
    fn caught_up(&self, partition: PartitionId) -> Result<Arc<Replica>, Status> {
        let replica = self.node.replicas.get(partition).ok_or_else(|| {
            let message = format!("{partition} is not held here");
            self.node.estale("generation", message)
        })?;
        if replica.is_learning() {
            let message = format!("{partition} is still learning here: ask a serving replica");
            return Err(self.node.estale("learning", message));
        }
        Ok(replica)
    }
}
