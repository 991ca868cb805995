//! One file: the index, what is said of it ([`crate::storage::checkpoint_format`]), the length of the latter, and a mark.

use crate::storage::Corrupt;
use crate::storage::checkpoint_format::{CheckpointContents, decode_contents};
use cluster_core::ids::PartitionId;
use index_engine::checkpoint::{Checkpoint, CheckpointError, Loading, Source};
use index_engine::{IndexParams, PartitionIndex};
use rustix::fs::{Advice, OFlags, fadvise, statvfs};
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MARK: [u8; 8] = *b"RvNodeCp";
const FOOTER_BYTES: u64 = 16;
/// What the disk has not yet taken at most, so that others' fsyncs do not wait for it.
const UNSYNCED_BYTES_MAX: usize = 64 << 20;
/// What reading past the system's cache asks of offsets, lengths and addresses.
const DIRECT_BYTES: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("reading the file: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Index(#[from] CheckpointError),
    #[error(transparent)]
    Contents(#[from] Corrupt),
    #[error("{0}")]
    Foreign(String),
}

fn foreign<T>(why: impl Into<String>) -> Result<T, Unusable> {
    Err(Unusable::Foreign(why.into()))
}

/// Writes and syncs; returns the bytes. Refuses where the disk would be left with less
/// room than it takes itself: the rows need it more.
pub fn write(
    path: &Path,
    checkpoint: Checkpoint,
    index: &PartitionIndex,
    contents: &[u8],
) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let room = statvfs(path)?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let needed = index.memory_bytes() as u64 + contents.len() as u64;
    if free < needed.saturating_mul(2) {
        let what = format!("{free} bytes are free, twice {needed} are asked for");
        return Err(io::Error::new(io::ErrorKind::StorageFull, what));
    }
    let mut sink = Steady {
        file: &mut file,
        unsynced: 0,
    };
    let bytes = checkpoint.write(index, &mut sink)?;
    sink.write_all(contents)?;
    sink.write_all(&(contents.len() as u64).to_le_bytes())?;
    sink.write_all(&MARK)?;
    file.sync_all()?;
    Ok(bytes + contents.len() as u64 + FOOTER_BYTES)
}

/// Syncs as it goes.
struct Steady<'a> {
    file: &'a mut File,
    unsynced: usize,
}

impl Write for Steady<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= UNSYNCED_BYTES_MAX {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads the index and what is said of it, verified.
pub fn read(
    path: &Path,
    partition: PartitionId,
    params: &IndexParams,
    threads: usize,
) -> Result<(PartitionIndex, CheckpointContents), Unusable> {
    let mut source = OnDisk::open(path)?;
    let all = source.bytes;
    let Some(body_end) = all.checked_sub(FOOTER_BYTES) else {
        return foreign("the file is too short");
    };
    let mut footer = [0; FOOTER_BYTES as usize];
    source.read_at(body_end, &mut footer)?;
    let (length, mark) = footer.split_at(8);
    let length = length
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte));
    let index_bytes = match body_end.checked_sub(length) {
        Some(bytes) if mark == MARK => bytes,
        _ => return foreign("the file does not end as a checkpoint does"),
    };
    let mut contents = vec![0; length as usize];
    source.read_at(index_bytes, &mut contents)?;
    let contents = decode_contents(partition, &contents)?;
    source.bytes = index_bytes;
    let loading = Loading::open(&source, None)?;
    if loading.params() != params {
        return foreign(format!(
            "it is of {:?}, not of {params:?}",
            loading.params()
        ));
    }
    if !loading.columns().is_empty() {
        return foreign(format!(
            "it is of {} columns of attributes, and a node's indexes have none",
            loading.columns().len()
        ));
    }
    let rows = loading.rows();
    if contents
        .rows
        .last()
        .is_some_and(|(id, _)| *id as usize >= rows)
    {
        return foreign(format!("it names vectors beyond its {rows}"));
    }
    std::thread::scope(|scope| {
        let read = || scope.spawn(|| loading.read(&source));
        let running: Vec<_> = (0..threads).map(|_| read()).collect();
        running.into_iter().try_for_each(|thread| {
            let panicked = |_| Err(io::Error::other("a reader panicked").into());
            thread.join().unwrap_or_else(panicked)
        })
    })?;
    Ok((loading.finish()?, contents))
}

/// What the system has in its cache is taken from there; the rest is read past it, which
/// is quicker, and nothing else has to leave memory for it.
struct OnDisk {
    file: File,
    direct: Option<File>,
    bytes: u64,
}

impl OnDisk {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // What is read ahead would seem to have been there. A refusal changes nothing.
        let _ = fadvise(&file, 0, None, Advice::Random);
        let mut options = OpenOptions::new();
        let flags = OFlags::DIRECT.bits() as i32;
        let direct = options.read(true).custom_flags(flags).open(path);
        Ok(Self {
            bytes: file.metadata()?.len(),
            file,
            direct: direct.ok(),
        })
    }

    fn read_cached(&self, offset: u64, into: &mut [u8]) -> bool {
        let length = into.len();
        let mut parts = [IoSliceMut::new(into)];
        let read = preadv2(&self.file, &mut parts, offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == length)
    }
}

impl Source for OnDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.read_cached(offset, into) {
            return Ok(());
        }
        let parts = [offset as usize, into.as_ptr().addr(), into.len()];
        let is_aligned = parts.iter().all(|part| part.is_multiple_of(DIRECT_BYTES));
        match &self.direct {
            Some(direct) if is_aligned && direct.read_exact_at(into, offset).is_ok() => Ok(()),
            _ => self.file.read_exact_at(into, offset),
        }
    }
}
