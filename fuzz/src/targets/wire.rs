//! What peers send over gRPC: protobuf, and what it becomes.

use super::Target;
use anyhow::{Result, ensure};
use cluster_core::backfill::BackfillMark;
use cluster_core::change::{BackfillRow, Batch, Change, PositionedChange, VectorColumn};
use cluster_core::ids::*;
use cluster_core::map::PartitionMap;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use prost::Message;
use proto::v1;

pub const TARGET: Target = Target {
    name: "wire",
    corpus,
    check,
    mend: None,
};

/// A first byte says which message it is.
fn tagged(tag: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(message.encode_to_vec());
    bytes
}

fn corpus() -> Vec<Vec<u8>> {
    let key = RowKey::from_columns([42i64.to_be_bytes().as_slice(), b"text"]).expect("a key");
    let at = |ordinal| WalPosition::new(Incarnation(1), Lsn(20), ordinal);
    let change = |ordinal, change| PositionedChange {
        position: at(ordinal),
        xid: 7,
        change,
    };
    let value = || VectorColumn::Value(vec![1.0, -2.5, 3.0].into());
    let batch = Batch {
        partition: PartitionId(3),
        generation: Generation(4),
        previous: WalPosition::end_of(Incarnation(1), Lsn(10)),
        to: WalPosition::end_of(Incarnation(1), Lsn(20)),
        changes: vec![
            change(
                1,
                Change::Upsert {
                    key: key.clone(),
                    vector: value(),
                },
            ),
            change(
                2,
                Change::Upsert {
                    key: key.clone(),
                    vector: VectorColumn::Unchanged,
                },
            ),
            change(3, Change::Delete { key: key.clone() }),
            change(4, Change::Truncate),
        ],
    };
    let row = BackfillRow {
        key,
        vector: vec![0.5, 0.25].into(),
    };
    let mut map = v1::PartitionMap {
        epoch: 3,
        version: 9,
        ..Default::default()
    };
    map.partitions.push(v1::Partition {
        partition_id: 1,
        collection_id: 1,
        range: Some(v1::HashRange {
            lo: 0,
            hi: u64::MAX,
        }),
        replicas: vec![v1::Replica {
            node_id: 1,
            generation: 1,
            ..Default::default()
        }],
    });
    let mark = v1::BackfillMark {
        relfilenode: 1,
        first_stamp: Some(at(0).into()),
        last_stamp: Some(at(1).into()),
        ..Default::default()
    };
    vec![
        tagged(0, &v1::ApplyBatch::from(&batch)),
        tagged(1, &v1::BackfillRow::from(&row)),
        tagged(2, &map),
        tagged(3, &mark),
        tagged(
            4,
            &v1::SearchRequest {
                query: vec![0; 8].into(),
                page_rows: 10,
                ..Default::default()
            },
        ),
    ]
}

fn check(input: &[u8]) -> Result<String> {
    let Some((tag, bytes)) = input.split_first() else {
        return Ok("nothing".to_owned());
    };
    match tag % 5 {
        0 => of::<v1::ApplyBatch, Batch>(bytes, |batch| v1::ApplyBatch::from(batch)),
        1 => of::<v1::BackfillRow, BackfillRow>(bytes, |row| v1::BackfillRow::from(row)),
        2 => of::<v1::PartitionMap, PartitionMap>(bytes, |map| v1::PartitionMap::from(map)),
        3 => of::<v1::BackfillMark, BackfillMark>(bytes, |mark| v1::BackfillMark::from(mark)),
        _ => Ok(match v1::SearchRequest::decode(bytes) {
            Ok(search) => outcome(proto::convert::vector_from_bytes(&search.query)),
            Err(_) => "no protobuf".to_owned(),
        }),
    }
}

fn outcome<T>(read: Result<T, proto::convert::BadMessage>) -> String {
    read.map_or_else(|error| error.to_string(), |_| "good".to_owned())
}

/// What was accepted survives another trip.
fn of<W, C>(bytes: &[u8], back: impl Fn(&C) -> W) -> Result<String>
where
    W: Message + Default,
    C: TryFrom<W, Error = proto::convert::BadMessage> + PartialEq + std::fmt::Debug,
{
    let Ok(wire) = W::decode(bytes) else {
        return Ok("no protobuf".to_owned());
    };
    let core = match C::try_from(wire) {
        Ok(core) => core,
        Err(error) => return Ok(error.to_string()),
    };
    let again = C::try_from(back(&core));
    ensure!(
        again.as_ref() == Ok(&core),
        "{core:?} comes back as {again:?}"
    );
    Ok("good".to_owned())
}
