//! The bytes around the sections; docs/formats/index-checkpoint.md tells the whole.
//!
//! A header page, the sections, each from a page's start on and filled up to a page's
//! end with zeros, then the checksums of their chunks and the mark that makes a write
//! that broke off evident. Every byte is under a checksum.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::{CheckpointError, Cut, Section, corrupt};
use crate::filter::{COLUMNS_MAX, ColumnType, StoredColumn};
use crate::params::{CodeBits, Element, IndexParams, Metric, Representation, VECTORS_MAX};

/// Grows with every change of the format, and of what an index derives from a vector:
/// its rotation, its sketch, its codes.
const VERSION: u32 = 1;
/// The same with codes of several widths.
const VERSION_MIXED: u32 = 2;
/// The same with columns, whatever the widths.
const VERSION_COLUMNS: u32 = 3;
const MAGIC: [u8; 8] = *b"RuVecIdx";
const END: [u8; 8] = *b"IdxEnds.";
/// As the machine that wrote it has it in memory.
const BYTE_ORDER: u32 = 0x0102_0304;
pub(super) const PAGE_BYTES: usize = 4096;
/// Of a section, under one checksum: small enough to be in a core's cache when it is
/// summed up after it was read.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
const SUM_BYTES: usize = size_of::<u64>();
/// Digest, length, end mark.
const FOOTER_BYTES: usize = 24;
/// No index lives so long; births are counted on from what the header says.
const BIRTHS_MAX: u64 = 1 << 56;
const HEADER: &str = "header";

/// What the header says.
pub(super) struct Header {
    pub(super) params: IndexParams,
    pub(super) cut: Cut,
    pub(super) columns: Vec<StoredColumn>,
}

/// Where a section is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    /// Kind, rows, bytes of a row: as the directory has them.
    entry: [u32; 3],
    pub(super) name: &'static str,
    offset: u64,
    pub(super) bytes: u64,
}

impl Span {
    /// With the zeros up to a page's end.
    fn padded(&self) -> u64 {
        self.bytes.next_multiple_of(PAGE_BYTES as u64)
    }

    fn chunks(&self) -> usize {
        self.padded().div_ceil(CHUNK_BYTES as u64) as usize
    }
}

/// Where everything is, by what the index is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) spans: Vec<Span>,
    pub(super) chunks: usize,
    table_offset: u64,
    pub(super) bytes: u64,
}

/// A chunk of a section.
pub(super) struct Chunk {
    pub(super) section: usize,
    /// Where it is in the checkpoint.
    pub(super) offset: u64,
    /// What of the section is in it, without the zeros behind.
    pub(super) content: Range<usize>,
    pub(super) zeros: usize,
}

impl Layout {
    pub(super) fn of(sections: &[Section<'_>]) -> Self {
        let mut offset = PAGE_BYTES as u64;
        let span = |section: &Section<'_>| {
            let span = Span {
                entry: [
                    section.kind as u32,
                    section.rows,
                    section.row_bytes() as u32,
                ],
                name: section.kind.name(),
                offset,
                bytes: section.bytes() as u64,
            };
            offset += span.padded();
            span
        };
        let spans: Vec<Span> = sections.iter().map(span).collect();
        let chunks: usize = spans.iter().map(Span::chunks).sum();
        let behind = (chunks * SUM_BYTES + FOOTER_BYTES).next_multiple_of(PAGE_BYTES);
        Self {
            spans,
            chunks,
            table_offset: offset,
            bytes: offset + behind as u64,
        }
    }

    pub(super) fn chunk(&self, number: usize) -> Chunk {
        let mut within = number;
        for (section, span) in self.spans.iter().enumerate() {
            if within >= span.chunks() {
                within -= span.chunks();
                continue;
            }
            let start = within as u64 * CHUNK_BYTES as u64;
            let end = (start + CHUNK_BYTES as u64).min(span.padded());
            let content = start.min(span.bytes)..end.min(span.bytes);
            return Chunk {
                section,
                offset: span.offset + start,
                zeros: (end - start - (content.end - content.start)) as usize,
                content: content.start as usize..content.end as usize,
            };
        }
        unreachable!("chunk {number} of {}", self.chunks)
    }

    /// Where checksums and end mark are.
    pub(super) fn table(&self) -> Range<u64> {
        self.table_offset..self.bytes
    }

    /// Checksums and end mark of what was written behind a header.
    pub(super) fn encode_table(&self, sums: &[u64], header: &[u8]) -> Vec<u8> {
        assert_eq!(sums.len(), self.chunks, "a checksum for each chunk");
        let mut table: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let range = self.table();
        table.resize((range.end - range.start) as usize - FOOTER_BYTES, 0);
        let digest = digest(header, &table);
        table.extend_from_slice(&digest.to_le_bytes());
        table.extend_from_slice(&self.bytes.to_le_bytes());
        table.extend_from_slice(&END);
        table
    }

