//! A node's records as its disk, or a peer, gives them. The checksum is made right again
//! most times, or nothing else would ever be looked at.

use super::Target;
use anyhow::{Result, ensure};
use cluster_core::apply::{StoredRow, StoredVector, Tombstone};
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::ids::*;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_node::storage::checkpoint_format::{
    CheckpointContents, decode_contents, encode_contents,
};
use cluster_node::storage::format::{self, Corrupt, Identity};
use cluster_node::storage::learner_format::{self, LearnerRecord};
use rand::RngExt;
use rand::rngs::SmallRng;
use std::fmt::Debug;

pub const TARGET: Target = Target {
    name: "records",
    corpus,
    check,
    mend: Some(mend),
};

const KEY: &[u8] = b"a storage key";
/// What a checkpoint holds is under the checksum with its partition, and the kind.
const CONTENTS: u8 = 9;
const PARTITION: PartitionId = PartitionId(3);
const CONTENTS_KEY: [u8; 9] = [0, 0, 0, 0, 0, 0, 0, 3, 9];
const CHECKSUM_BYTES: usize = 4;
const KINDS: u8 = 11;

fn position(ordinal: u32) -> WalPosition {
    WalPosition::new(Incarnation(1), Lsn(0x1234), ordinal)
}

fn changes() -> Vec<PositionedChange> {
    let key = || RowKey::from_columns([b"key".as_slice()]).expect("a key");
    let vector = VectorColumn::Value(vec![1.0, 2.0].into());
    let all = [
        Change::Upsert { key: key(), vector },
        Change::Delete { key: key() },
        Change::Truncate,
    ];
    let positioned = |(ordinal, change)| PositionedChange {
        position: position(ordinal),
        xid: 9,
        change,
    };
    (1..).zip(all).map(positioned).collect()
}

/// A first byte says which record it is.
fn corpus() -> Vec<Vec<u8>> {
    let vector = StoredVector::Value(vec![1.0, -0.5, 3.25].into());
    let rows = [vector, StoredVector::Pending].map(|vector| {
        format::encode_row(
            KEY,
            &StoredRow {
                position: position(1),
                xid_high: 7,
                vector,
            },
        )
    });
    let tombstone = Tombstone {
        position: position(2),
        xid_high: 8,
    };
    let identity = Identity {
        disk_uuid: "a disk".to_owned(),
        member: Some((NodeId(3), "a cluster".to_owned())),
    };
    let [row, pending] = rows;
    let records = [
        row,
        format::encode_tombstone(KEY, tombstone),
        format::encode_former(KEY, 9, &[1.0, 2.0]),
        format::encode_watermark(KEY, position(3)),
        format::encode_identity(KEY, &identity),
        format::encode_token(KEY, ConsumerEpoch(5)),
        learner_format::encode_learner(KEY, &LearnerRecord::default()),
        learner_format::encode_changes(KEY, &changes()),
    ];
    let tagged = |(tag, mut record): (u8, Vec<u8>)| {
        record.insert(0, tag);
        record
    };
    let mut all: Vec<_> = (0..).zip(records).map(tagged).collect();
    all.push(tagged((0, pending)));
    all.push(tagged((CONTENTS, contents())));
    all.push(tagged((10, format::encode_checkpoint(KEY, 7))));
    all
}

fn contents() -> Vec<u8> {
    let key = |name: &[u8]| RowKey::from_columns([name]).expect("a key");
    let contents = CheckpointContents {
        generation: Generation(2),
        number: 7,
        watermark: position(4),
        rows: vec![(0, key(b"a")), (5, key(b"bc"))],
        pending: vec![key(b"d")],
    };
    encode_contents(PARTITION, &contents)
}

fn mend(rng: &mut SmallRng, input: &mut [u8]) {
    if input.len() <= CHECKSUM_BYTES || rng.random_ratio(1, 20) {
        return;
    }
    let body = input.len() - CHECKSUM_BYTES;
    let key: &[u8] = match input[0] % KINDS {
        CONTENTS => &CONTENTS_KEY,
        _ => KEY,
    };
    let checksum = crc32c::crc32c_append(crc32c::crc32c(key), &input[1..body]);
    input[body..].copy_from_slice(&checksum.to_le_bytes());
}

fn check(input: &[u8]) -> Result<String> {
    let Some((tag, record)) = input.split_first() else {
        return Ok("nothing".to_owned());
    };
    let kind = tag % KINDS;
    let outcome =
        match kind {
            0 => same(record, format::decode_row(KEY, record), |row| {
                format::encode_row(KEY, row)
            }),
            1 => same(record, format::decode_tombstone(KEY, record), |t| {
                format::encode_tombstone(KEY, *t)
            }),
            2 => same(
                record,
                format::decode_former(KEY, record),
                |(xid, vector)| format::encode_former(KEY, *xid, vector),
            ),
            3 => same(record, format::decode_watermark(KEY, record), |w| {
                format::encode_watermark(KEY, *w)
            }),
            4 => same(record, format::decode_identity(KEY, record), |i| {
                format::encode_identity(KEY, i)
            }),
            5 => same(record, format::decode_token(KEY, record), |t| {
                format::encode_token(KEY, *t)
            }),
            6 => same(record, learner_format::decode_learner(KEY, record), |l| {
                learner_format::encode_learner(KEY, l)
            }),
            7 => same(record, learner_format::decode_changes(KEY, record), |c| {
                learner_format::encode_changes(KEY, c)
            }),
            CONTENTS => same(record, decode_contents(PARTITION, record), |c| {
                encode_contents(PARTITION, c)
            }),
            10 => same(record, format::decode_checkpoint(KEY, record), |n| {
                format::encode_checkpoint(KEY, *n)
            }),
            // Two versions are read, and one is written.
            _ => Ok(format::decode_meta(KEY, record)
                .map_or_else(|e| e.to_string(), |_| "good".to_owned())),
        };
    Ok(format!(
        "kind {kind}: {}",
        outcome?.replace(|c: char| c.is_ascii_digit(), "")
    ))
}

/// A record that is accepted says one thing, in one way.
fn same<T: Debug>(
    record: &[u8],
    read: Result<T, Corrupt>,
    write: impl Fn(&T) -> Vec<u8>,
) -> Result<String> {
    match read {
        Ok(value) => {
            ensure!(
                write(&value) == record,
                "{value:?} is written otherwise than it was read"
            );
            Ok("good".to_owned())
        }
        Err(error) => Ok(error.to_string()),
    }
}
