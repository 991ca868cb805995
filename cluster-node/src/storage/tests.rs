#![allow(clippy::unwrap_used)]
use super::checkpoint_format::*;
use super::format::*;
use super::learner_format::*;
use super::{LearnerRecord, Storage, StorageConfig, WriteSet};
use crate::metrics::Metrics;
use cluster_core::apply::{StoredRow, StoredVector, Tombstone};
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile};
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::collection::Metric;
use cluster_core::ids::*;
use cluster_core::learner::{Copied, CopyKey};
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
        backfill_mark: Some(BackfillMark {
            file: TableFile {
                relfilenode: 11,
                membership: 12,
            },
            next_block: BlockNumber(13),
            first_stamp: at(14),
            last_stamp: at(15),
            rows: 16,
            snapshots: 17,
        }),
        trusted_from: None,
    }
}

/// Only a replica that is being reconciled bears the position.
fn reconciling() -> PartitionMeta {
    PartitionMeta {
        trusted_from: Some(at(18)),
        ..meta()
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
        (encode_meta(b"k", &reconciling()), GOLDEN_META_RECONCILING),
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
        (encode_checkpoint(b"k", 7), GOLDEN_CHECKPOINT),
        (encode_changed(b"k"), GOLDEN_CHANGED),
        (
            encode_contents(PartitionId(3), &contents()),
            GOLDEN_CONTENTS,
        ),
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
const GOLDEN_META: &str = "0201000000000000000200000000000000030000000000000002020000001000000040000000010000000000000005000000000000000200000001000000000000000600000000000000020000000900000000000000010400000000000000010b0000000c0000000d00000001000000000000000e000000000000000200000001000000000000000f000000000000000200000010000000000000001100000069105208";
const GOLDEN_META_RECONCILING: &str = "0301000000000000000200000000000000030000000000000002020000001000000040000000010000000000000005000000000000000200000001000000000000000600000000000000020000000900000000000000010400000000000000010b0000000c0000000d00000001000000000000000e000000000000000200000001000000000000000f000000000000000200000010000000000000001100000001000000000000001200000000000000020000004ed98808";
const GOLDEN_IDENTITY: &str = "0101000000640103000000000000000100000063f52bbc5d";
const GOLDEN_TOKEN: &str = "01050000000000000022a78642";
const GOLDEN_CHECKPOINT: &str = "0107000000000000006c5dfed0";
const GOLDEN_CHANGED: &str = "01f6ba652a";
const GOLDEN_CONTENTS: &str = "01030000000000000007000000000000000100000000000000100000000000000002000000020000000000000005000000000000016105000000050000000000000162010000000500000000000001632f9f2fd2";

fn contents() -> CheckpointContents {
    let key = |name: &[u8]| RowKey::from_columns([name]).unwrap();
    CheckpointContents {
        generation: Generation(3),
        number: 7,
        watermark: at(0x10),
        rows: vec![(0, key(b"a")), (5, key(b"b"))],
        pending: vec![key(b"c")],
    }
}

#[test]
fn what_a_checkpoint_holds_comes_back_and_of_another_partition_it_is_corrupt() {
    let bytes = encode_contents(PartitionId(3), &contents());
    assert_eq!(decode_contents(PartitionId(3), &bytes).unwrap(), contents());
    assert!(decode_contents(PartitionId(4), &bytes).is_err());
    for i in 0..bytes.len() {
        assert!(
            decode_contents(PartitionId(3), &bytes[..i]).is_err(),
            "cut at {i}"
        );
    }
    let mut disordered = contents();
    disordered.rows.swap(0, 1);
    let bytes = encode_contents(PartitionId(3), &disordered);
    let error = decode_contents(PartitionId(3), &bytes)
        .unwrap_err()
        .to_string();
    assert!(error.contains("vector 0 is out of order"), "{error}");
}

#[test]
fn rows_are_noted_as_changed_until_a_checkpoint_that_began_later_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let storage = Storage::open(dir.path(), &StorageConfig::default(), metrics).unwrap();
    let (partition, next) = (PartitionId(3), PartitionId(4));
    let key = |name: &[u8]| RowKey::from_columns([name]).unwrap();
    let noted = |since| -> Vec<(u64, RowKey)> {
        let all = storage.changed_since(partition, since);
        all.collect::<Result<_, _>>().unwrap()
    };
    let change = |partition, since, name: &[u8]| {
        let mut set = WriteSet::noting(since);
        set.put_row(partition, &key(name), &row());
        set.delete_row(partition, &key(b"gone"));
        assert_eq!(set.rows(), 2);
        storage.commit(set).unwrap();
    };
    change(partition, None, b"a");
    assert_eq!(
        (noted(0), storage.checkpoint(partition).unwrap()),
        (vec![], None)
    );
    change(partition, Some(1), b"b");
    change(partition, Some(255), b"c");
    change(partition, Some(256), b"d");
    change(next, Some(1), b"e");
    let gone = |since| (since, key(b"gone"));
    let [b, c, d] = [(1, key(b"b")), (255, key(b"c")), (256, key(b"d"))];
    let later = vec![c, gone(255), d, gone(256)];
    assert_eq!(noted(2), later);
    assert_eq!(noted(1), [vec![b, gone(1)], later.clone()].concat());
    let mut set = WriteSet::default();
    set.put_checkpoint(partition, 255);
    storage.commit(set).unwrap();
    assert_eq!(
        (noted(0), storage.checkpoint(partition).unwrap()),
        (later, Some(255))
    );
    let mut set = WriteSet::default();
    set.drop_checkpoint(partition);
    storage.commit(set).unwrap();
    assert_eq!(
        (noted(0), storage.checkpoint(partition).unwrap()),
        (vec![], None)
    );
    assert_eq!(
        storage.changed_since(next, 1).count(),
        2,
        "another partition's stay"
    );
    assert!(storage.row(partition, &key(b"d")).unwrap().is_some());
}

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
    let before = |lsn| storage.row_before(partition, &key, at(lsn), None).unwrap();
    let value = |x: f32| Some(StoredVector::Value(vec![x].into()));
    assert_eq!(before(4), value(5.0));
    assert_eq!(before(5), value(5.0));
    assert_eq!(before(6), value(16.0));
    assert_eq!(before(0x11), Some(row().vector));
    let missing = RowKey::from_columns([b"aa".as_slice()]).unwrap();
    assert_eq!(
        storage
            .row_before(partition, &missing, at(1), None)
            .unwrap(),
        None
    );
    assert_eq!(storage.partition_ids().unwrap(), [partition]);
    let mut set = WriteSet::default();
    set.drop_partition(partition);
    storage.commit(set).unwrap();
    assert_eq!(storage.partition_ids().unwrap(), []);
}

