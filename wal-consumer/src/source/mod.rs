//! One source: attempts at following it, one after the other, until the lease
//! ends. In reading order: what must be so before ([`preflight`], `answers`, [`breaks`]), one run
//! ([`run`]), what a transaction does (`prepare`, [`commit`], [`key_change`]), who comes to
//! serve and who is left behind ([`replica_changes`], [`slot_limit`]), what the slot costs the
//! server ([`slot_watch`], [`slot_trace`]), what its creation waits for ([`slot_wait`]) and what moves it in a quiet database ([`heartbeat`]), and the parties: Postgres (how it is reached, [`postgres`], [`sql`]; what the role may
//! do, [`rights`], [`facts`]; [`xmin`], [`publication`], [`detachment`]), the coordinators
//! ([`coordination`]) and who gives them orders ([`orders`]), the table that lists the
//! collections ([`definitions`]).

mod answers;
mod breaks;
pub mod commit;
pub mod coordination;
pub mod definitions;
pub mod detachment;
pub mod facts;
pub mod heartbeat;
pub mod key_change;
pub mod orders;
pub mod postgres;
pub mod preflight;
mod prepare;
pub mod publication;
pub mod replica_changes;
pub mod rights;
pub mod run;
pub mod slot_limit;
pub mod slot_trace;
pub mod slot_wait;
pub mod slot_watch;
pub mod sql;
pub mod xmin;

use crate::config::Config;
use crate::feed::progress::{Promotions, RunEnd};
use crate::metrics::Metrics;
use crate::retry::Backoff;
use cluster_client::ClusterClient;
use cluster_core::ids::{
    BackfillId, CollectionId, ConsumerEpoch, LeaseEpoch, MapVersion, ServerStart, SourceId,
};
use cluster_core::wal_position::Lsn;
use orders::Orders;
use parking_lot::Mutex;
use proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A run that lasted this long was a success: the next pause is short again.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// What one assignment of a source needs.
#[derive(Clone)]
pub struct SourceContext {
    pub config: Arc<Config>,
    pub client: ClusterClient,
    pub source: SourceId,
    /// Fences every other consumer of the source.
    pub token: ConsumerEpoch,
    /// The map that the assignment was read from. Only the token's holder creates
    /// collections, so that one as new shows all of them.
    pub map_floor: (LeaseEpoch, MapVersion),
    pub metrics: Metrics,
    pub standing: Arc<Standing>,
    /// Outlives the runs.
    pub promotions: Promotions,
    /// Ends with the lease.
    pub cancel: CancellationToken,
}

/// Where a source stands, for the lease's reports.
#[derive(Default)]
pub struct Standing {
    state: Mutex<StandingState>,
}

#[derive(Clone, Default)]
pub struct StandingState {
    pub received: Lsn,
    pub applied: Lsn,
    pub confirmed: Lsn,
    pub server_flush: Lsn,
    pub retained_wal_bytes: u64,
    /// `None`: nothing limits what the server keeps.
    pub safe_wal_bytes: Option<u64>,
    pub wal_status: String,
    /// In force; 0: none.
    pub slot_hold_limit_bytes: u64,
    pub slot_warnings: Vec<String>,
    /// What the making of the source's own slot waits for; empty: nothing.
    pub slot_waits_for: String,
    /// The server that is streamed from right now.
    pub streams_from: Option<ServerStart>,
    pub backfills: BTreeMap<CollectionId, BackfillStanding>,
}

/// How far a backfill is, those before it of the same collection included.
#[derive(Clone, Debug, Default)]
pub struct BackfillStanding {
    pub backfill: BackfillId,
    pub rows_estimated: u64,
    pub rows_copied: u64,
    pub blocks_copied: u32,
    pub blocks_total: u32,
    pub snapshots: u32,
    /// What its next snapshot waits for; empty: nothing.
    pub waits_for: String,
}

impl Standing {
    pub fn update(&self, change: impl FnOnce(&mut StandingState)) {
        change(&mut self.state.lock());
    }

    /// How far the server has written, as it was asked last.
    pub fn server_flush(&self) -> Lsn {
        self.state.lock().server_flush
    }

    /// WAL that the server kept for the slot when it was asked last.
    pub fn retained_wal_bytes(&self) -> u64 {
        self.state.lock().retained_wal_bytes
    }

