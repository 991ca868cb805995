//! What the other coordinators say when they are asked.

use crate::coordinator::Coordinator;
use futures::future::join_all;
use proto::v1;
use proto::v1::coordinator_client::CoordinatorClient;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;

/// One that takes longer does not count as reachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A coordinator's word on itself, or why there is none.
pub async fn ask(
    coordinator: &Coordinator,
    address: &str,
) -> Result<v1::GetStatusResponse, String> {
    let channel = coordinator.network.channel(address);
    let mut peer = CoordinatorClient::new(channel.map_err(|e| e.to_string())?)
        .max_decoding_message_size(proto::MESSAGE_BYTES_MAX);
    match timeout(ASK_TIMEOUT, peer.get_status(v1::GetStatusRequest {})).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}

/// Those of `voters` that answer at their address and follow this leader.
pub async fn living(
    coordinator: &Coordinator,
    voters: impl IntoIterator<Item = (u64, String)>,
) -> BTreeSet<u64> {
    let own = coordinator.config.id;
    let asking = voters.into_iter().map(|(id, address)| async move {
        let follows = |s: v1::GetStatusResponse| s.coordinator_id == id && s.leader_id == own;
        let is_living = id == own || ask(coordinator, &address).await.is_ok_and(follows);
        is_living.then_some(id)
    });
    join_all(asking).await.into_iter().flatten().collect()
}

/// Refuses a change after which no majority would answer: it could not be
/// committed, and nothing after it.
pub fn check_majority(voters: &BTreeSet<u64>, living: &BTreeSet<u64>) -> Result<(), Status> {
    if living.intersection(voters).count() * 2 > voters.len() {
        return Ok(());
    }
    let silent: Vec<_> = voters.difference(living).map(u64::to_string).collect();
    Err(Status::failed_precondition(format!(
        "of {} coordinators a majority must answer afterwards, and {} would not: \
         start them, or remove them first",
        voters.len(),
        silent.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_needs_a_living_majority_of_those_who_vote_afterwards() {
        let check = |voters: &[u64], living: &[u64]| {
            let set = |ids: &[u64]| ids.iter().copied().collect();
            check_majority(&set(voters), &set(living)).map_err(|s| s.message().to_owned())
        };
        assert_eq!(check(&[1, 2, 3], &[1, 2]), Ok(()));
        assert_eq!(check(&[1], &[1]), Ok(()));
        // Removing 2 of 1, 2 and a dead 3 would leave one of two.
        let refused = check(&[1, 3], &[1, 2]).expect_err("half is no majority");
        assert!(refused.contains("and 3 would not"), "{refused}");
    }
}
