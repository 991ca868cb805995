//! A sweep and the queue, with the writer's turns taken by hand: which job comes next does
//! not depend on how fast anybody is.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::partition::job::StreamGaps;
use crate::partition::replica::ReplicaId;
use crate::source::Sources;
use crate::storage::StorageConfig;
use crate::testing::{PARTITION, batch, end, key, upsert};
use cluster_core::backfill::BackfillMark;
use cluster_core::collection::Metric;
use cluster_core::ids::{CollectionId, Generation, SourceId};
use index_engine::IndexParams;

/// A sweep removes these …
const SWEPT: u32 = 8_000;
/// … and goes over so many, in so many pieces.
const ROWS: u32 = 35_000;
const PIECES: usize = 4;
const BACKFILL: BackfillId = BackfillId(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// A piece of the sweep.
    Sweep,
    Queue,
}

/// A writer without its thread, beside the end of its queue that others hold.
struct ByHand {
    writer: Writer,
    jobs: mpsc::Sender<Job>,
    next: Option<Job>,
    /// The last batch that was queued ends here.
    queued_to: u64,
    gaps: Arc<StreamGaps>,
}

impl ByHand {
    /// With rows below and above a sweep, and an open backfill.
    fn new(dir: &std::path::Path) -> Self {
        let metrics = Arc::new(Metrics::default());
        let storage = Storage::open(dir, &StorageConfig::default(), metrics.clone());
        let storage = Arc::new(storage.unwrap());
        let source = Sources::new(storage.clone()).get(SourceId(1)).unwrap();
        let meta = PartitionMeta {
            source: SourceId(1),
            collection: CollectionId(2),
            generation: Generation(1),
            metric: Metric::L2,
            dimensions: 2,
            m: 16,
            ef_construction: 64,
            truncated: WalPosition::ZERO,
            stamp_high: WalPosition::ZERO,
            last_backfill: BackfillId(0),
            open_backfill: None,
            backfill_mark: None,
            trusted_from: None,
        };
        let index = IndexState::new(IndexParams {
            metric: index_engine::Metric::L2,
            dimensions: 2,
            ..IndexParams::default()
        });
        let index = index.unwrap();
        let id = ReplicaId {
            partition: PARTITION,
            generation: meta.generation,
            collection: meta.collection,
            source: meta.source,
            dimensions: 2,
        };
        let config = ApplyConfig::default();
        let (sender, jobs) = mpsc::channel(config.queue_max);
        let live = index.live().clone();
        let replica = Replica::new(id, source, WalPosition::ZERO, live, sender.clone());
        let writer = Writer {
            replica: Arc::new(replica),
            context: WriterContext {
                storage,
                metrics,
                memory: Arc::new(Memory::of_process(u64::MAX)),
                config,
                checkpoints: Arc::new(Checkpoints::new(dir.join("checkpoints"))),
            },
            meta,
            index,
            jobs,
            taking: Taking::nothing(0),
            replayed: WalPosition::ZERO,
            swept: None,
            sweeping: None,
            in_hand: InHand::default(),
        };
        let mut by_hand = Self {
            writer,
            jobs: sender,
            next: None,
            queued_to: 0,
            gaps: Arc::default(),
        };
        for rows in [0..SWEPT, SWEPT..ROWS] {
            by_hand.queue_batch(rows);
            by_hand.turn();
        }
        let (reply, mut opened) = oneshot::channel();
        by_hand.queue(Job::OpenBackfill {
            backfill: BACKFILL,
            since: Some(BACKFILL),
            published: None,
            reply,
        });
        by_hand.turn();
        opened.try_recv().unwrap().unwrap();
        by_hand
    }

    /// What the writer's loop does once.
    fn turn(&mut self) -> Turn {
        let job = self.writer.next_job(&mut self.next).unwrap();
        let turn = match job {
            Job::Sweep(_) => Turn::Sweep,
            _ => Turn::Queue,
        };
        self.writer.step(job, &mut self.next).unwrap();
        turn
    }

    fn queue(&self, job: Job) {
        assert!(self.jobs.try_send(job).is_ok(), "the queue is full");
    }

    fn queue_batch(&mut self, rows: std::ops::Range<u32>) {
        let rows = rows.map(|n| upsert(n, [1.0, 0.0])).collect();
        let to = self.queued_to + 10;
        self.queue(Job::Apply {
            batch: batch(self.queued_to, to, rows),
            gaps: self.gaps.clone(),
            memory: None,
        });
        self.queued_to = to;
    }

    /// Batches, and what no commit takes together with them.
    fn fill_queue(&mut self) {
        while self.jobs.capacity() >= 2 {
            self.queue_batch(ROWS..ROWS + 1);
            let (reply, _) = oneshot::channel();
            let keys = vec![key(ROWS)];
            self.queue(Job::Find { keys, reply });
        }
    }

    fn queue_sweep(&self) -> oneshot::Receiver<Result<Option<BackfillMark>, String>> {
        let (reply, swept) = oneshot::channel();
        self.queue(Job::Sweep(Sweep {
            backfill: BACKFILL,
            below: end(11),
            after: None,
            removed: 0,
            reply,
        }));
        swept
    }
}

#[test]
fn p10_a_sweep_comes_to_its_end_though_the_queue_is_always_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = ByHand::new(dir.path());
    let mut swept = t.queue_sweep();
    let mut turns = Vec::new();
    while swept.try_recv().is_err() {
        turns.push(t.turn());
        t.fill_queue();
        // Behind a batch comes what could not be committed with it, before the sweep.
        assert!(turns.len() <= 3 * PIECES, "it does not end: {turns:?}");
    }
    let pieces = turns.iter().filter(|turn| **turn == Turn::Sweep);
    assert_eq!(pieces.count(), PIECES, "{turns:?}");
    let kept = (ROWS - SWEPT) as usize;
    assert_eq!(t.writer.index.rows(), kept + 1, "and what is written since");
}

#[test]
fn p4_what_is_queued_is_applied_between_two_pieces_of_a_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = ByHand::new(dir.path());
    let mut swept = t.queue_sweep();
    let mut new = ROWS..;
    for piece in 1..PIECES {
        assert_eq!(t.turn(), Turn::Sweep, "piece {piece}");
        let row = new.next().unwrap();
        t.queue_batch(row..row + 1);
        assert_eq!(t.turn(), Turn::Queue, "behind piece {piece}");
        let applied = t.writer.replica.progress.applied();
        assert_eq!(applied, end(t.queued_to), "behind piece {piece}");
        assert!(swept.try_recv().is_err(), "too short to be looked at");
    }
    // Nothing is queued: it waits for nobody.
    assert_eq!(t.turn(), Turn::Sweep);
    swept.try_recv().unwrap().unwrap();
    let kept = (ROWS - SWEPT) as usize;
    assert_eq!(t.writer.index.rows(), kept + PIECES - 1);
}