    /// The checksums, if they are those that belong to the header.
    pub(super) fn decode_table(
        &self,
        table: &[u8],
        header: &[u8],
    ) -> Result<Vec<u64>, CheckpointError> {
        let range = self.table();
        assert_eq!(table.len() as u64, range.end - range.start);
        let (table, footer) = table.split_at(table.len() - FOOTER_BYTES);
        let mut expected = digest(header, table).to_le_bytes().to_vec();
        expected.extend_from_slice(&self.bytes.to_le_bytes());
        expected.extend_from_slice(&END);
        if footer != expected {
            return Err(corrupt(
                "end",
                "its checksums or its mark are not the header's",
            ));
        }
        let sums = table.as_chunks::<SUM_BYTES>().0.iter().take(self.chunks);
        Ok(sums.map(|sum| u64::from_le_bytes(*sum)).collect())
    }
}

/// Of what is read or written piece by piece.
#[derive(Default)]
pub(super) struct Checksum(Xxh3);

impl Checksum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.digest()
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut checksum = Checksum::default();
    checksum.add(bytes);
    checksum.value()
}

fn digest(header: &[u8], table: &[u8]) -> u64 {
    let mut checksum = Checksum::default();
    checksum.add(header);
    checksum.add(table);
    checksum.value()
}

impl Header {
    /// The page of such an index.
    pub(super) fn encode(
        params: &IndexParams,
        cut: Cut,
        columns: &[StoredColumn],
        layout: &Layout,
    ) -> Vec<u8> {
        let version = match columns.is_empty() {
            false => VERSION_COLUMNS,
            true if cut.is_mixed() => VERSION_MIXED,
            true => VERSION,
        };
        let mut page = Vec::with_capacity(PAGE_BYTES);
        page.extend_from_slice(&MAGIC);
        let mut word = |word: u32| page.extend_from_slice(&word.to_le_bytes());
        word(version);
        word(u32::from_le_bytes(BYTE_ORDER.to_ne_bytes()));
        for number in [
            number_of(&METRICS, params.metric),
            number_of(&REPRESENTATIONS, params.representation),
            params.dimensions as u32,
            params.m as u32,
            params.ef_construction as u32,
            cut.rows,
            cut.upper_lists,
            layout.spans.len() as u32,
        ] {
            word(number);
        }
        page.extend_from_slice(&cut.entry.to_le_bytes());
        page.extend_from_slice(&cut.linked.to_le_bytes());
        page.extend_from_slice(&layout.bytes.to_le_bytes());
        page.extend_from_slice(&number_of(&ELEMENTS, params.element).to_le_bytes());
        page.extend_from_slice(&cut.lanes.to_le_bytes());
        let mut word = |word: u32| page.extend_from_slice(&word.to_le_bytes());
        if version >= VERSION_MIXED {
            cut.rows_by_width.into_iter().for_each(&mut word);
        }
        if version == VERSION_COLUMNS {
            word(columns.len() as u32);
            for column in columns {
                let kind = number_of(&COLUMN_TYPES, column.kind);
                [kind, column.strings, column.lines]
                    .into_iter()
                    .for_each(&mut word);
            }
        }
        for span in &layout.spans {
            for number in span.entry {
                page.extend_from_slice(&number.to_le_bytes());
            }
            page.extend_from_slice(&[0; 4]);
            page.extend_from_slice(&span.offset.to_le_bytes());
        }
        assert!(page.len() <= PAGE_BYTES - SUM_BYTES, "sections fit a page");
        page.resize(PAGE_BYTES - SUM_BYTES, 0);
        page.extend_from_slice(&checksum(&page).to_le_bytes());
        page
    }

