//! Moves of replicas on the wire.

use crate::convert::BadMessage;
use crate::v1;
use cluster_core::control::{MoveReason, PlannedMove, RebalanceMode};
use cluster_core::ids::{NodeId, PartitionId};

impl From<MoveReason> for v1::MoveReason {
    fn from(reason: MoveReason) -> Self {
        match reason {
            MoveReason::Drain => Self::Drain,
            MoveReason::Balance => Self::Balance,
            MoveReason::Repair => Self::Repair,
            MoveReason::Operator => Self::Operator,
        }
    }
}

impl TryFrom<v1::MoveReason> for MoveReason {
    type Error = BadMessage;

    fn try_from(wire: v1::MoveReason) -> Result<Self, BadMessage> {
        match wire {
            v1::MoveReason::Drain => Ok(Self::Drain),
            v1::MoveReason::Balance => Ok(Self::Balance),
            v1::MoveReason::Repair => Ok(Self::Repair),
            v1::MoveReason::Operator => Ok(Self::Operator),
            v1::MoveReason::Unspecified => Err(BadMessage::Unknown("reason of a move")),
        }
    }
}

impl From<RebalanceMode> for v1::RebalanceMode {
    fn from(mode: RebalanceMode) -> Self {
        match mode {
            RebalanceMode::Auto => Self::Auto,
            RebalanceMode::Manual => Self::Manual,
            RebalanceMode::Paused => Self::Paused,
        }
    }
}

impl TryFrom<v1::RebalanceMode> for RebalanceMode {
    type Error = BadMessage;

    fn try_from(wire: v1::RebalanceMode) -> Result<Self, BadMessage> {
        match wire {
            v1::RebalanceMode::Auto => Ok(Self::Auto),
            v1::RebalanceMode::Manual => Ok(Self::Manual),
            v1::RebalanceMode::Paused => Ok(Self::Paused),
            v1::RebalanceMode::Unspecified => Err(BadMessage::Unknown("rebalance mode")),
        }
    }
}

impl From<PlannedMove> for v1::PlannedMove {
    fn from(planned: PlannedMove) -> Self {
        Self {
            partition_id: planned.partition.0,
            to_node_id: planned.to.0,
            from_node_id: planned.from.map(|node| node.0),
            reason: v1::MoveReason::from(planned.reason).into(),
        }
    }
}

impl TryFrom<v1::PlannedMove> for PlannedMove {
    type Error = BadMessage;

    fn try_from(wire: v1::PlannedMove) -> Result<Self, BadMessage> {
        let reason = wire.reason().try_into()?;
        Ok(Self {
            partition: PartitionId(wire.partition_id),
            to: NodeId(wire.to_node_id),
            from: wire.from_node_id.map(NodeId),
            reason,
        })
    }
}