fn learner() -> LearnerRecord {
    LearnerRecord {
        attached_from: Some(at(0x10)),
        copied: Copied {
            base: Some(at(0x11)),
            high: at(0x12),
            after: CopyKey(b"\x03key".as_slice().into()),
            is_complete: true,
        },
        rows_copied: 5,
        bytes_copied: 6,
    }
}

fn changes() -> Vec<PositionedChange> {
    let key = || RowKey::from_columns([b"a".as_slice()]).unwrap();
    let upsert = |vector| Change::Upsert { key: key(), vector };
    let changes = [
        upsert(VectorColumn::Value(vec![1.0].into())),
        upsert(VectorColumn::Null),
        upsert(VectorColumn::Unchanged),
        Change::Delete { key: key() },
        Change::Truncate,
    ];
    changes
        .map(|change| PositionedChange {
            position: at(0x10),
            xid: 7,
            change,
        })
        .into()
}

const GOLDEN_LEARNER: &str = "0101010000000000000010000000000000000200000001010000000000000011000000000000000200000001000000000000001200000000000000020000000104000000036b65790500000000000000060000000000000017f6c8d2";
const GOLDEN_CHANGES: &str = "01050000000100000000000000100000000000000002000000070000000000000001050000000000000161010000000000803f0100000000000000100000000000000002000000070000000000000002050000000000000161010000000000000010000000000000000200000007000000000000000305000000000000016101000000000000001000000000000000020000000700000000000000040500000000000001610100000000000000100000000000000002000000070000000000000005e74103bc";

