//! What happens to a scan, and what it wants done about it.

use super::failure::Failure;
use super::merge::Hit;
use crate::ids::*;
use crate::map::PartitionMap;
use std::sync::Arc;

/// Milliseconds of the caller's monotonic clock.
pub type Millis = u64;

/// Every limit of a scan (P10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Doubles with every failure of a partition, so that slow is not dead.
    pub attempt_timeout_ms: Millis,
    pub attempt_doublings_max: u32,
    /// Failures of one partition in a row, before the page fails.
    pub attempts_max: u32,
    pub backoff_ms: Millis,
    pub backoff_doublings_max: u32,
    /// When a second replica is asked as well; `None`: never.
    pub hedge_after_ms: Option<Millis>,
    /// How long replicas that all answer ESTALE, with no newer map to be had, are
    /// asked again; `None`: until the deadline. For a client that no coordinator
    /// tells of the map: leases that run out then do not come back by themselves.
    pub stale_patience_ms: Option<Millis>,
    /// Keys remembered for a restart. A scan that has given more goes on, but a
    /// lost replica ends it.
    pub given_keys_max: usize,
    /// Pages in a row that may bring neither a hit nor a higher bound.
    pub barren_pages_max: u32,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            attempt_timeout_ms: 1_000,
            attempt_doublings_max: 4,
            attempts_max: 64,
            backoff_ms: 5,
            backoff_doublings_max: 6,
            hedge_after_ms: Some(200),
            stale_patience_ms: None,
            given_keys_max: 1_000_000,
            barren_pages_max: 1_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// One request to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub attempt: AttemptId,
    pub node: NodeId,
    /// The map that the generations are from.
    pub known: MapStamp,
    pub partitions: Vec<PartitionAsk>,
    /// Rows per partition.
    pub page_rows: usize,
    pub timeout_ms: Millis,
    /// Whether a node may answer what it has, flagged, though its lease has run out
    /// or its replica is stale.
    pub accepts_stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionAsk {
    pub partition: PartitionId,
    pub generation: Generation,
    /// 0 asks for the first page.
    pub resume_token: u64,
    /// The scan's map calls the replica stale: without a position reached, what it
    /// answers is flagged, whatever the node says of it.
    pub is_left_behind: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PartitionPage<K> {
    pub hits: Vec<Hit<K>>,
    pub bound: f64,
    pub exhausted: bool,
    pub resume_token: u64,
    pub tail_rows: u64,
    pub distances: u64,
    /// How long the replica let the request wait for its position.
    pub waited_ms: Millis,
    /// Answered without a lease or by a stale replica: newer rows may be missing.
    pub is_stale: bool,
}

#[derive(Clone, Debug)]
pub enum Event<K> {
    /// The page is wanted. One at a time.
    NextPage {
        rows: usize,
        deadline: Millis,
    },
    /// Every [`Command::Search`] gets exactly one `Answered` or `Failed`.
    Answered {
        attempt: AttemptId,
        pages: Vec<(PartitionId, Result<PartitionPage<K>, Failure>)>,
        /// What the node knew.
        known: MapStamp,
    },
    /// The request as a whole failed. `known`: what an ESTALE told.
    Failed {
        attempt: AttemptId,
        failure: Failure,
        known: Option<MapStamp>,
    },
    /// A map; an older one than the scan's is ignored.
    Map(Arc<PartitionMap>),
    RefreshFailed,
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command<K> {
    Search(Ask),
    /// Best effort: cursors also die of idleness.
    CloseCursors {
        node: NodeId,
        resume_tokens: Vec<u64>,
    },
    RefreshMap {
        at_least: MapStamp,
    },
    /// Send [`Event::Tick`] then, unless another event comes first.
    WakeAt(Millis),
    Page(MergedPage<K>),
    /// The page failed; the scan may be asked again.
    Fail(Failure),
}

/// Rows of all partitions in ascending order.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedPage<K> {
    pub rows: Vec<Hit<K>>,
    /// What is still to come is not nearer, as far as the indexes know.
    pub bound: f64,
    pub exhausted: bool,
    pub stats: PageStats,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStats {
    pub partitions: u32,
    /// Rows not yet folded into a graph, scanned exactly.
    pub tail_rows: u64,
    pub distances: u64,
    pub retries: u32,
    /// Times that another replica was asked after one had failed.
    pub other_replica: u32,
    pub hedges: u32,
    /// Hedges that answered first.
    pub hedges_won: u32,
    /// Partitions answered without a lease, or by a stale replica.
    pub stale_partitions: u32,
    /// How long the partition that waited longest for the position did.
    pub waited_ms: Millis,
}
