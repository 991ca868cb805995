//! What the node tells of itself, prefixed `ruvector_node_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

pub struct Metrics {
    pub apply_batches: Counter,
    pub apply_rows: Counter,
    pub apply_gaps: Counter,
    pub backfill_rows: Counter,
    /// Milliseconds that apply waited for a full tail to be folded.
    pub tail_wait_ms: Counter,
    /// … and for memory.
    pub memory_wait_ms: Counter,
    /// Replicas whose changes wait now for a full tail to be folded.
    pub waiting_for_folding: Gauge,
    pub folded_rows: Counter,
    pub repair_looks: Counter,
    /// Milliseconds that folders left the cores to apply, all threads together.
    pub fold_gave_way_ms: Counter,
    pub fsync_seconds: Histogram,
    pub searches: Counter,
    /// Of a partition each, begun again by exact distances.
    pub searches_restarted: Counter,
    pub search_seconds: Histogram,
    pub estale: Family<Reason, Counter>,
    estale_all: Counter,
    /// Answered without a lease (`lease_loss = serve_stale`), or by a stale replica.
    pub stale_pages: Counter,
    pub rows: Gauge,
    pub former_versions: Gauge,
    pub pending_rows: Gauge,
    pub tail_rows: Gauge,
    pub removed_vectors: Gauge,
    pub partitions: Gauge,
    pub learners: Gauge,
    /// Copies from peers that run now.
    pub copies_running: Gauge,
    pub copy_rows: Counter,
    pub copy_bytes: Counter,
    pub checkpoints: Counter,
    pub checkpoint_bytes: Counter,
    pub checkpoint_failures: Counter,
    /// Found corrupt, or of something else, when the node started.
    pub checkpoints_unusable: Counter,
    pub quarantined: Gauge,
    pub cursors: Gauge,
    pub memory_bytes: Gauge,
    /// Anonymous memory of the process, its limit, and 0 (free), 1 (bulk work is
    /// refused) or 2 (the stream waits).
    pub memory_used_bytes: Gauge,
    pub memory_limit_bytes: Gauge,
    pub memory_pressure: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            apply_batches: Counter::default(),
            apply_rows: Counter::default(),
            apply_gaps: Counter::default(),
            backfill_rows: Counter::default(),
            tail_wait_ms: Counter::default(),
            memory_wait_ms: Counter::default(),
            waiting_for_folding: Gauge::default(),
            folded_rows: Counter::default(),
            repair_looks: Counter::default(),
            fold_gave_way_ms: Counter::default(),
            fsync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 18)),
            searches: Counter::default(),
            searches_restarted: Counter::default(),
            search_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 18)),
            estale: Family::default(),
            estale_all: Counter::default(),
            stale_pages: Counter::default(),
            rows: Gauge::default(),
            former_versions: Gauge::default(),
            pending_rows: Gauge::default(),
            tail_rows: Gauge::default(),
            removed_vectors: Gauge::default(),
            partitions: Gauge::default(),
            learners: Gauge::default(),
            copies_running: Gauge::default(),
            copy_rows: Counter::default(),
            copy_bytes: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_bytes: Counter::default(),
            checkpoint_failures: Counter::default(),
            checkpoints_unusable: Counter::default(),
            quarantined: Gauge::default(),
            cursors: Gauge::default(),
            memory_bytes: Gauge::default(),
            memory_used_bytes: Gauge::default(),
            memory_limit_bytes: Gauge::default(),
            memory_pressure: Gauge::default(),
        }
    }
}

impl Metrics {
    pub fn refused_estale(&self, reason: &'static str) {
        self.estale.get_or_create(&Reason { reason }).inc();
        self.estale_all.inc();
    }

    pub fn estale_total(&self) -> u64 {
        self.estale_all.get()
    }

    #[rustfmt::skip]
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("ruvector_node");
        r.register("apply_batches", "Batches applied", self.apply_batches.clone());
        r.register("apply_rows", "Row changes applied", self.apply_rows.clone());
        r.register("apply_gaps", "Batches refused because something before them is missing", self.apply_gaps.clone());
        r.register("backfill_rows", "Backfill rows merged", self.backfill_rows.clone());
        r.register("tail_wait_milliseconds", "Time that apply waited for folding", self.tail_wait_ms.clone());
        r.register("memory_wait_milliseconds", "Time that apply waited for memory", self.memory_wait_ms.clone());
        r.register("waiting_for_folding", "Replicas whose changes wait for a full tail to be folded", self.waiting_for_folding.clone());
        r.register("repair_looks", "Vectors looked at to take removed ones out of the graph", self.repair_looks.clone());
        r.register("folded_rows", "Rows moved from the tail into the graph", self.folded_rows.clone());
        r.register("fold_gave_way_milliseconds", "Time that folding left to apply, all threads together", self.fold_gave_way_ms.clone());
        r.register("fsync_seconds", "Synced commits to the node's database", self.fsync_seconds.clone());
        r.register("searches", "Search requests", self.searches.clone());
        let restarted = "Searches of a partition that its codes told nothing, begun again by exact distances, as where its rows drifted";
        r.register("searches_restarted", restarted, self.searches_restarted.clone());
        r.register("search_seconds", "Search requests, waiting included", self.search_seconds.clone());
        r.register("estale", "Requests refused as ESTALE", self.estale.clone());
        let stale_pages = "Pages answered without a lease, or by a stale replica";
        r.register("stale_pages", stale_pages, self.stale_pages.clone());
        r.register("rows", "Searchable current rows", self.rows.clone());
        r.register("former_versions", "Versions kept for older snapshots", self.former_versions.clone());
        r.register("pending_rows", "Rows whose vector is not known yet", self.pending_rows.clone());
        r.register("removed_vectors", "Removed vectors that the graph still leads over, or that wait for cursors", self.removed_vectors.clone());
        r.register("tail_rows", "Rows not yet folded", self.tail_rows.clone());
        r.register("partitions", "Replicas held", self.partitions.clone());
        r.register("learners", "Replicas that copy a peer and catch up", self.learners.clone());
        r.register("copies_running", "Copies from peers under way", self.copies_running.clone());
        r.register("copy_rows", "Rows copied from peers", self.copy_rows.clone());
        r.register("copy_bytes", "Bytes of records copied from peers", self.copy_bytes.clone());
        r.register("checkpoints", "Checkpoints of indexes taken", self.checkpoints.clone());
        r.register("checkpoint_bytes", "Bytes of checkpoints written", self.checkpoint_bytes.clone());
        r.register("checkpoint_failures", "Checkpoints that could not be written", self.checkpoint_failures.clone());
        let unusable = "Checkpoints that were put aside at a start, their indexes built from rows";
        r.register("checkpoints_unusable", unusable, self.checkpoints_unusable.clone());
        r.register("quarantined_partitions", "Replicas stopped by a problem", self.quarantined.clone());
        r.register("cursors", "Open search cursors", self.cursors.clone());
        r.register("memory_bytes", "Memory of the indexes", self.memory_bytes.clone());
        r.register("memory_used_bytes", "Anonymous memory of the process", self.memory_used_bytes.clone());
        r.register("memory_limit_bytes", "Where it stops taking more", self.memory_limit_bytes.clone());
        let pressure = "0: free; 1: backfills and copies are refused; 2: the stream waits as well";
        r.register("memory_pressure", pressure, self.memory_pressure.clone());
    }
}