    /// What the page says, and the length that it gives the checkpoint. Whether its
    /// directory is that of such an index, [`Self::encode`] tells.
    pub(super) fn decode(page: &[u8]) -> Result<(Self, u64), CheckpointError> {
        let mut fields = Fields(page);
        if fields.take::<8>()? != MAGIC {
            return Err(CheckpointError::NotACheckpoint);
        }
        let found = fields.word()?;
        if ![VERSION, VERSION_MIXED, VERSION_COLUMNS].contains(&found) {
            let known = VERSION_COLUMNS;
            return Err(CheckpointError::Version { found, known });
        }
        let (content, sum) = page
            .split_last_chunk::<SUM_BYTES>()
            .ok_or_else(|| corrupt(HEADER, "it is too short"))?;
        if checksum(content) != u64::from_le_bytes(*sum) {
            return Err(corrupt(HEADER, "its checksum does not match"));
        }
        if fields.take::<4>()? != BYTE_ORDER.to_ne_bytes() {
            return Err(CheckpointError::ByteOrder);
        }
        let mut params = IndexParams {
            element: Element::F32,
            metric: numbered(&METRICS, fields.word()?)?,
            representation: numbered(&REPRESENTATIONS, fields.word()?)?,
            dimensions: fields.word()? as usize,
            m: fields.word()? as usize,
            ef_construction: fields.word()? as usize,
        };
        let (rows, upper_lists) = (fields.word()?, fields.word()?);
        let _sections = fields.word()?;
        let mut cut = Cut {
            rows,
            upper_lists,
            lanes: 0,
            rows_by_width: [0; CodeBits::ALL.len()],
            entry: u64::from_le_bytes(fields.take()?),
            linked: u64::from_le_bytes(fields.take()?),
        };
        let bytes = u64::from_le_bytes(fields.take()?);
        params.element = numbered(&ELEMENTS, fields.word()?)?;
        cut.lanes = fields.word()?;
        if cut.lanes > 0 && params.element != Element::Sparse {
            return Err(corrupt(HEADER, format!("{} lanes of no row", cut.lanes)));
        }
        if found >= VERSION_MIXED {
            let may_be_none = found == VERSION_COLUMNS;
            cut.rows_by_width = fields.rows_by_width(&params, rows, may_be_none)?;
        }
        let columns = match found {
            VERSION_COLUMNS => fields.columns()?,
            _ => Vec::new(),
        };
        if rows > VECTORS_MAX || upper_lists > VECTORS_MAX || cut.linked > BIRTHS_MAX {
            let what = format!("{rows} rows, {upper_lists} upper lists");
            return Err(corrupt(HEADER, what));
        }
        let header = Self {
            params,
            cut,
            columns,
        };
        Ok((header, bytes))
    }
}

/// The place in such a list is part of the format: new ones join at the end.
const METRICS: [Metric; 6] = [
    Metric::L2,
    Metric::Cosine,
    Metric::InnerProduct,
    Metric::L1,
    Metric::Hamming,
    Metric::Jaccard,
];
const COLUMN_TYPES: [ColumnType; 4] = [
    ColumnType::Int,
    ColumnType::Float,
    ColumnType::Bool,
    ColumnType::Bytes,
];
const ELEMENTS: [Element; 4] = [Element::F32, Element::F16, Element::Sparse, Element::Bit];
const REPRESENTATIONS: [Representation; 7] = [
    Representation::ByDimensions,
    Representation::Plain,
    Representation::Coded,
    Representation::Compact(CodeBits::One),
    Representation::Compact(CodeBits::Two),
    Representation::Compact(CodeBits::Four),
    Representation::Compact(CodeBits::Eight),
];

fn number_of<T: PartialEq>(all: &[T], one: T) -> u32 {
    let at = all.iter().position(|known| *known == one);
    at.expect("every parameter has its number") as u32
}

fn numbered<T: Copy>(all: &[T], number: u32) -> Result<T, CheckpointError> {
    let known = all.get(number as usize).copied();
    known.ok_or_else(|| corrupt(HEADER, format!("a parameter is {number}, of {}", all.len())))
}

/// The header's fields in turn.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| corrupt(HEADER, "it is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    /// Of an index that is mixed indeed, or may be of one width.
    fn rows_by_width(
        &mut self,
        params: &IndexParams,
        rows: u32,
        may_be_none: bool,
    ) -> Result<[u32; CodeBits::ALL.len()], CheckpointError> {
        let mut count = [0; CodeBits::ALL.len()];
        for count in &mut count {
            *count = self.word()?;
        }
        if may_be_none && count == [0; CodeBits::ALL.len()] {
            return Ok(count);
        }
        let sum: u64 = count.iter().map(|rows| u64::from(*rows)).sum();
        match params.representation {
            Representation::Compact(bits)
                if sum == u64::from(rows) && count[bits as usize] < rows =>
            {
                Ok(count)
            }
            _ => Err(corrupt(
                HEADER,
                format!("{count:?} rows by width of {rows}"),
            )),
        }
    }

    fn columns(&mut self) -> Result<Vec<StoredColumn>, CheckpointError> {
        let count = self.word()?;
        if count == 0 || count as usize > COLUMNS_MAX {
            return Err(corrupt(HEADER, format!("{count} columns")));
        }
        let column = |number| {
            let kind = numbered(&COLUMN_TYPES, self.word()?)?;
            let (strings, lines) = (self.word()?, self.word()?);
            if kind != ColumnType::Bytes && (strings, lines) != (0, 0) {
                let what = format!("column {number} has {strings} strings and is of type {kind}");
                return Err(corrupt(HEADER, what));
            }
            Ok(StoredColumn::announced(kind, strings, lines))
        };
        (0..count).map(column).collect()
    }

    fn word(&mut self) -> Result<u32, CheckpointError> {
        self.take().map(u32::from_le_bytes)
    }
}
