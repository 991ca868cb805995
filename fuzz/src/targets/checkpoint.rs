//! An index checkpoint as a disk gives it. Its checksums are made right again most times,
//! or nothing but them would ever be asked. What is accepted is an index like any other:
//! it is searched, grows, shrinks, and is written and read again.
//!
//! The checksums here follow docs/formats/index-checkpoint.md, not the code.

use super::Target;
use anyhow::{Result, ensure};
use index_engine::checkpoint::{CheckpointError, Loading};
use index_engine::{
    ColumnType, Comparison, Element, Filter, Half, IndexParams, Metric, PartitionIndex,
    Representation, Value, Vector, VectorId,
};
use rand::RngExt;
use rand::rngs::SmallRng;
use xxhash_rust::xxh3::xxh3_64;

pub const TARGET: Target = Target {
    name: "checkpoint",
    corpus,
    check,
    mend: Some(mend),
};

const PAGE: usize = 4096;
const CHUNK: usize = 256 << 10;
const ENTRY: usize = 24;

fn corpus() -> Vec<Vec<u8>> {
    let kinds = [
        (Metric::L2, Representation::Plain, 60, 16),
        (Metric::Cosine, Representation::Plain, 30, 3),
        (Metric::InnerProduct, Representation::Coded, 24, 20),
        (Metric::L2, Representation::Coded, 20, 33),
        (Metric::L2, Representation::Plain, 0, 2),
    ];
    let without = kinds.map(|(m, r, rows, d)| written(m, r, rows, d, &[]));
    let columns: [(u32, &[ColumnType]); 4] = [
        (40, &TYPES),
        (25, &[ColumnType::Bytes, ColumnType::Bytes]),
        (30, &[ColumnType::Float]),
        (0, &TYPES),
    ];
    let with = columns.map(|(rows, c)| written(Metric::L2, Representation::Plain, rows, 2, c));
    without.into_iter().chain(with).collect()
}

const TYPES: [ColumnType; 4] = [
    ColumnType::Int,
    ColumnType::Float,
    ColumnType::Bool,
    ColumnType::Bytes,
];

/// Every seventh is NULL, and strings have two rows each.
fn value(kind: ColumnType, row: u32) -> Value {
    let floats = [0.0, -1.5, f64::NAN, f64::INFINITY];
    match kind {
        _ if row % 7 == 6 => Value::Null,
        ColumnType::Int => Value::Int(i64::from(row) - 10),
        ColumnType::Float => Value::Float(floats[row as usize % 4]),
        ColumnType::Bool => Value::Bool(row.is_multiple_of(2)),
        ColumnType::Bytes => Value::Bytes(format!("{}", row / 2).into_bytes().into()),
    }
}

fn written(
    metric: Metric,
    representation: Representation,
    rows: u32,
    dimensions: usize,
    columns: &[ColumnType],
) -> Vec<u8> {
    let params = IndexParams {
        metric,
        dimensions,
        m: 3,
        ef_construction: 8,
        representation,
        ..IndexParams::default()
    };
    let index = PartitionIndex::with_columns(params, columns, None).expect("good parameters");
    for row in 0..rows {
        // Every fifth is a copy of one before.
        let seed = if row % 5 == 4 { row / 8 } else { row } as usize;
        let vector: Vec<f32> = (0..dimensions)
            .map(|i| ((seed * 37 + i * i) % 101) as f32)
            .collect();
        let attributes: Vec<Value> = columns.iter().map(|kind| value(*kind, row)).collect();
        index
            .insert_with(&vector, u64::from(row), &attributes, |_| {})
            .expect("a good row");
    }
    index.fold(rows as usize - rows as usize / 6);
    for row in 0..rows / 10 {
        index.remove(VectorId(row * 7));
        index.end(VectorId(row * 7 + 1), 9);
    }
    let mut bytes = Vec::new();
    let checkpoint = index.checkpoint();
    checkpoint
        .write(&index, &mut bytes)
        .expect("memory takes it");
    bytes
}

/// A vector as an index takes it, whatever its header says: one number everywhere, but of
/// bits and of a sparse one in the first dimension.
struct Filled {
    element: Element,
    dimensions: usize,
    floats: Vec<f32>,
    halves: Vec<Half>,
    bytes: Vec<u8>,
}

impl Filled {
    fn of(params: &IndexParams, value: f32) -> Self {
        let (element, dimensions) = (params.element, params.dimensions);
        let mut filled = Self {
            element,
            dimensions,
            floats: Vec::new(),
            halves: Vec::new(),
            bytes: Vec::new(),
        };
        match element {
            Element::F32 => filled.floats = vec![value; dimensions],
            Element::F16 => filled.halves = vec![Half::from_f32(value); dimensions],
            Element::Sparse => filled.floats = vec![value],
            Element::Bit => {
                filled.bytes = vec![0; dimensions.div_ceil(8)];
                filled.bytes[0] = 0x80;
            }
        }
        filled
    }