#[test]
fn stored_format_of_a_learner_is_pinned_and_a_flipped_byte_is_corrupt() {
    let record = encode_learner(b"k", &learner());
    assert_eq!(hex(&record), GOLDEN_LEARNER);
    assert_eq!(decode_learner(b"k", &record).unwrap(), learner());
    let empty = LearnerRecord::default();
    let unattached = encode_learner(b"k", &empty);
    assert_eq!(decode_learner(b"k", &unattached).unwrap(), empty);
    let logged = encode_changes(b"k", &changes());
    assert_eq!(hex(&logged), GOLDEN_CHANGES);
    assert_eq!(decode_changes(b"k", &logged).unwrap(), changes());
    for i in 0..logged.len() {
        let mut flipped = logged.clone();
        flipped[i] ^= 0x40;
        assert!(decode_changes(b"k", &flipped).is_err(), "byte {i}");
        assert!(decode_changes(b"k", &logged[..i]).is_err(), "cut at {i}");
    }
    for i in 0..record.len() {
        let mut flipped = record.clone();
        flipped[i] ^= 0x40;
        assert!(decode_learner(b"k", &flipped).is_err(), "byte {i}");
    }
}

#[test]
fn a_log_comes_back_in_order_and_in_bounded_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let storage = Storage::open(dir.path(), &StorageConfig::default(), metrics).unwrap();
    let partition = PartitionId(3);
    let mut set = WriteSet::default();
    let mut bytes = 0;
    for lsn in [0x1_00, 0x20, 0x10, 0x30] {
        bytes += set.append_log(partition, at(lsn), &changes());
    }
    storage.commit(set).unwrap();
    let log = storage.measure_log(partition).unwrap();
    assert_eq!((log.entries, log.bytes), (4, bytes));
    let behind = |after, changes_max| {
        let entries = storage.log_behind(partition, after, changes_max).unwrap();
        entries.iter().map(|entry| entry.to).collect::<Vec<_>>()
    };
    assert_eq!(behind(WalPosition::ZERO, 6), [at(0x10), at(0x20)]);
    assert_eq!(behind(at(0x20), 100), [at(0x30), at(0x1_00)]);
    let mut set = WriteSet::default();
    set.delete_log_through(partition, at(0x20));
    storage.commit(set).unwrap();
    assert_eq!(behind(WalPosition::ZERO, 1), [at(0x30)]);
    assert_eq!(storage.rows(partition).count(), 0);
}

#[test]
fn a_meta_record_of_0_1_0_is_read_and_one_of_a_later_release_refused() {
    // As 0.1.0 wrote it.
    let old = "01010000000000000002000000000000000300000000000000020200000010000000400000000100000000000000050000000000000002000000010000000000000006000000000000000200000009000000000000000104000000000000000125522a";
    let bytes: Vec<u8> = (0..old.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&old[i..i + 2], 16).unwrap())
        .collect();
    let before = PartitionMeta {
        backfill_mark: None,
        ..meta()
    };
    assert_eq!(decode_meta(b"k", &bytes), Ok(before));
    let present = encode_meta(b"k", &meta());
    assert_eq!(decode_meta(b"k", &present), Ok(meta()));
    let distrusting = encode_meta(b"k", &reconciling());
    assert_eq!(decode_meta(b"k", &distrusting), Ok(reconciling()));
    // The checksum counts from the record's key and its bytes.
    let mut later = present[..present.len() - 4].to_vec();
    later[0] = 4;
    let sum = crc32c::crc32c_append(crc32c::crc32c(b"k"), &later);
    later.extend(sum.to_le_bytes());
    let refused = decode_meta(b"k", &later).unwrap_err().to_string();
    assert!(refused.contains("unknown record version 4"), "{refused}");
}
