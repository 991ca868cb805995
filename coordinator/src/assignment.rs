//! Keeps every source with a living consumer, and the consumers' loads even: what
//! `cluster_core::assignment` plans is carried out by leases and Raft.

use crate::coordinator::Coordinator;
use cluster_core::assignment::{Holding, plan};
use cluster_core::control::{Command, Reign};
use cluster_core::ids::{ConsumerEpoch, ConsumerId, SourceId};
use std::collections::BTreeMap;
use std::time::Instant;
use tonic::Code;

pub async fn assign_sources(coordinator: &Coordinator, reign: Reign) {
    let now = Instant::now();
    let leases = &coordinator.leases;
    let (sources, consumers) = coordinator.state.read(|s| {
        let sources: BTreeMap<SourceId, (Option<ConsumerId>, ConsumerEpoch)> = s
            .map()
            .sources
            .values()
            .map(|s| (s.id, (s.consumer, s.consumer_epoch)))
            .collect();
        let consumers: Vec<ConsumerId> = s.consumers().keys().copied().collect();
        (sources, consumers)
    });
    let holdings = sources.iter().map(|(source, (holder, token))| Holding {
        source: *source,
        holder: *holder,
        is_free: leases.is_free(reign, *source, *holder, *token, now),
    });
    let plan = plan(
        &holdings.collect::<Vec<_>>(),
        &leases.candidates(consumers, now),
    );
    let tokens: Vec<_> = sources
        .iter()
        .map(|(id, (_, token))| (*id, *token))
        .collect();
    leases.recall(reign, &tokens, &plan.recall);
    for (source, consumer) in plan.give {
        let (holder, expected) = sources[&source];
        if leases.begin_handover(reign, source, holder, expected, Instant::now()) {
            give(coordinator, reign, source, consumer, expected).await;
        }
    }
}

async fn give(
    coordinator: &Coordinator,
    reign: Reign,
    source: SourceId,
    consumer: ConsumerId,
    expected: ConsumerEpoch,
) {
    let assign = Command::AssignSource {
        source,
        consumer,
        expected,
    };
    match coordinator.propose(assign).await {
        Ok(_) => {
            tracing::info!(%source, %consumer, "source assigned");
            coordinator.metrics.handovers.inc();
        }
        // Refused for good: the source is gone or was assigned meanwhile.
        Err(status) if matches!(status.code(), Code::Aborted | Code::NotFound) => {
            coordinator.leases.end_handover(reign, source);
        }
        // The outcome is unknown: until it is, the holder is not renewed.
        Err(status) => tracing::warn!(%source, %status, "source not assigned yet"),
    }
}
