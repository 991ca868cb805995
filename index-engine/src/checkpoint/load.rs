//! Sections into memory, on as many threads as call.
//!
//! They are read, not mapped: memory of our own lies on huge pages, which a file's does
//! not, and a bad disk then answers with an error instead of a signal. Checksums are
//! taken of what is in memory, while a core still has it in its cache.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::format::{Checksum, Header, Layout, PAGE_BYTES};
use super::{CheckpointError, corrupt};
use crate::filter::ColumnType;
use crate::memory::Backing;
use crate::params::IndexParams;
use crate::partition_index::PartitionIndex;

/// What a checkpoint is read from.
pub trait Source: Sync {
    /// Bytes that there are.
    fn bytes(&self) -> u64;

    /// Fills `into` with the bytes from `offset` on.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Source for [u8] {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let bytes = from.and_then(|from| self.get(from..)?.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An index that is being read. Any number of threads [`Self::read`], one finishes.
pub struct Loading {
    index: PartitionIndex,
    header: Header,
    layout: Layout,
    sums: Vec<u64>,
    claimed: AtomicUsize,
    read: AtomicUsize,
    has_failed: AtomicBool,
}

impl Loading {
    /// Reads what there is to know before the sections. What is asked of memory from
    /// here on is bounded by the bytes of the source. Original vectors go into memory
    /// that `backing` hands in, if any.
    pub fn open(
        source: &(impl Source + ?Sized),
        backing: Option<Arc<dyn Backing>>,
    ) -> Result<Self, CheckpointError> {
        let found = source.bytes();
        let least = PAGE_BYTES as u64;
        if found < least {
            let expected = least;
            return Err(CheckpointError::Truncated { expected, found });
        }
        let mut page = vec![0; PAGE_BYTES];
        source.read_at(0, &mut page)?;
        let (header, expected) = Header::decode(&page)?;
        if expected != found {
            return Err(CheckpointError::Truncated { expected, found });
        }
        let types: Vec<ColumnType> = header.columns.iter().map(|column| column.kind).collect();
        let index = PartitionIndex::made(header.params.clone(), backing, &types)
            .map_err(|error| corrupt("header", error.to_string()))?;
        let layout = Layout::of(&index.sections(header.cut, &header.columns));
        let expected = Header::encode(&header.params, header.cut, &header.columns, &layout);
        if layout.bytes != found || expected != page {
            return Err(corrupt(
                "header",
                "its sections are not those of such an index",
            ));
        }
        let range = layout.table();
        let mut table = vec![0; (range.end - range.start) as usize];
        source.read_at(range.start, &mut table)?;
        let sums = layout.decode_table(&table, &page)?;
        for section in index.sections(header.cut, &header.columns) {
            section.make_room()?;
        }
        Ok(Self {
            index,
            header,
            layout,
            sums,
            claimed: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
        })
    }

    pub fn params(&self) -> &IndexParams {
        self.index.params()
    }

    /// The types of the attributes.
    pub fn columns(&self) -> &[ColumnType] {
        self.index.columns()
    }

    /// Vectors in it.
    pub fn rows(&self) -> usize {
        self.header.cut.rows as usize
    }

    /// Reads and verifies chunks until none is left that another thread has not taken,
    /// or one of them failed.
    pub fn read(&self, source: &(impl Source + ?Sized)) -> Result<(), CheckpointError> {
        while !self.has_failed.load(Ordering::Relaxed) {
            let number = self.claimed.fetch_add(1, Ordering::Relaxed);
            if number >= self.layout.chunks {
                break;
            }
            if let Err(error) = self.read_chunk(number, source) {
                self.has_failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            self.read.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Called once for each number.
    fn read_chunk(
        &self,
        number: usize,
        source: &(impl Source + ?Sized),
    ) -> Result<(), CheckpointError> {
        let chunk = self.layout.chunk(number);
        let sections = self.index.sections(self.header.cut, &self.header.columns);
        let section = &sections[chunk.section];
        let mut sum = Checksum::default();
        let mut at = chunk.content.start;
        let mut offset = chunk.offset;
        while at < chunk.content.end {
            let (memory, bytes) = section.memory_at(at);
            let bytes = bytes.min(chunk.content.end - at);
            // SAFETY: memory of the section, made by `open`, any bytes of which are
            // values. The index is nobody's yet, and no other call has this chunk.
            #[allow(unsafe_code)]
            let memory = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), bytes) };
            source.read_at(offset, memory)?;
            sum.add(memory);
            at += bytes;
            offset += bytes as u64;
        }
        let mut zeros = [0; PAGE_BYTES];
        let zeros = &mut zeros[..chunk.zeros];
        if !zeros.is_empty() {
            source.read_at(offset, zeros)?;
            sum.add(zeros);
        }
        if sum.value() == self.sums[number] {
            return Ok(());
        }
        let at = chunk.content.start;
        let what = format!("the checksum at byte {at} does not match");
        Err(corrupt(self.layout.spans[chunk.section].name, what))
    }

    /// The index, once every chunk is read: if what it says can be.
    pub fn finish(self) -> Result<PartitionIndex, CheckpointError> {
        let unread = self.layout.chunks - self.read.load(Ordering::Acquire);
        if unread > 0 {
            return Err(CheckpointError::Unread { unread });
        }
        // Checksums say that bytes are as they were written, not who wrote them.
        let Self {
            mut index, header, ..
        } = self;
        let cut = header.cut;
        index.hnsw.check(index.linked(cut))?;
        let lives = &index.lives;
        let is_removed = |row| lives.is_removed(row);
        index
            .columns
            .restore(cut.rows, header.columns, is_removed)?;
        index.restore(cut);
        Ok(index)
    }
}
