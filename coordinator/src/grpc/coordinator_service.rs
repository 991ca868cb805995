//! The service `Coordinator`: wire to commands and back.

use super::initialise::initialise;
use super::membership;
use super::refusal::{bad_message, refuse};
use super::renewals::{renew_consumer, renew_node, renew_tokens};
use super::status::status_of;
use super::watch::{map_at_least, maps};
use crate::coordinator::Coordinator;
use crate::membership::disks::names_every_disk;
use crate::metrics::{CONSUMER, HolderLabel, NODE};
use crate::moves::{liveness, plan_now};
use cluster_core::control::{Command, Refusal, Response as Applied};
use cluster_core::ids::*;
use cluster_core::placement::place_among;
use futures::StreamExt;
use futures::stream::BoxStream;
use proto::v1;
use proto::v1::coordinator_server::Coordinator as Service;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Names, addresses and connection strings are no longer than this.
const TEXT_BYTES_MAX: usize = 8 << 10;

pub struct CoordinatorService {
    coordinator: Arc<Coordinator>,
    shutdown: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn unexpected(response: Applied) -> Status {
    Status::internal(format!("the state machine answered {response:?}"))
}

fn check_text(what: &str, text: &str) -> Result<(), Status> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("{what} has {} bytes, at most {TEXT_BYTES_MAX}", text.len());
        return Err(Status::invalid_argument(message));
    }
    Ok(())
}

/// Who asks, and for which replica.
fn named_replica(
    request: &v1::ReplicaChangeRequest,
) -> (ConsumerEpoch, PartitionId, NodeId, Generation) {
    (
        ConsumerEpoch(request.consumer_epoch),
        PartitionId(request.partition_id),
        NodeId(request.node_id),
        Generation(request.generation),
    )
}

impl CoordinatorService {
    pub fn new(coordinator: Arc<Coordinator>, shutdown: CancellationToken) -> Self {
        Self {
            coordinator,
            shutdown,
        }
    }

