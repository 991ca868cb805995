//! An index checkpoint as a disk gives it. Its checksums are made right again most times,
//! or nothing but them would ever be asked. What is accepted is an index like any other:
//! it is searched, grows, shrinks, and is written and read again.
//!
//! The checksums here follow docs/formats/index-checkpoint.md, not the code.

mod seeds;

use super::Target;
use anyhow::{Result, ensure};
use index_engine::checkpoint::{CheckpointError, Loading};
use index_engine::{
    CodeBits, Comparison, Effort, Filter, PartitionIndex, Representation, VectorId,
};
use rand::RngExt;
use rand::rngs::SmallRng;
use seeds::{Owned, corpus, value};
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
    let vector = Owned::filled(index.params(), 0.5);
    for row in 0..5 {
        let kinds = index.columns().iter();
        let attributes: Vec<_> = kinds.map(|kind| value(*kind, row)).collect();
        index.insert_with(vector.as_vector(), u64::from(row), &attributes, |_| {})?;
    }
    if rows > 0 {
        index.remove(VectorId(rows as u32 / 2));
    }
    index.fold(rows);
    change_widths(&index, rows)?;
    search_all(&index)?;
    let mut again = Vec::new();
    index.checkpoint().write(&index, &mut again)?;
    index.fold(usize::MAX);
    index.repair(16);
    search_all(&index)?;
    ensure!(load(&again)?.total_len() == rows + 5, "rows are lost");
    let params = index.params();
    let (element, held) = (params.element, params.representation);
    // Digits are taken out of an outcome, so widths are counted by strokes. Dimensions and
    // columns are not told: there are so many numbers of them that each would be kept as new.
    let widths = "|".repeat(index.widths().len());
    Ok(format!(
        "good, {element} {held:?} {:?}, widths {widths}",
        params.metric
    ))
}

/// The last block gets codes of another width, where codes have widths.
fn change_widths(index: &PartitionIndex, rows: usize) -> Result<()> {
    if let Representation::Compact(_) = index.params().representation {
        let last = index.blocks() - 1;
        index.recode(last, CodeBits::ALL[rows % CodeBits::ALL.len()])?;
    }
    Ok(())
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
    let query = Owned::filled(index.params(), 1.0);
    let count = |effort: Effort| -> Result<usize> {
        let mut cursor = index.cursor_where(query.as_vector(), 8, u64::MAX, effort, filter)?;
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
    let scanned = count(Effort::Exact)?;
    for effort in [Effort::Balanced, Effort::Fast] {
        let walked = count(effort)?;
        ensure!(
            walked == scanned,
            "{walked} rows found by {effort:?}, {scanned} are there"
        );
    }
    Ok(scanned)
}