    fn as_vector(&self) -> Vector<'_> {
        match self.element {
            Element::F32 => Vector::F32(&self.floats),
            Element::F16 => Vector::F16(&self.halves),
            Element::Sparse => Vector::Sparse {
                dimensions: self.dimensions,
                indices: &[0],
                values: &self.floats,
            },
            Element::Bit => Vector::Bits {
                len: self.dimensions,
                bytes: &self.bytes,
            },
        }
    }
}

fn u32_at(input: &[u8], at: usize) -> Option<usize> {
    let bytes = input.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes) as usize)
}

fn put(input: &mut [u8], at: usize, value: u64) {
    if let Some(into) = input.get_mut(at..at + 8) {
        into.copy_from_slice(&value.to_le_bytes());
    }
}

fn mend(rng: &mut SmallRng, input: &mut [u8]) {
    if input.len() < 2 * PAGE || rng.random_ratio(1, 20) {
        return;
    }
    let of_header = xxh3_64(&input[..PAGE - 8]);
    put(input, PAGE - 8, of_header);
    let sections = u32_at(input, 44).unwrap_or(0).min(80);
    // Where the directory begins: docs/formats/index-checkpoint.md, by version.
    let directory = match u32_at(input, 8) {
        Some(3) => 100 + 12 * u32_at(input, 96).unwrap_or(0).min(31),
        Some(2) => 96,
        _ => 80,
    };
    let (mut sums, mut at) = (Vec::new(), PAGE);
    for section in 0..sections {
        let field = |n: usize| u32_at(input, directory + section * ENTRY + n * 4).unwrap_or(0);
        let bytes = (field(1).saturating_mul(field(2))).min(input.len());
        let end = (at + bytes.next_multiple_of(PAGE)).min(input.len());
        sums.extend(input[at..end].chunks(CHUNK).map(xxh3_64));
        at = end;
    }
    for (number, sum) in sums.iter().enumerate() {
        put(input, at + number * 8, *sum);
    }
    let footer = input.len() - 24;
    let header = input[..PAGE].to_vec();
    let digest = xxh3_64(&[&header, input.get(at..footer).unwrap_or_default()].concat());
    put(input, footer, digest);
    put(input, footer + 8, input.len() as u64);
    input[footer + 16..].copy_from_slice(b"IdxEnds.");
}

fn load(input: &[u8]) -> Result<PartitionIndex, CheckpointError> {
    let loading = Loading::open(input, None)?;
    loading.read(input)?;
    loading.finish()
}

fn check(input: &[u8]) -> Result<String> {
    let index = match load(input) {
        Ok(index) => index,
        Err(error) => return Ok(error.to_string()),
    };
    let rows = index.total_len();
    search_all(&index)?;
    let vector = Filled::of(index.params(), 0.5);
    for row in 0..5 {
        let kinds = index.columns().iter();
        let attributes: Vec<Value> = kinds.map(|kind| value(*kind, row)).collect();
        index.insert_with(vector.as_vector(), u64::from(row), &attributes, |_| {})?;
    }
    if rows > 0 {
        index.remove(VectorId(rows as u32 / 2));
    }
    index.fold(rows);
    search_all(&index)?;
    let mut again = Vec::new();
    index.checkpoint().write(&index, &mut again)?;
    index.fold(usize::MAX);
    search_all(&index)?;
    ensure!(load(&again)?.total_len() == rows + 5, "rows are lost");
    let columns = index.columns().len();
    Ok(format!("good, {}, {columns}", index.params().dimensions))
}

/// Every row that is there comes once, and has a value or none in every column.
fn search_all(index: &PartitionIndex) -> Result<()> {
    let all = found(index, &Filter::All(Vec::new()))?;
    for (column, kind) in index.columns().iter().enumerate() {
        let given = value(*kind, 3);
        let is = |is| Filter::compare(column, is, given.clone());
        let parts = [
            is(Comparison::Less),
            is(Comparison::Equal),
            is(Comparison::Greater),
            Filter::IsNull { column },
        ];
        let parts = parts.iter().map(|part| found(index, part));
        let sum: usize = parts.sum::<Result<usize>>()?;
        ensure!(sum == all, "{sum} rows by column {column}, {all} are there");
    }
    Ok(())
}

/// Rows that match.
fn found(index: &PartitionIndex, filter: &Filter) -> Result<usize> {
    let query = Filled::of(index.params(), 1.0);
    let count = |exact: bool| -> Result<usize> {
        let mut cursor = index.cursor_where(query.as_vector(), 8, u64::MAX, exact, filter)?;
        let mut hits = 0;
        loop {
            let page = cursor.next_page(index, 16);
            hits += page.hits.len();
            ensure!(hits <= index.total_len(), "more rows than there are");
            if page.exhausted {
                return Ok(hits);
            }
        }
    };
    let (walked, scanned) = (count(false)?, count(true)?);
    ensure!(
        walked == scanned,
        "{walked} rows found, {scanned} are there"
    );
    Ok(scanned)
}
