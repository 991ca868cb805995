//! Joining the cluster. A disk that knows its id joins as that node; an empty one
//! joins as a new node, under an id that was never used.

use crate::node::Node;
use crate::storage::Identity;
use cluster_client::ClientError;
use cluster_core::ids::NodeId;
use proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

const RETRY_EVERY: Duration = Duration::from_secs(1);
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// Gives an empty disk its id, before anybody is told of it.
pub fn name_disk(node: &Node) -> anyhow::Result<Identity> {
    if let Some(identity) = node.identity() {
        return Ok(identity);
    }
    let drawn = std::fs::read_to_string(RANDOM_UUID)?;
    let identity = Identity {
        disk_uuid: drawn.trim().to_owned(),
        member: None,
    };
    node.set_identity(identity.clone())?;
    Ok(identity)
}

/// Joins, however long the coordinators take to answer, unless they refuse for
/// good. `None` at shutdown.
pub async fn join(
    node: &Arc<Node>,
    address: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<NodeId>> {
    let identity = name_disk(node)?;
    let client = node.client.as_ref();
    let client = client.ok_or_else(|| anyhow::anyhow!("a node needs a client to join"))?;
    let request = v1::JoinNodeRequest {
        disk_uuid: identity.disk_uuid.clone(),
        node_id: identity.member.as_ref().map(|(id, _)| id.0),
        address: address.to_owned(),
        zone: node.config.zone.clone(),
    };
    loop {
        let joining = client.leader(|mut coordinator| {
            let request = request.clone();
            async move { coordinator.join_node(request).await }
        });
        let joined = tokio::select! {
            joined = joining => joined,
            () = shutdown.cancelled() => return Ok(None),
        };
        match joined {
            Ok(answer) => {
                let member = (NodeId(answer.node_id), answer.cluster_id);
                if let Some(known) = &identity.member
                    && *known != member
                {
                    anyhow::bail!(
                        "this disk belongs to {} of cluster {}, but the coordinators answer {} \
                         of cluster {}: check `coordinators`, or start with an empty data_dir",
                        known.0,
                        known.1,
                        member.0,
                        member.1
                    );
                }
                let id = member.0;
                let identity = Identity {
                    member: Some(member),
                    ..identity
                };
                let at = node.clone();
                tokio::task::spawn_blocking(move || at.set_identity(identity)).await??;
                return Ok(Some(id));
            }
            Err(ClientError::Refused(status)) if is_final(&status) => {
                anyhow::bail!("the coordinators refuse this node: {}", status.message())
            }
            Err(error) => tracing::warn!(%error, "not joined yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_EVERY) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

/// Whether a refusal stays one: the node was removed or belongs to another
/// cluster, or its disk is another. A failed precondition that can come to hold
/// bears a reason.
fn is_final(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && proto::error::reason(status).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_for_good_ends_the_process() {
        let removed = Status::failed_precondition("n2 is unknown to this cluster");
        assert!(is_final(&removed));
        for passing in [
            proto::error::not_leader(None),
            proto::error::not_ready("the cluster is not initialised yet"),
            Status::unavailable("election"),
            Status::resource_exhausted("limit reached: at most 1000 nodes"),
        ] {
            assert!(!is_final(&passing), "{passing}");
        }
    }
}
