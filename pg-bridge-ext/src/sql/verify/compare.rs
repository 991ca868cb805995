//! One replica against the sorted heap. The replica digests runs of rows in key
//! order; a run that differs is listed, and the keys in which it differs are judged one
//! by one. Nothing is held but a chunk of rows and a batch of keys.

use super::Subject;
use super::heap::SortedHeap;
use super::sandwich::Judge;
use crate::worker::{self, DigestCall, ReplicaPlace, ScanFailure};
use cluster_core::row_key::RowKey;
use cluster_core::verify::{Piece, RangeDigest, RowDigest, RunDigest, Wanted, differing_keys};
use cluster_core::wal_position::Lsn;

/// Rows of the heap that are held at one time. Where the replica lacks more than a run
/// has, the range is gone through in chunks.
const CHUNK_ROWS_MAX: usize = 4_096;
/// Keys that are judged together.
const BATCH_KEYS: usize = 256;
/// How long a replica may take to have applied what the heap showed, and to answer.
pub const ANSWER_MS_MAX: u64 = 30_000;

type HeapRow = (RowKey, RowDigest);

#[derive(Default)]
pub struct Findings {
    pub replica_rows: u64,
    pub differences: u64,
    pub undetermined: u64,
    /// Keys as text and what is the matter, at most as many as were asked for.
    pub named: Vec<(String, &'static str)>,
}

pub struct Comparison<'a> {
    subject: &'a Subject,
    place: ReplicaPlace,
    min_lsn: Option<Lsn>,
    keys_max: u64,
    nominated: Vec<RowKey>,
    /// A row that was read and is behind the run.
    ahead: Option<HeapRow>,
    findings: Findings,
}

impl<'a> Comparison<'a> {
    /// `min_lsn` is `None` for a replica that nobody feeds.
    pub fn new(
        subject: &'a Subject,
        place: ReplicaPlace,
        min_lsn: Option<Lsn>,
        keys_max: u64,
    ) -> Self {
        Self {
            subject,
            place,
            min_lsn,
            keys_max,
            nominated: Vec::new(),
            ahead: None,
            findings: Findings::default(),
        }
    }

    /// # Safety
    /// The subject is open; the heap stands at the partition's first row.
    pub unsafe fn run(&mut self, heap: &mut SortedHeap) -> Result<(), ScanFailure> {
        let mut after = None;
        loop {
            let wanted = Wanted::Runs {
                after: after.clone(),
            };
            let piece = self.ask(self.min_lsn, wanted)?;
            if piece.runs.is_empty() && !piece.is_complete {
                let text = format!("{} makes no headway", self.place.node);
                return Err(ScanFailure::Unavailable(text));
            }
            for run in piece.runs {
                if self.is_full() {
                    return Ok(());
                }
                if after.as_ref().is_some_and(|after| run.through <= *after) {
                    let text = format!("{} goes back in its keys", self.place.node);
                    return Err(ScanFailure::Unavailable(text));
                }
                self.compare_run(heap, after, &run)?;
                after = Some(run.through);
            }
            if piece.is_complete {
                break;
            }
        }
        self.compare_rest(heap, after)?;
        self.settle()
    }

    pub fn finish(self) -> Findings {
        self.findings
    }

    fn is_full(&self) -> bool {
        self.findings.named.len() as u64 >= self.keys_max
    }

    unsafe fn compare_run(
        &mut self,
        heap: &mut SortedHeap,
        mut after: Option<RowKey>,
        run: &RunDigest,
    ) -> Result<(), ScanFailure> {
        let mut is_whole = true;
        loop {
            let chunk = self.chunk(heap, Some(&run.through));
            let is_last = chunk.len() < CHUNK_ROWS_MAX;
            let digest: RangeDigest = chunk.iter().map(|(_, digest)| *digest).collect();
            if is_last && is_whole && digest == run.digest && run.unsearchable == 0 {
                self.findings.replica_rows += run.digest.rows;
                return Ok(());
            }
            is_whole = false;
            let through = match chunk.last() {
                Some((key, _)) if !is_last => key.clone(),
                _ => run.through.clone(),
            };
            self.list(after, &through, chunk)?;
            if is_last {
                return Ok(());
            }
            after = Some(through);
        }
    }

