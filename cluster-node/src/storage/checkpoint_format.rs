//! What a node's checkpoint file holds behind the index: which replica it is of, and the
//! keys. Built and checked as the records of [`super::format`], and pinned as well.

use super::format::{Corrupt, Decoder, Encoder};
use super::keys::{self, Kind};
use cluster_core::ids::{Generation, PartitionId};
use cluster_core::row_key::{KEY_BYTES_MAX, RowKey};
use cluster_core::wal_position::WalPosition;

#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointContents {
    pub generation: Generation,
    pub number: u64,
    /// Durable when the checkpoint began: everything up to here is in it, unless it was
    /// noted as changed since.
    pub watermark: WalPosition,
    /// The vector of every current row, ascending.
    pub rows: Vec<(u32, RowKey)>,
    /// Rows whose vector was not known.
    pub pending: Vec<RowKey>,
}

/// For the checksum: of another partition it does not hold.
fn key(partition: PartitionId) -> Vec<u8> {
    keys::prefix(partition, Kind::Checkpoint)
}

pub fn encode_contents(partition: PartitionId, contents: &CheckpointContents) -> Vec<u8> {
    let mut encoder = Encoder::new()
        .u64(contents.generation.0)
        .u64(contents.number)
        .position(contents.watermark)
        .u32(contents.rows.len() as u32);
    for (id, key) in &contents.rows {
        encoder = encoder.u32(*id).bytes(key.as_bytes());
    }
    encoder = encoder.u32(contents.pending.len() as u32);
    for key in &contents.pending {
        encoder = encoder.bytes(key.as_bytes());
    }
    encoder.finish(&key(partition))
}

pub fn decode_contents(
    partition: PartitionId,
    bytes: &[u8],
) -> Result<CheckpointContents, Corrupt> {
    let checked = key(partition);
    let mut decoder = Decoder::new(&checked, bytes)?;
    let mut contents = CheckpointContents {
        generation: Generation(decoder.u64()?),
        number: decoder.u64()?,
        watermark: decoder.position()?,
        rows: Vec::new(),
        pending: Vec::new(),
    };
    let mut next = 0;
    for _ in 0..decoder.u32()? {
        let id = decoder.u32()?;
        if id < next {
            return Err(decoder.corrupt(format!("vector {id} is out of order")));
        }
        next = id.saturating_add(1);
        contents.rows.push((id, row_key(&mut decoder)?));
    }
    for _ in 0..decoder.u32()? {
        contents.pending.push(row_key(&mut decoder)?);
    }
    decoder.finish(contents)
}

fn row_key(decoder: &mut Decoder) -> Result<RowKey, Corrupt> {
    let bytes = decoder.bytes(KEY_BYTES_MAX)?;
    RowKey::from_bytes(bytes).map_err(|bad| decoder.corrupt(bad.to_string()))
}
