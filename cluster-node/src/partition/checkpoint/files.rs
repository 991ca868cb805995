//! A folder for each partition: the file that is named, one that is being written, and
//! the last one that was corrupt.

use cluster_core::ids::PartitionId;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const CORRUPT: &str = "corrupt";

pub struct Checkpoints {
    folder: PathBuf,
    /// One at a time: each is as large as its index.
    is_writing: AtomicBool,
}

impl Checkpoints {
    pub fn new(folder: PathBuf) -> Self {
        let is_writing = AtomicBool::new(false);
        Self { folder, is_writing }
    }

    /// False while another one is written.
    pub(super) fn try_begin(&self) -> bool {
        !self.is_writing.swap(true, Ordering::SeqCst)
    }

    pub(super) fn end(&self) {
        self.is_writing.store(false, Ordering::SeqCst);
    }

    fn of(&self, partition: PartitionId) -> PathBuf {
        self.folder.join(partition.0.to_string())
    }

    pub fn path(&self, partition: PartitionId, number: u64) -> PathBuf {
        self.of(partition).join(number.to_string())
    }

    /// Where it is written until it is whole.
    pub(super) fn temporary(&self, partition: PartitionId, number: u64) -> io::Result<PathBuf> {
        let folder = self.of(partition);
        fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{number}.tmp")))
    }

    /// Gives the durable file its name, durably.
    pub(super) fn publish(&self, partition: PartitionId, number: u64) -> io::Result<()> {
        let written = self.temporary(partition, number)?;
        fs::rename(written, self.path(partition, number))?;
        let folder = self.of(partition);
        [&folder, &self.folder]
            .into_iter()
            .try_for_each(|folder| sync(folder))
    }

    /// Removes every file but this one, and what is kept of corrupt ones.
    pub(super) fn keep_only(&self, partition: PartitionId, number: Option<u64>) {
        let keep = number.map(|number| number.to_string());
        let Ok(entries) = fs::read_dir(self.of(partition)) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name != CORRUPT && Some(name.to_string_lossy().as_ref()) != keep.as_deref() {
                remove(&entry.path());
            }
        }
    }

    /// Removes one that was written and is not wanted.
    pub(super) fn discard(&self, partition: PartitionId, number: u64) {
        let path = self.path(partition, number);
        if path.exists() {
            remove(&path);
        }
    }

    /// Puts a file aside to be looked at, in the place of an earlier one.
    pub(super) fn put_aside(&self, partition: PartitionId, number: u64) -> PathBuf {
        let aside = self.of(partition).join(CORRUPT);
        // A file that is not there is no loss: then there is nothing to look at.
        let _ = fs::rename(self.path(partition, number), &aside);
        aside
    }

    /// The partition leaves the node, or comes to it.
    pub fn remove(&self, partition: PartitionId) {
        // Another replica's files are not used, whether they are gone or not.
        let _ = fs::remove_dir_all(self.of(partition));
    }

    /// Of partitions that are no longer here nothing stays.
    pub fn keep_partitions(&self, held: &[PartitionId]) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let id = entry.file_name().to_string_lossy().parse().ok();
            if let Some(partition) = id.map(PartitionId).filter(|id| !held.contains(id)) {
                self.remove(partition);
            }
        }
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a file that nobody needs stays");
    }
}