    /// What the heap has behind the replica's last row.
    unsafe fn compare_rest(
        &mut self,
        heap: &mut SortedHeap,
        mut after: Option<RowKey>,
    ) -> Result<(), ScanFailure> {
        loop {
            let chunk = self.chunk(heap, None);
            let Some((through, _)) = chunk.last().cloned() else {
                return Ok(());
            };
            self.list(after, &through, chunk)?;
            if self.is_full() {
                return Ok(());
            }
            after = Some(through);
        }
    }

    /// The heap's next rows up to a key, as many as are held.
    unsafe fn chunk(&mut self, heap: &mut SortedHeap, through: Option<&RowKey>) -> Vec<HeapRow> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK_ROWS_MAX {
            let Some(row) = self.ahead.take().or_else(|| heap.next()) else {
                break;
            };
            if through.is_some_and(|through| row.0 > *through) {
                self.ahead = Some(row);
                break;
            }
            chunk.push(row);
        }
        chunk
    }

    /// Nominates the keys in which a range of the replica differs from the heap's rows.
    unsafe fn list(
        &mut self,
        mut after: Option<RowKey>,
        through: &RowKey,
        heap: Vec<HeapRow>,
    ) -> Result<(), ScanFailure> {
        let mut heap = &heap[..];
        loop {
            let wanted = Wanted::Rows {
                after: after.take(),
                through: Some(through.clone()),
            };
            let piece = self.ask(self.min_lsn, wanted)?;
            let last = piece.rows.last().map(|(key, _)| key.clone());
            let upto = match last {
                Some(last) if !piece.is_complete => last,
                _ => through.clone(),
            };
            let (below, above) = heap.split_at(heap.partition_point(|(key, _)| *key <= upto));
            self.findings.replica_rows += piece.rows.len() as u64;
            self.nominated.extend(differing_keys(below, &piece.rows));
            if self.nominated.len() >= BATCH_KEYS {
                self.settle()?;
            }
            if piece.is_complete || upto >= *through || self.is_full() {
                return Ok(());
            }
            (heap, after) = (above, Some(upto));
        }
    }

    /// Judges what was nominated.
    unsafe fn settle(&mut self) -> Result<(), ScanFailure> {
        let mut nominated = std::mem::take(&mut self.nominated);
        while !nominated.is_empty() && !self.is_full() {
            let rest = nominated.split_off(nominated.len().min(BATCH_KEYS));
            let judge = Judge::new(self.subject, self.place, self.min_lsn.is_some());
            let settled = judge.settle(std::mem::replace(&mut nominated, rest))?;
            self.findings.differences += settled.differences.len() as u64;
            self.findings.undetermined += settled.undetermined.len() as u64;
            // Only who asks for a number of them wants their names.
            if self.keys_max < u64::MAX {
                let differing = settled.differences.iter();
                let differing = differing.map(|(key, kind)| (key, kind.name()));
                let others = settled.undetermined.iter().map(|key| (key, "undetermined"));
                let room = self.keys_max as usize - self.findings.named.len();
                let named: Vec<_> = differing.chain(others).take(room).collect();
                self.findings.named.extend(judge.texts(&named));
            }
        }
        Ok(())
    }

    fn ask(&self, min_lsn: Option<Lsn>, wanted: Wanted) -> Result<Piece, ScanFailure> {
        ask(self.subject, &self.place, min_lsn, wanted)
    }
}

pub fn ask(
    subject: &Subject,
    place: &ReplicaPlace,
    min_lsn: Option<Lsn>,
    wanted: Wanted,
) -> Result<Piece, ScanFailure> {
    worker::replica_digest(DigestCall {
        index: subject.name,
        partition: place.partition,
        node: place.node,
        generation: place.generation,
        min_lsn,
        timeout_ms: ANSWER_MS_MAX,
        wanted,
    })
}