    pub fn report(&self, source: SourceId) -> v1::SourceProgress {
        let state = self.state.lock().clone();
        let backfills = state
            .backfills
            .iter()
            .map(|(id, standing)| v1::BackfillProgress {
                collection_id: id.0,
                backfill_id: standing.backfill.0,
                rows_estimated: standing.rows_estimated,
                rows_copied: standing.rows_copied,
                blocks_copied: u64::from(standing.blocks_copied),
                blocks_total: u64::from(standing.blocks_total),
                snapshots: u64::from(standing.snapshots),
                waits_for: standing.waits_for.clone(),
            });
        let mut slot_warnings = state.slot_warnings;
        if !state.slot_waits_for.is_empty() {
            slot_warnings.push(format!("a new slot {}", state.slot_waits_for));
        }
        v1::SourceProgress {
            source_id: source.0,
            received_lsn: state.received.0,
            applied_lsn: state.applied.0,
            confirmed_lsn: state.confirmed.0,
            server_flush_lsn: state.server_flush.0,
            retained_wal_bytes: state.retained_wal_bytes,
            safe_wal_bytes: state.safe_wal_bytes,
            wal_status: state.wal_status,
            backfills: backfills.collect(),
            slot_hold_limit_bytes: state.slot_hold_limit_bytes,
            slot_warnings,
            streams_from_server_start: state.streams_from.map(|start| start.0),
        }
    }
}

/// A problem that the coordinators have been told.
pub struct Reported {
    problem: String,
    /// What could not be read stands here, and is a problem until the stream is past it.
    unread_at: Option<Lsn>,
}

impl Reported {
    /// Whether a stream that is complete up to `complete` disproves it.
    fn is_before(&self, complete: Lsn) -> bool {
        self.unread_at.is_none_or(|at| at <= complete)
    }
}

/// Follows the source until cancelled. One faulty source stops nobody else.
pub async fn follow(context: SourceContext) {
    let mut backoff = Backoff::new(&context.config);
    let mut preflight = Backoff::new(&context.config).up_to_ms(context.config.preflight_every_ms);
    let mut no_room = Backoff::new(&context.config).between_ms(
        context.config.preflight_every_ms,
        context.config.transaction_retry_ms_max,
    );
    let mut reported = None;
    loop {
        let began = Instant::now();
        let orders = Orders::now(&context);
        if orders.is_paused {
            let waiting = orders::wait_while_paused(&context, orders);
            if context.cancel.run_until_cancelled(waiting).await.is_none() {
                return;
            }
            continue;
        }
        let end = run_under(&context, orders, &mut reported).await;
        context.standing.update(|s| {
            s.backfills.clear();
            s.streams_from = None;
        });
        if !matches!(end, Some(RunEnd::Restart { .. })) {
            // Who tries again waits again.
            context.standing.update(|s| s.slot_waits_for.clear());
        }
        let Some(end) = end else {
            tracing::info!(source = %context.source, "the operator's orders for the source have changed");
            continue;
        };
        let is_problem = matches!(end, RunEnd::Problem(_) | RunEnd::Undecodable { .. });
        let has_no_room = matches!(end, RunEnd::NoRoom { .. });
        let unread_at = match &end {
            RunEnd::Undecodable { at, .. } | RunEnd::NoRoom { at, .. } => Some(*at),
            _ => None,
        };
        match end {
            RunEnd::Cancelled => return,
            RunEnd::Restart { label, detail } => {
                context.metrics.restarted(context.source, label);
                tracing::warn!(source = %context.source, reason = label, detail, "source starts over");
            }
            RunEnd::Lost { collection, reason } => {
                context.metrics.restarted(context.source, "lost");
                // Not done is not lost: the next run comes to the same end.
                if let Err(end) = coordination::give_up(&context, collection, &reason).await {
                    tracing::warn!(source = %context.source, %collection, %end, "collection is not failed yet");
                }
            }
            RunEnd::Problem(problem)
            | RunEnd::Undecodable { problem, .. }
            | RunEnd::NoRoom { problem, .. } => {
                context.metrics.restarted(context.source, "problem");
                let is_known = |r: &Reported| r.problem == problem && r.unread_at == unread_at;
                if !reported.as_ref().is_some_and(is_known) {
                    tracing::error!(source = %context.source, problem, "source is not followed");
                    if coordination::report(&context, None, None, &problem)
                        .await
                        .is_ok()
                    {
                        reported = Some(Reported { problem, unread_at });
                    }
                }
            }
        }
        if began.elapsed() > SETTLED_AFTER {
            backoff.reset();
        }
        if !has_no_room {
            no_room.reset();
        }
        let pause = async {
            match (has_no_room, is_problem) {
                // No order of the operator's waits for so long.
                (true, _) => tokio::select! {
                    () = no_room.pause() => {}
                    () = orders.change(&context) => {}
                },
                (false, true) => preflight.pause().await,
                (false, false) => backoff.pause().await,
            }
        };
        if context.cancel.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// One run, or `None` when other orders have ended it.
async fn run_under(
    context: &SourceContext,
    orders: Orders,
    reported: &mut Option<Reported>,
) -> Option<RunEnd> {
    let of_run = SourceContext {
        cancel: context.cancel.child_token(),
        ..context.clone()
    };
    let running = run::run(&of_run, reported);
    tokio::pin!(running);
    tokio::select! {
        end = &mut running => Some(end),
        () = orders.change(context) => {
            of_run.cancel.cancel();
            // It closes the replication connection first.
            running.await;
            None
        }
    }
}
