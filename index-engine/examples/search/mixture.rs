//! Blocks of rows with codes of two widths: which of them are cold, and who searches where.

use std::error::Error;
use std::time::{Duration, Instant};

use index_engine::accesses::BLOCK_VECTORS;
use index_engine::{CodeBits, PartitionIndex, Recoded};

use crate::Data;
use crate::row::Row;

/// Rows are put in the order of the nearest of so many of them.
const PLACES: usize = 60;

/// The share of blocks that get codes of so many bits.
pub struct Cold {
    share: f64,
    bits: CodeBits,
}

impl Cold {
    /// From `SHARE:BITS`.
    pub fn parse(text: &str) -> Result<Self, Box<dyn Error>> {
        let (share, bits) = text.split_once(':').ok_or("want cold=SHARE:BITS")?;
        let count: usize = bits.parse()?;
        let bits = CodeBits::ALL.into_iter().find(|b| b.count() == count);
        Ok(Self {
            share: share.parse()?,
            bits: bits.ok_or("a code has 1, 2, 4 or 8 bits")?,
        })
    }

    /// Recodes the last blocks; says how many stay hot.
    pub fn apply(&self, index: &PartitionIndex) -> Result<u32, Box<dyn Error>> {
        let blocks = index.blocks();
        let hot = blocks - (f64::from(blocks) * self.share).round() as u32;
        let mut longest = Duration::ZERO;
        let began = Instant::now();
        for block in hot..blocks {
            let one = Instant::now();
            if index.recode(block, self.bits)? != Recoded::Done {
                return Err("nobody else changes blocks here".into());
            }
            longest = longest.max(one.elapsed());
        }
        println!(
            "{} of {blocks} blocks recoded in {:.2} s, the slowest in {:.1} ms; {} bytes of memory",
            blocks - hot,
            began.elapsed().as_secs_f64(),
            longest.as_secs_f64() * 1e3,
            index.memory_bytes()
        );
        for width in index.widths() {
            println!(
                "{} bits: {} blocks, {} rows, {} bytes of codes",
                width.bits.count(),
                width.blocks,
                width.rows,
                width.bytes
            );
        }
        let footprint = index.footprint();
        let rows = index.slots_len() as f64;
        println!(
            "codes {:.1} bytes a row of all, without vectors {:.1}",
            footprint.codes as f64 / rows,
            (footprint.total() - footprint.vectors) as f64 / rows
        );
        Ok(hot)
    }
}

/// The queries whose nearest row lies in one of the first `hot` blocks.
pub fn of_hot_blocks(queries: &[Row], truth: &[Vec<u32>], hot: u32) -> (Vec<Row>, Vec<Vec<u32>>) {
    let pairs = queries.iter().zip(truth);
    let near = pairs.filter(|(_, truth)| truth[0] / BLOCK_VECTORS < hot);
    near.map(|(query, truth)| (query.clone(), truth.clone()))
        .unzip()
}

/// Puts rows that are near each other into one block, as far as `PLACES` rows of the data tell.
pub fn put_near_together(data: &mut Data) {
    let step = (data.base.len() / PLACES).max(1);
    let places: Vec<&Row> = data.base.iter().step_by(step).collect();
    let place = |row: &Row| {
        let far = places.iter().map(|place| row.squared_distance(place));
        let nearest = far.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        nearest.map(|near| near.0)
    };
    let mut order: Vec<_> = (0..data.base.len())
        .map(|row| (place(&data.base[row]), row))
        .collect();
    order.sort_unstable();
    let mut new_ids = vec![0; order.len()];
    for (new, (_, old)) in order.iter().enumerate() {
        new_ids[*old] = new as u32;
    }
    data.base = order
        .iter()
        .map(|(_, old)| data.base[*old].clone())
        .collect();
    for id in data.truth.iter_mut().flatten() {
        *id = new_ids[*id as usize];
    }
}
