//! Records of a learner: its state, and the changes of one batch of its log. Built
//! and checked as those of [`super::format`], and pinned as well.

use super::format::{Corrupt, Decoder, Encoder};
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::learner::{Copied, CopyKey};
use cluster_core::row_key::{KEY_BYTES_MAX, RowKey};
use cluster_core::wal_position::WalPosition;

/// The most bytes of a storage key without its partition.
const COPY_KEY_BYTES_MAX: usize = KEY_BYTES_MAX + 32;
/// Tags of a logged change.
const VALUE: u8 = 1;
const NULL: u8 = 2;
const UNCHANGED: u8 = 3;
const DELETE: u8 = 4;
const TRUNCATE: u8 = 5;

/// That a replica learns, since when, and what it has copied. How far it has
/// logged is a record of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnerRecord {
    /// Everything above is in the log; `None` while nobody has attached it.
    pub attached_from: Option<WalPosition>,
    pub copied: Copied,
    pub rows_copied: u64,
    pub bytes_copied: u64,
}

pub fn encode_learner(key: &[u8], learner: &LearnerRecord) -> Vec<u8> {
    let copied = &learner.copied;
    let encoder = optional(Encoder::new(), learner.attached_from);
    optional(encoder, copied.base)
        .position(copied.high)
        .u8(u8::from(copied.is_complete))
        .bytes(&copied.after.0)
        .u64(learner.rows_copied)
        .u64(learner.bytes_copied)
        .finish(key)
}

pub fn decode_learner(key: &[u8], record: &[u8]) -> Result<LearnerRecord, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let attached_from = take_optional(&mut decoder)?;
    let copied = Copied {
        base: take_optional(&mut decoder)?,
        high: decoder.position()?,
        is_complete: decoder.flag()?,
        after: CopyKey(decoder.bytes(COPY_KEY_BYTES_MAX)?.into()),
    };
    let (rows_copied, bytes_copied) = (decoder.u64()?, decoder.u64()?);
    decoder.finish(LearnerRecord {
        attached_from,
        copied,
        rows_copied,
        bytes_copied,
    })
}

fn optional(encoder: Encoder, position: Option<WalPosition>) -> Encoder {
    match position {
        Some(position) => encoder.u8(1).position(position),
        None => encoder.u8(0),
    }
}

fn take_optional(decoder: &mut Decoder) -> Result<Option<WalPosition>, Corrupt> {
    Ok(match decoder.flag()? {
        true => Some(decoder.position()?),
        false => None,
    })
}

pub fn encode_changes(key: &[u8], changes: &[PositionedChange]) -> Vec<u8> {
    let mut encoder = Encoder::new().u32(changes.len() as u32);
    for change in changes {
        encoder = encoder.position(change.position).u64(change.xid);
        encoder = match &change.change {
            Change::Upsert { key, vector } => match vector {
                VectorColumn::Value(vector) => {
                    encoder.u8(VALUE).bytes(key.as_bytes()).vector(vector)
                }
                VectorColumn::Null => encoder.u8(NULL).bytes(key.as_bytes()),
                VectorColumn::Unchanged => encoder.u8(UNCHANGED).bytes(key.as_bytes()),
            },
            Change::Delete { key } => encoder.u8(DELETE).bytes(key.as_bytes()),
            Change::Truncate => encoder.u8(TRUNCATE),
        };
    }
    encoder.finish(key)
}

pub fn decode_changes(key: &[u8], record: &[u8]) -> Result<Vec<PositionedChange>, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let count = decoder.u32()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        changes.push(take_change(&mut decoder)?);
    }
    decoder.finish(changes)
}

fn take_change(decoder: &mut Decoder) -> Result<PositionedChange, Corrupt> {
    let position = decoder.position()?;
    let xid = decoder.u64()?;
    let tag = decoder.u8()?;
    let change = match tag {
        TRUNCATE => Change::Truncate,
        _ => {
            let bytes = decoder.bytes(KEY_BYTES_MAX)?;
            let key = RowKey::from_bytes(bytes).map_err(|bad| decoder.corrupt(bad.to_string()))?;
            match tag {
                VALUE => Change::Upsert {
                    vector: VectorColumn::Value(decoder.vector()?),
                    key,
                },
                NULL => upsert(key, VectorColumn::Null),
                UNCHANGED => upsert(key, VectorColumn::Unchanged),
                DELETE => Change::Delete { key },
                other => return Err(decoder.corrupt(format!("unknown change {other}"))),
            }
        }
    };
    Ok(PositionedChange {
        position,
        xid,
        change,
    })
}

fn upsert(key: RowKey, vector: VectorColumn) -> Change {
    Change::Upsert { key, vector }
}