    async fn done(&self, command: Command) -> Result<(), Status> {
        match self.coordinator.propose(command).await? {
            Applied::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// A coordinator of 0.1.0 could not read such a command in the log.
    fn check_no_coordinator_is_of_0_1_0(&self) -> Result<(), Status> {
        match names_every_disk(&self.coordinator) {
            true => Ok(()),
            false => Err(Status::failed_precondition(
                "a coordinator still runs 0.1.0: try again once all run this version",
            )),
        }
    }

    fn cluster_id(&self) -> String {
        self.coordinator
            .state
            .read(|state| state.map().cluster_id.clone())
    }

    fn counted<T>(&self, holder: &HolderLabel, outcome: Result<T, Status>) -> Answer<T> {
        let metrics = &self.coordinator.metrics;
        match &outcome {
            Ok(_) => metrics.lease_renewals.get_or_create(holder).inc(),
            Err(_) => metrics.lease_refusals.get_or_create(holder).inc(),
        };
        outcome.map(Response::new)
    }
}

#[tonic::async_trait]
impl Service for CoordinatorService {
    async fn initialise(
        &self,
        request: Request<v1::InitialiseRequest>,
    ) -> Answer<v1::InitialiseResponse> {
        let request = request.into_inner();
        check_text("the cluster's id", &request.cluster_id)?;
        answer(initialise(&self.coordinator, request).await?)
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Answer<v1::GetStatusResponse> {
        answer(status_of(&self.coordinator))
    }

    async fn join_node(
        &self,
        request: Request<v1::JoinNodeRequest>,
    ) -> Answer<v1::JoinNodeResponse> {
        let request = request.into_inner();
        check_text("the disk's uuid", &request.disk_uuid)?;
        check_text("the node's address", &request.address)?;
        check_text("the node's zone", &request.zone)?;
        let command = Command::JoinNode {
            disk_uuid: request.disk_uuid,
            known_as: request.node_id.map(NodeId),
            address: request.address,
            zone: request.zone,
        };
        match self.coordinator.propose(command).await? {
            Applied::NodeJoined { node } => answer(v1::JoinNodeResponse {
                node_id: node.0,
                cluster_id: self.cluster_id(),
            }),
            other => Err(unexpected(other)),
        }
    }

    async fn renew_node_lease(
        &self,
        request: Request<v1::RenewNodeLeaseRequest>,
    ) -> Answer<v1::RenewNodeLeaseResponse> {
        self.counted(
            &NODE,
            renew_node(&self.coordinator, request.into_inner()).await,
        )
    }

    async fn join_consumer(
        &self,
        request: Request<v1::JoinConsumerRequest>,
    ) -> Answer<v1::JoinConsumerResponse> {
        let received = Instant::now();
        let request = request.into_inner();
        check_text("the process's uuid", &request.process_uuid)?;
        check_text("the consumer's address", &request.address)?;
        let (reign, _) = self.coordinator.reigning()?;
        let command = Command::JoinConsumer {
            process_uuid: request.process_uuid,
            address: request.address,
        };
        match self.coordinator.propose(command).await? {
            Applied::ConsumerJoined { consumer } => {
                // Before it counts as living, and may be given more.
                renew_tokens(&self.coordinator, consumer).await?;
                // It lives, so it can be given sources; the commit was a quorum's
                // word. Should the reign be over, the next leader will see.
                let _alive = self
                    .coordinator
                    .leases
                    .renew_consumer(reign, consumer, received, None);
                self.coordinator.wake_duties();
                let cluster_id = self.cluster_id();
                answer(v1::JoinConsumerResponse {
                    consumer_id: consumer.0,
                    cluster_id,
                })
            }
            other => Err(unexpected(other)),
        }
    }

    async fn renew_consumer_lease(
        &self,
        request: Request<v1::RenewConsumerLeaseRequest>,
    ) -> Answer<v1::RenewConsumerLeaseResponse> {
        self.counted(
            &CONSUMER,
            renew_consumer(&self.coordinator, request.into_inner()).await,
        )
    }

    async fn get_map(&self, request: Request<v1::GetMapRequest>) -> Answer<v1::PartitionMap> {
        let v1::GetMapRequest { epoch, version } = request.into_inner();
        let map = map_at_least(&self.coordinator, LeaseEpoch(epoch), MapVersion(version)).await?;
        answer(map.as_ref().into())
    }

    type WatchMapStream = BoxStream<'static, Result<v1::PartitionMap, Status>>;

    async fn watch_map(
        &self,
        _request: Request<v1::WatchMapRequest>,
    ) -> Answer<Self::WatchMapStream> {
        answer(maps(&self.coordinator, self.shutdown.clone())?.boxed())
    }

    async fn add_source(
        &self,
        request: Request<v1::AddSourceRequest>,
    ) -> Answer<v1::AddSourceResponse> {
        let v1::AddSourceRequest { name, dsn } = request.into_inner();
        check_text("the source's name", &name)?;
        check_text("the connection string", &dsn)?;
        match self
            .coordinator
            .propose(Command::AddSource { name, dsn })
            .await?
        {
            Applied::SourceAdded { source } => {
                self.coordinator.wake_duties();
                answer(v1::AddSourceResponse {
                    source_id: source.0,
                })
            }
            other => Err(unexpected(other)),
        }
    }

    async fn remove_source(
        &self,
        request: Request<v1::RemoveSourceRequest>,
    ) -> Answer<v1::RemoveSourceResponse> {
        let source = SourceId(request.into_inner().source_id);
        self.done(Command::RemoveSource { source }).await?;
        answer(v1::RemoveSourceResponse {})
    }

    async fn set_source_paused(
        &self,
        request: Request<v1::SetSourcePausedRequest>,
    ) -> Answer<v1::SetSourcePausedResponse> {
        let request = request.into_inner();
        self.check_no_coordinator_is_of_0_1_0()?;
        self.done(Command::SetSourcePaused {
            source: SourceId(request.source_id),
            is_paused: request.is_paused,
        })
        .await?;
        answer(v1::SetSourcePausedResponse {})
    }

    async fn set_source_dsn(
        &self,
        request: Request<v1::SetSourceDsnRequest>,
    ) -> Answer<v1::SetSourceDsnResponse> {
        let v1::SetSourceDsnRequest { source_id, dsn } = request.into_inner();
        check_text("the connection string", &dsn)?;
        self.check_no_coordinator_is_of_0_1_0()?;
        let source = SourceId(source_id);
        self.done(Command::SetSourceDsn { source, dsn }).await?;
        answer(v1::SetSourceDsnResponse {})
    }

    async fn get_source_credentials(
        &self,
        request: Request<v1::GetSourceCredentialsRequest>,
    ) -> Answer<v1::GetSourceCredentialsResponse> {
        let source = SourceId(request.into_inner().source_id);
        self.coordinator.confirm_reign().await?;
        let dsn = self
            .coordinator
            .state
            .read(|state| state.dsn(source).map(str::to_owned));
        let dsn =
            dsn.ok_or_else(|| refuse(&self.coordinator, Refusal::UnknownSource { of: source }))?;
        answer(v1::GetSourceCredentialsResponse { dsn })
    }

    async fn report_source(
        &self,
        request: Request<v1::ReportSourceRequest>,
    ) -> Answer<v1::ReportSourceResponse> {
        let request = request.into_inner();
        check_text("the problem", &request.problem)?;
        self.done(Command::ReportSource {
            source: SourceId(request.source_id),
            token: ConsumerEpoch(request.consumer_epoch),
            slot: request.slot.map(Into::into),
            server_start: request.server_start.map(ServerStart),
            problem: request.problem,
            memberships: request
                .memberships
                .into_iter()
                .map(|(id, membership)| (CollectionId(id), membership))
                .collect(),
        })
        .await?;
        answer(v1::ReportSourceResponse {})
    }

    async fn set_slot_hold_limit(
        &self,
        request: Request<v1::SetSlotHoldLimitRequest>,
    ) -> Answer<v1::SetSlotHoldLimitResponse> {
        let request = request.into_inner();
        self.check_no_coordinator_is_of_0_1_0()?;
        self.done(Command::SetSlotHoldLimit {
            source: SourceId(request.source_id),
            limit_bytes: request.limit_bytes,
        })
        .await?;
        answer(v1::SetSlotHoldLimitResponse {})
    }

    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Answer<v1::CreateCollectionResponse> {
        let request = request.into_inner();
        let token = ConsumerEpoch(request.consumer_epoch);
        let spec = request
            .spec
            .ok_or_else(|| Status::invalid_argument("no collection spec"))?;
        for name in [
            &spec.schema_name,
            &spec.table_name,
            &spec.index_name,
            &spec.column_name,
        ] {
            check_text("a name", name)?;
        }
        let spec = cluster_core::collection::CollectionSpec::try_from(spec).map_err(bad_message)?;

        let (reign, _) = self.coordinator.reigning()?;
        let _placing = self.coordinator.placing.lock().await;
        let seed = (spec.source, spec.index_oid, spec.definition_generation);
        let policy = self.coordinator.config.placement();
        let nodes = liveness(&self.coordinator, reign)?;
        let is_dead = |node| nodes.is_dead(node, self.coordinator.config.dead_after_ms);
        let placement = self
            .coordinator
            .state
            .read(|state| place_among(state.map(), |node| !is_dead(node), policy, seed));
        let command = Command::CreateCollection {
            token,
            spec,
            placement,
        };
        match self.coordinator.propose(command).await? {
            Applied::CollectionCreated { collection } => answer(v1::CreateCollectionResponse {
                collection_id: collection.0,
            }),
            other => Err(unexpected(other)),
        }
    }

    async fn drop_collection(
        &self,
        request: Request<v1::DropCollectionRequest>,
    ) -> Answer<v1::DropCollectionResponse> {
        let request = request.into_inner();
        self.done(Command::DropCollection {
            token: ConsumerEpoch(request.consumer_epoch),
            source: SourceId(request.source_id),
            index_oid: request.index_oid,
            definition_generation: request.definition_generation,
        })
        .await?;
        answer(v1::DropCollectionResponse {})
    }

    async fn begin_backfill(
        &self,
        request: Request<v1::BeginBackfillRequest>,
    ) -> Answer<v1::BeginBackfillResponse> {
        let request = request.into_inner();
        let command = Command::BeginBackfill {
            token: ConsumerEpoch(request.consumer_epoch),
            collection: CollectionId(request.collection_id),
        };
        match self.coordinator.propose(command).await? {
            Applied::BackfillBegun { backfill } => answer(v1::BeginBackfillResponse {
                backfill_id: backfill.0,
            }),
            other => Err(unexpected(other)),
        }
    }

    async fn finish_backfill(
        &self,
        request: Request<v1::FinishBackfillRequest>,
    ) -> Answer<v1::FinishBackfillResponse> {
        let request = request.into_inner();
        let snapshot = request
            .snapshot
            .ok_or_else(|| Status::invalid_argument("no backfill snapshot"))?;
        self.done(Command::FinishBackfill {
            token: ConsumerEpoch(request.consumer_epoch),
            collection: CollectionId(request.collection_id),
            backfill: BackfillId(request.backfill_id),
            snapshot: snapshot.into(),
        })
        .await?;
        answer(v1::FinishBackfillResponse {})
    }

    async fn fail_collection(
        &self,
        request: Request<v1::FailCollectionRequest>,
    ) -> Answer<v1::FailCollectionResponse> {
        let request = request.into_inner();
        check_text("the reason", &request.reason)?;
        self.done(Command::FailCollection {
            token: ConsumerEpoch(request.consumer_epoch),
            collection: CollectionId(request.collection_id),
            reason: request.reason,
        })
        .await?;
        answer(v1::FailCollectionResponse {})
    }

    async fn break_history(
        &self,
        request: Request<v1::BreakHistoryRequest>,
    ) -> Answer<v1::BreakHistoryResponse> {
        let request = request.into_inner();
        check_text("the slot's name", &request.slot_name)?;
        check_text("the reason", &request.reason)?;
        let slot = request.slot;
        let slot = slot.ok_or_else(|| Status::invalid_argument("no slot"))?;
        self.check_no_coordinator_is_of_0_1_0()?;
        self.done(Command::BreakHistory {
            source: SourceId(request.source_id),
            token: ConsumerEpoch(request.consumer_epoch),
            expected: Incarnation(request.expected_incarnation),
            slot: slot.into(),
            slot_name: request.slot_name,
            server_start: request.server_start.map(ServerStart),
            reason: request.reason,
        })
        .await?;
        answer(v1::BreakHistoryResponse {})
    }

    async fn follow_timeline(
        &self,
        request: Request<v1::FollowTimelineRequest>,
    ) -> Answer<v1::FollowTimelineResponse> {
        let request = request.into_inner();
        self.check_no_coordinator_is_of_0_1_0()?;
        self.done(Command::FollowTimeline {
            source: SourceId(request.source_id),
            token: ConsumerEpoch(request.consumer_epoch),
            from: request.from_timeline,
            to: request.to_timeline,
        })
        .await?;
        answer(v1::FollowTimelineResponse {})
    }

    async fn request_reconcile(
        &self,
        request: Request<v1::RequestReconcileRequest>,
    ) -> Answer<v1::RequestReconcileResponse> {
        let request = request.into_inner();
        check_text("the reason", &request.reason)?;
        self.check_no_coordinator_is_of_0_1_0()?;
        self.done(Command::RequestReconcile {
            collection: CollectionId(request.collection_id),
            reason: request.reason,
        })
        .await?;
        answer(v1::RequestReconcileResponse {})
    }

    async fn promote_replica(
        &self,
        request: Request<v1::ReplicaChangeRequest>,
    ) -> Answer<v1::ReplicaChangeResponse> {
        let (token, partition, node, generation) = named_replica(request.get_ref());
        self.done(Command::PromoteReplica {
            token,
            partition,
            node,
            generation,
            waits_out: names_every_disk(&self.coordinator),
        })
        .await?;
        answer(v1::ReplicaChangeResponse {})
    }

    async fn demote_replica(
        &self,
        request: Request<v1::ReplicaChangeRequest>,
    ) -> Answer<v1::ReplicaChangeResponse> {
        let (token, partition, node, generation) = named_replica(request.get_ref());
        self.done(Command::DemoteReplica {
            token,
            partition,
            node,
            generation,
            min_required: self.coordinator.config.min_required,
        })
        .await?;
        answer(v1::ReplicaChangeResponse {})
    }

    async fn mark_stale(
        &self,
        request: Request<v1::ReplicaChangeRequest>,
    ) -> Answer<v1::ReplicaChangeResponse> {
        let (token, partition, node, generation) = named_replica(request.get_ref());
        let reason = request.into_inner().reason;
        check_text("the reason", &reason)?;
        self.done(Command::MarkStale {
            token,
            partition,
            node,
            generation,
            reason,
        })
        .await?;
        answer(v1::ReplicaChangeResponse {})
    }

    async fn set_draining(
        &self,
        request: Request<v1::SetDrainingRequest>,
    ) -> Answer<v1::SetDrainingResponse> {
        let v1::SetDrainingRequest {
            node_id,
            is_draining,
        } = request.into_inner();
        let node = NodeId(node_id);
        self.done(Command::SetDraining { node, is_draining })
            .await?;
        self.coordinator.wake_duties();
        answer(v1::SetDrainingResponse {})
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let node = NodeId(request.into_inner().node_id);
        self.done(Command::RemoveNode { node }).await?;
        answer(v1::RemoveNodeResponse {})
    }

    async fn set_rebalance(
        &self,
        request: Request<v1::SetRebalanceRequest>,
    ) -> Answer<v1::SetRebalanceResponse> {
        let mode = request
            .into_inner()
            .mode()
            .try_into()
            .map_err(bad_message)?;
        self.done(Command::SetRebalance { mode }).await?;
        self.coordinator.wake_duties();
        answer(v1::SetRebalanceResponse {})
    }

    async fn plan_moves(
        &self,
        _request: Request<v1::PlanMovesRequest>,
    ) -> Answer<v1::PlanMovesResponse> {
        let (reign, _) = self.coordinator.reigning()?;
        let plan = plan_now(&self.coordinator, reign).await?;
        answer(v1::PlanMovesResponse {
            moves: plan.moves.into_iter().map(Into::into).collect(),
            conflicts: plan.conflicts.iter().map(ToString::to_string).collect(),
        })
    }

    async fn apply_moves(
        &self,
        request: Request<v1::ApplyMovesRequest>,
    ) -> Answer<v1::ApplyMovesResponse> {
        let moves = request.into_inner().moves;
        let moves = moves
            .into_iter()
            .map(|planned| planned.try_into())
            .collect::<Result<_, _>>()
            .map_err(bad_message)?;
        let _asking = self.coordinator.asking.lock().await;
        self.done(Command::PlanMoves { moves }).await?;
        self.coordinator.wake_duties();
        answer(v1::ApplyMovesResponse {})
    }

    async fn cancel_move(
        &self,
        request: Request<v1::CancelMoveRequest>,
    ) -> Answer<v1::CancelMoveResponse> {
        let partition = PartitionId(request.into_inner().partition_id);
        let running = self
            .coordinator
            .state
            .read(|state| state.moves().get(&partition).map(|m| m.generation));
        if let Some(generation) = running {
            self.done(Command::CancelMove {
                partition,
                generation,
            })
            .await?;
        }
        answer(v1::CancelMoveResponse {})
    }

    async fn add_coordinator(
        &self,
        request: Request<v1::AddCoordinatorRequest>,
    ) -> Answer<v1::AddCoordinatorResponse> {
        let request = request.into_inner();
        check_text("the coordinator's address", &request.address)?;
        answer(membership::add_coordinator(&self.coordinator, request).await?)
    }

    async fn remove_coordinator(
        &self,
        request: Request<v1::RemoveCoordinatorRequest>,
    ) -> Answer<v1::RemoveCoordinatorResponse> {
        let request = request.into_inner();
        answer(membership::remove_coordinator(&self.coordinator, request).await?)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Answer<v1::TransferLeaderResponse> {
        let request = request.into_inner();
        answer(membership::transfer_leader(&self.coordinator, request).await?)
    }
}
