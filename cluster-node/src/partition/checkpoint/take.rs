//! When a checkpoint is due, and how the writer takes one: it begins between two commits,
//! a thread writes it beside whatever goes on, and the writer names it when it is durable.

use super::file;
use crate::config::ApplyConfig;
use crate::partition::job::Job;
use crate::partition::writer::{Fatal, Writer};
use crate::storage::WriteSet;
use crate::storage::checkpoint_format::{CheckpointContents, encode_contents};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Beyond this part of the rows what changed takes longer to replay than it is worth.
const CHANGED_ONE_IN: u64 = 4;
/// Below this part of the rows what changed is replayed in no time.
const CHANGED_FEW_IN: u64 = 100;

/// The writer's note of its checkpoints.
pub struct Taking {
    /// The newest that has begun and may be named: changes are noted under it.
    pub noted_since: Option<u64>,
    /// The one that the database names.
    named: Option<u64>,
    last: u64,
    writing: Option<Writing>,
    /// Rows changed since the newest began.
    changed: u64,
    since: Instant,
}

struct Writing {
    number: u64,
    changed_before: u64,
}

/// What became of one.
pub struct Taken {
    number: u64,
    written: Result<u64, String>,
}

impl Taking {
    /// Nothing is named; all rows count as changed.
    pub fn nothing(rows: u64) -> Self {
        Self {
            noted_since: None,
            named: None,
            last: 0,
            writing: None,
            changed: rows,
            since: Instant::now(),
        }
    }

    /// One was loaded; the newest that had begun since is `begun`.
    pub fn loaded(named: u64, begun: u64, changed: u64) -> Self {
        Self {
            noted_since: Some(begun),
            named: Some(named),
            last: begun,
            changed,
            ..Self::nothing(0)
        }
    }

    pub fn changed(&mut self, rows: u64) {
        self.changed += rows;
    }

    pub fn changed_rows(&self) -> u64 {
        self.changed
    }

    /// The index begins anew, and the database names none any more.
    pub fn forget(&mut self) {
        (self.noted_since, self.named, self.writing) = (None, None, None);
    }

    fn is_due(&self, rows: u64, config: &ApplyConfig) -> bool {
        let many = config.checkpoint_rows.max(rows / CHANGED_ONE_IN);
        let every = Duration::from_millis(config.checkpoint_every_ms);
        let is_late = self.since.elapsed() >= every;
        config.checkpoint_rows > 0
            && (self.changed >= many || (is_late && self.changed > rows / CHANGED_FEW_IN))
    }
}

/// Begins one, if it is due and none is being written on this node.
pub fn begin_if_due(writer: &mut Writer) -> Result<(), Fatal> {
    let replica = writer.replica.clone();
    let rows = writer.index.rows() as u64;
    let live = writer.index.live().clone();
    let is_folded = (live.index().tail_len() as u64) <= rows / CHANGED_ONE_IN;
    if writer.taking.writing.is_some()
        || replica.is_quarantined()
        || replica.is_learning()
        || !is_folded
        || !writer.taking.is_due(rows, &writer.context.config)
        || !writer.context.checkpoints.try_begin()
    {
        return Ok(());
    }
    let checkpoints = writer.context.checkpoints.clone();
    let checkpoint = live.index().checkpoint();
    let number = writer.taking.last + 1;
    writer.taking.last = number;
    writer.taking.noted_since = Some(number);
    writer.taking.since = Instant::now();
    writer.taking.writing = Some(Writing {
        number,
        changed_before: std::mem::take(&mut writer.taking.changed),
    });
    let mut ids: Vec<u32> = writer.index.ids().map(|id| id.0).collect();
    let mut contents = CheckpointContents {
        generation: replica.id.generation,
        number,
        watermark: replica.progress.watermarks().durable,
        rows: Vec::new(),
        pending: replica.pending.lock().iter().cloned().collect(),
    };
    let partition = replica.id.partition;
    let write = move || {
        let write = || {
            ids.sort_unstable();
            // The keys before the index: until that is written, no id gets another key.
            contents.rows = ids.iter().filter_map(|id| live.named(*id)).collect();
            let contents = encode_contents(partition, &contents);
            let path = checkpoints.temporary(partition, number)?;
            let bytes = file::write(&path, checkpoint, live.index(), &contents);
            if bytes.is_err() {
                // The error is told; what was written of it is nobody's.
                let _ = std::fs::remove_file(&path);
            }
            let bytes = bytes?;
            checkpoints.publish(partition, number)?;
            Ok(bytes)
        };
        let written = catch_unwind(AssertUnwindSafe(write))
            .unwrap_or_else(|_| Err(std::io::Error::other("it panicked; see the log")));
        checkpoints.end();
        let written = written.map_err(|error| error.to_string());
        let job = Job::CheckpointTaken(Taken { number, written });
        // A writer that is gone names none: the file is removed when the node starts.
        let _ = replica.jobs().blocking_send(job);
    };
    let spawned = std::thread::Builder::new()
        .name("checkpoint".to_owned())
        .spawn(write);
    if let Err(error) = spawned {
        writer.context.checkpoints.end();
        let written = Err(error.to_string());
        return finish(writer, Taken { number, written });
    }
    Ok(())
}

/// Names it. One that was forgotten meanwhile is nobody's.
pub fn finish(writer: &mut Writer, taken: Taken) -> Result<(), Fatal> {
    let Taken { number, written } = taken;
    let partition = writer.replica.id.partition;
    let is_wanted = |writing: &mut Writing| writing.number == number;
    let writing = writer.taking.writing.take_if(is_wanted);
    if writing.is_none() {
        writer.context.checkpoints.discard(partition, number);
        return Ok(());
    }
    if let (Some(_), Ok(bytes)) = (&writing, &written)
        && !writer.replica.is_quarantined()
    {
        let mut set = WriteSet::default();
        set.put_checkpoint(partition, number);
        writer.context.storage.commit(set)?;
        writer.taking.named = Some(number);
        writer.context.metrics.checkpoints.inc();
        writer.context.metrics.checkpoint_bytes.inc_by(*bytes);
        let took_ms = writer.taking.since.elapsed().as_millis() as u64;
        tracing::info!(%partition, number, bytes, took_ms, "checkpoint taken");
    } else if let Some(writing) = writing {
        writer.taking.changed += writing.changed_before;
        if writer.taking.named.is_none() {
            writer.taking.noted_since = None;
            let mut set = WriteSet::default();
            set.drop_checkpoint(partition);
            writer.context.storage.commit_lazily(set)?;
        }
        writer.context.metrics.checkpoint_failures.inc();
        let error = written.err().unwrap_or_else(|| "quarantined".to_owned());
        tracing::warn!(%partition, number, error, "checkpoint not taken; trying again later");
        writer.taking.since = Instant::now();
    }
    let named = writer.taking.named;
    writer.context.checkpoints.keep_only(partition, named);
    Ok(())
}
