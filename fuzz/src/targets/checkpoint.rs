//! An index checkpoint as a disk gives it. Its checksums are made right again most times,
//! or nothing but them would ever be asked. What is accepted is an index like any other:
//! it is searched, grows, shrinks, and is written and read again.
//!
//! The checksums here follow docs/formats/index-checkpoint.md, not the code.

use super::Target;
use anyhow::{Result, ensure};
use index_engine::checkpoint::{CheckpointError, Loading};
use index_engine::{IndexParams, Metric, PartitionIndex, Representation, VectorId};
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
const DIRECTORY: usize = 80;
const ENTRY: usize = 24;

fn corpus() -> Vec<Vec<u8>> {
    let kinds = [
        (Metric::L2, Representation::Plain, 60, 16),
        (Metric::Cosine, Representation::Plain, 30, 3),
        (Metric::InnerProduct, Representation::Coded, 24, 20),
        (Metric::L2, Representation::Coded, 20, 33),
        (Metric::L2, Representation::Plain, 0, 2),
    ];
    kinds.map(|(m, r, rows, d)| written(m, r, rows, d)).to_vec()
}

fn written(
    metric: Metric,
    representation: Representation,
    rows: u32,
    dimensions: usize,
) -> Vec<u8> {
    let params = IndexParams {
        metric,
        dimensions,
        m: 3,
        ef_construction: 8,
        representation,
        ..IndexParams::default()
    };
    let index = PartitionIndex::new(params).expect("good parameters");
    for row in 0..rows {
        // Every fifth is a copy of one before.
        let seed = if row % 5 == 4 { row / 8 } else { row } as usize;
        let vector: Vec<f32> = (0..dimensions)
            .map(|i| ((seed * 37 + i * i) % 101) as f32)
            .collect();
        index
            .insert(&vector, u64::from(row))
            .expect("a good vector");
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
    let sections = u32_at(input, 44).unwrap_or(0).min(32);
    let (mut sums, mut at) = (Vec::new(), PAGE);
    for section in 0..sections {
        let field = |n: usize| u32_at(input, DIRECTORY + section * ENTRY + n * 4).unwrap_or(0);
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
    let vector = vec![0.5; index.params().dimensions];
    for row in 0..5 {
        index.insert(&vector, row)?;
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
    Ok(format!("good, {}", index.params().dimensions))
}

/// Every row that is there comes once.
fn search_all(index: &PartitionIndex) -> Result<()> {
    let query = vec![1.0; index.params().dimensions];
    let count = |exact: bool| -> Result<usize> {
        let mut cursor = index.cursor(&query, 8, u64::MAX, exact)?;
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
    Ok(())
}
