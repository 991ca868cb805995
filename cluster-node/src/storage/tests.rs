#![allow(clippy::unwrap_used)]
use super::format::*;
use super::{Storage, StorageConfig, WriteSet};
use crate::metrics::Metrics;
use cluster_core::apply::{StoredRow, StoredVector, Tombstone};
use cluster_core::collection::Metric;
use cluster_core::ids::*;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use std::sync::Arc;

fn at(lsn: u64) -> WalPosition {
    WalPosition::new(Incarnation(1), Lsn(lsn), 2)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn row() -> StoredRow {
    StoredRow {
        position: at(0x10),
        xid_high: 7,
        vector: StoredVector::Value(vec![1.0, -2.5].into()),
    }
}

fn meta() -> PartitionMeta {
    PartitionMeta {
        source: SourceId(1),
        collection: CollectionId(2),
        generation: Generation(3),
        metric: Metric::Cosine,
        dimensions: 2,
        m: 16,
        ef_construction: 64,
        truncated: at(5),
        stamp_high: at(6),
        last_backfill: BackfillId(9),
        open_backfill: Some(OpenBackfill { last_chunk: 4 }),
    }
}

#[test]
fn stored_format_of_records_is_pinned() {
    let golden = [
        (encode_row(b"k", &row()), GOLDEN_ROW),
        (
            encode_tombstone(
                b"k",
                Tombstone {
                    position: at(0x10),
                    xid_high: 7,
                },
            ),
            GOLDEN_TOMBSTONE,
        ),
        (encode_former(b"k", 7, &[1.0]), GOLDEN_FORMER),
        (encode_watermark(b"k", at(0x10)), GOLDEN_WATERMARK),
        (encode_meta(b"k", &meta()), GOLDEN_META),
        (
            encode_identity(
                b"k",
                &Identity {
                    disk_uuid: "d".into(),
                    member: Some((NodeId(3), "c".into())),
                },
            ),
            GOLDEN_IDENTITY,
        ),
        (encode_token(b"k", ConsumerEpoch(5)), GOLDEN_TOKEN),
    ];
    for (bytes, want) in golden {
        assert_eq!(hex(&bytes), want);
    }
}

const GOLDEN_ROW: &str =
    "010100000000000000100000000000000002000000070000000000000001020000000000803f000020c07ad3710a";
const GOLDEN_TOMBSTONE: &str = "0101000000000000001000000000000000020000000700000000000000af59590c";
const GOLDEN_FORMER: &str = "010700000000000000010000000000803f4f1a79c9";
const GOLDEN_WATERMARK: &str = "010100000000000000100000000000000002000000a5d4ed40";
const GOLDEN_META: &str = "01010000000000000002000000000000000300000000000000020200000010000000400000000100000000000000050000000000000002000000010000000000000006000000000000000200000009000000000000000104000000000000000125522a";
const GOLDEN_IDENTITY: &str = "0101000000640103000000000000000100000063f52bbc5d";
const GOLDEN_TOKEN: &str = "01050000000000000022a78642";

#[test]
fn records_come_back_and_a_flipped_byte_is_corrupt() {
    assert_eq!(decode_row(b"k", &encode_row(b"k", &row())).unwrap(), row());
    let record = encode_meta(b"k", &meta());
    assert_eq!(decode_meta(b"k", &record).unwrap(), meta());
    assert!(
        decode_meta(b"other", &record).is_err(),
        "a misplaced record"
    );
    for i in 0..record.len() {
        let mut flipped = record.clone();
        flipped[i] ^= 0x40;
        assert!(decode_meta(b"k", &flipped).is_err(), "byte {i}");
        assert!(decode_meta(b"k", &record[..i]).is_err(), "cut at {i}");
    }
}

#[test]
fn a_row_before_a_position_is_the_current_one_or_the_version_that_ended_next() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let storage = Storage::open(dir.path(), &StorageConfig::default(), metrics).unwrap();
    let partition = PartitionId(3);
    let key = RowKey::from_columns([b"a".as_slice()]).unwrap();
    let other = RowKey::from_columns([b"b".as_slice()]).unwrap();
    let mut set = WriteSet::default();
    set.put_row(partition, &key, &row());
    set.put_former(partition, &key, at(5), 1, &[5.0]);
    set.put_former(partition, &key, at(0x10), 2, &[16.0]);
    set.put_former(partition, &other, at(0x11), 2, &[17.0]);
    storage.commit(set).unwrap();
    let before = |lsn| storage.row_before(partition, &key, at(lsn)).unwrap();
    let value = |x: f32| Some(StoredVector::Value(vec![x].into()));
    assert_eq!(before(4), value(5.0));
    assert_eq!(before(5), value(5.0));
    assert_eq!(before(6), value(16.0));
    assert_eq!(before(0x11), Some(row().vector));
    let missing = RowKey::from_columns([b"aa".as_slice()]).unwrap();
    assert_eq!(
        storage.row_before(partition, &missing, at(1)).unwrap(),
        None
    );
    assert_eq!(storage.partition_ids().unwrap(), [partition]);
    let mut set = WriteSet::default();
    set.drop_partition(partition);
    storage.commit(set).unwrap();
    assert_eq!(storage.partition_ids().unwrap(), []);
}
