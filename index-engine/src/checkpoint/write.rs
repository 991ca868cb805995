//! The cut through a living index, and its way to a sink.

use std::io::{self, Write};
use std::sync::Arc;

use super::format::{CHUNK_BYTES, Checksum, Header, Layout, PAGE_BYTES};
use super::{Cut, Kind, Section, Taken};
use crate::filter::StoredColumn;
use crate::partition_index::PartitionIndex;

/// A checkpoint that has begun: what it has to have of one moment. The rest is read from
/// the index while it is written. Belongs to the index that began it.
pub struct Checkpoint {
    cut: Cut,
    columns: Vec<StoredColumn>,
    /// The sections that are taken at the start; the others' are empty.
    taken: Vec<Vec<u8>>,
    of: Arc<()>,
}

impl PartitionIndex {
    /// Begins a checkpoint of the index as it is now, states of vectors included. Waits
    /// for the rows that are being linked, some milliseconds, and copies some 24 bytes
    /// a row, and 32 for each byte string that columns hold, which takes about 0.3 us a
    /// string. Where there are columns, nothing is inserted or removed while states and
    /// strings are copied. Searches wait for nothing, but that filtered ones may open or go
    /// on as much later.
    pub fn checkpoint(&self) -> Checkpoint {
        let _nobody_links = self.linking.write();
        // Before the cut: no slot of its rows is used again.
        let of = Arc::clone(&self.checkpoints);
        // Until lives are copied no row goes, and with it its strings.
        let (cut, unchanged) = self.cut();
        let columns = unchanged.columns();
        let sections = self.sections(cut, &columns);
        let mut taken: Vec<Vec<u8>> = sections.iter().map(|_| Vec::new()).collect();
        let mut take = |are_lives: bool| {
            for (section, bytes) in sections.iter().zip(&mut taken) {
                let is_asked = (section.kind == Kind::Lives) == are_lives;
                if is_asked && section.taken == Taken::AtStart {
                    *bytes = section.copied();
                }
            }
        };
        take(true);
        drop(unchanged);
        take(false);
        drop(sections);
        Checkpoint {
            cut,
            columns,
            taken,
            of,
        }
    }
}

impl Checkpoint {
    /// Vectors in it: those with ids below.
    pub fn rows(&self) -> usize {
        self.cut.rows as usize
    }

    pub(super) fn sections<'a>(&'a self, index: &'a PartitionIndex) -> Vec<Section<'a>> {
        index.sections(self.cut, &self.columns)
    }

    /// Writes it, beside searches, inserts and folding; returns its bytes. What was
    /// written of it when it breaks off is not taken for a checkpoint.
    ///
    /// # Panics
    /// If `index` is not the one that began it.
    pub fn write(self, index: &PartitionIndex, sink: &mut dyn Write) -> io::Result<u64> {
        assert!(
            Arc::ptr_eq(&self.of, &index.checkpoints),
            "a checkpoint is written of the index that began it"
        );
        let sections = self.sections(index);
        let layout = Layout::of(&sections);
        let header = Header::encode(index.params(), self.cut, &self.columns, &layout);
        sink.write_all(&header)?;
        let mut chunks = Chunks {
            sink,
            filled: Vec::with_capacity(2 * CHUNK_BYTES),
            sums: Vec::with_capacity(layout.chunks),
        };
        for (section, taken) in sections.iter().zip(&self.taken) {
            match section.taken {
                Taken::AtStart => chunks.append(taken.len(), |into| into.copy_from_slice(taken))?,
                Taken::Beside => {
                    for row in 0..section.rows {
                        chunks.append(section.row_bytes(), |into| section.read(row, into))?;
                    }
                }
            }
            chunks.end_section()?;
        }
        let table = layout.encode_table(&chunks.sums, &header);
        sink.write_all(&table)?;
        Ok(layout.bytes)
    }
}

/// Cuts sections into chunks with their checksums.
struct Chunks<'a> {
    sink: &'a mut dyn Write,
    filled: Vec<u8>,
    sums: Vec<u64>,
}

impl Chunks<'_> {
    fn append(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let start = self.filled.len();
        self.filled.resize(start + bytes, 0);
        fill(&mut self.filled[start..]);
        if self.filled.len() < CHUNK_BYTES {
            return Ok(());
        }
        let whole = self.filled.len() / CHUNK_BYTES * CHUNK_BYTES;
        for start in (0..whole).step_by(CHUNK_BYTES) {
            self.write(start..start + CHUNK_BYTES)?;
        }
        self.filled.drain(..whole);
        Ok(())
    }

    fn end_section(&mut self) -> io::Result<()> {
        let padded = self.filled.len().next_multiple_of(PAGE_BYTES);
        self.filled.resize(padded, 0);
        if padded > 0 {
            self.write(0..padded)?;
        }
        self.filled.clear();
        Ok(())
    }

    fn write(&mut self, chunk: std::ops::Range<usize>) -> io::Result<()> {
        let chunk = &self.filled[chunk];
        let mut sum = Checksum::default();
        sum.add(chunk);
        self.sums.push(sum.value());
        self.sink.write_all(chunk)
    }
}
