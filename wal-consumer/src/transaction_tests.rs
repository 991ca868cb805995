//! Transactions come back whole, in memory and from disk, and within limits.
#![allow(clippy::unwrap_used)]

use super::*;
use cluster_core::row_key::RowKey;

fn begin(xid: u32, final_lsn: u64) -> Bytes {
    let mut b = vec![b'B'];
    b.extend(final_lsn.to_be_bytes());
    b.extend(0u64.to_be_bytes());
    b.extend(xid.to_be_bytes());
    b.into()
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Bytes {
    let mut b = vec![b'C', 0];
    b.extend(commit_lsn.to_be_bytes());
    b.extend(end_lsn.to_be_bytes());
    b.extend(0u64.to_be_bytes());
    b.into()
}

fn insert(value: u32) -> Bytes {
    let mut b = vec![b'I', 0, 0, 0, 9, b'N', 0, 1, b'b', 0, 0, 0, 4];
    b.extend(value.to_be_bytes());
    b.into()
}

fn collect(memory: usize, count: u32) -> Vec<(Option<u32>, Message)> {
    let mut assembler = Assembler::new(memory, std::env::temp_dir());
    assert!(assembler.take(Lsn(1), begin(7, 90)).unwrap().is_none());
    for value in 0..count {
        assert!(assembler.take(Lsn(2), insert(value)).unwrap().is_none());
    }
    let mut transaction = assembler.take(Lsn(90), commit(90, 99)).unwrap().unwrap();
    assert_eq!((transaction.xid, transaction.end_lsn), (7, Lsn(99)));
    assert_eq!(transaction.spilled.is_some(), memory == 0);
    let mut messages = Vec::new();
    while let Some(message) = transaction.next_message().unwrap() {
        messages.push(message);
    }
    messages
}

#[test]
fn p10_a_spilled_transaction_comes_back_whole_and_in_order() {
    let in_memory = collect(1 << 20, 100);
    assert_eq!(in_memory.len(), 100);
    assert_eq!(collect(0, 100), in_memory);
    let ordinals: Vec<_> = in_memory.iter().filter_map(|m| m.0).collect();
    assert_eq!(ordinals, (1..=100).collect::<Vec<_>>());
}

fn upsert(key: u8) -> Vec<(CollectionId, RowOp)> {
    let op = RowOp::Upsert {
        key: RowKey::from_columns([[key].as_slice()]).unwrap(),
        vector: VectorColumn::Value(vec![1.0; 8].into()),
    };
    vec![(CollectionId(1), op)]
}

#[test]
fn p4_ordinals_go_on_from_prepared_rows_to_raw_messages() {
    let mut assembler = Assembler::new(1 << 20, std::env::temp_dir());
    assert!(!assembler.takes_prepared(), "no transaction is open");
    assembler.take(Lsn(1), begin(7, 90)).unwrap();
    assembler.push_prepared(Lsn(2), upsert(1)).unwrap();
    // Of a table without a collection: it counts all the same.
    assembler.push_prepared(Lsn(3), Vec::new()).unwrap();
    assembler.push_prepared(Lsn(4), upsert(3)).unwrap();
    assembler.take(Lsn(5), insert(4)).unwrap();
    assert!(!assembler.takes_prepared(), "no row overtakes a message");
    let mut transaction = assembler.take(Lsn(90), commit(90, 99)).unwrap().unwrap();
    let prepared: Vec<u32> = std::iter::from_fn(|| transaction.next_prepared())
        .map(|row| row.ordinal)
        .collect();
    assert_eq!(prepared, [1, 3]);
    assert_eq!(transaction.changes(), 3);
    let (ordinal, _) = transaction.next_message().unwrap().unwrap();
    assert_eq!(ordinal, Some(4));
    assert!(transaction.next_message().unwrap().is_none());
    assert!(!assembler.takes_prepared(), "the next has not begun");
}

#[test]
fn p10_prepared_rows_keep_to_the_limit_and_what_follows_is_spilled() {
    let mut assembler = Assembler::new(1_000, std::env::temp_dir());
    assembler.take(Lsn(1), begin(7, 90)).unwrap();
    let mut prepared = 0;
    while assembler.takes_prepared() {
        assembler.push_prepared(Lsn(2), upsert(1)).unwrap();
        prepared += 1;
    }
    assert_eq!(prepared, 7, "149 bytes each");
    for value in 0..50 {
        assembler.take(Lsn(3), insert(value)).unwrap();
        let open = assembler.open.as_ref().unwrap();
        assert!(open.memory.is_empty(), "beside full memory all is spilled");
    }
    let mut transaction = assembler.take(Lsn(90), commit(90, 99)).unwrap().unwrap();
    while transaction.next_prepared().is_some() {}
    for ordinal in 8..58 {
        let next = transaction.next_message().unwrap();
        assert_eq!(next.unwrap().0, Some(ordinal));
    }
    assert!(transaction.next_message().unwrap().is_none());
}

/// A spilled `insert` and its header.
const INSERT_BYTES: u64 = 17 + SPILLED_HEADER_BYTES;

#[test]
fn p10_a_transaction_past_the_limit_on_disk_is_named_and_one_at_it_comes_through() {
    let within = |inserts: u64| {
        let assembler = Assembler::new(0, std::env::temp_dir());
        let mut assembler = assembler.spill_at_most(10 * INSERT_BYTES);
        assembler.take(Lsn(1), begin(7, 90))?;
        for value in 0..inserts {
            assembler.take(Lsn(2), insert(value as u32))?;
        }
        assembler.take(Lsn(90), commit(90, 99))
    };
    assert!(within(10).unwrap().is_some());
    let error = within(11).unwrap_err();
    let said = error.to_string();
    let bytes = (11 * INSERT_BYTES).to_string();
    for word in [
        "transaction 7,",
        "0/5A",
        &bytes,
        "transaction_spill_bytes_max",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let TransactionError::TooLarge { at, .. } = error else {
        panic!("{said}");
    };
    assert_eq!(at, Lsn(90), "where it commits: nothing behind is read");
}

#[test]
fn p10_the_limit_is_of_one_transaction_not_of_all() {
    let mut assembler = Assembler::new(0, std::env::temp_dir()).spill_at_most(3 * INSERT_BYTES);
    for xid in 1..10 {
        assembler.take(Lsn(1), begin(xid, 90)).unwrap();
        for value in 0..3 {
            assembler.take(Lsn(2), insert(value)).unwrap();
        }
        assert!(assembler.take(Lsn(90), commit(90, 99)).unwrap().is_some());
    }
}

#[test]
fn p10_a_full_disk_is_named_and_other_trouble_is_tried_again() {
    let mut assembler = Assembler::new(1 << 20, "/data/consumer");
    assembler.take(Lsn(1), begin(7, 90)).unwrap();
    let open = assembler.open.take().unwrap();
    for full in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        let said = open.disk_error(&assembler.spill_dir, full.into());
        assert!(matches!(
            &said,
            TransactionError::NoRoom { at: Lsn(90), .. }
        ));
        let said = said.to_string();
        for word in ["/data/consumer", "transaction 7,", "make room"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    let broken = open.disk_error(&assembler.spill_dir, io::ErrorKind::BrokenPipe.into());
    assert!(matches!(broken, TransactionError::Spill(_)));
    // And a folder that is not there is found when it is needed.
    let mut assembler = Assembler::new(0, "/nowhere/at/all");
    assembler.take(Lsn(1), begin(7, 90)).unwrap();
    let error = assembler.take(Lsn(2), insert(1)).unwrap_err();
    assert!(matches!(error, TransactionError::Spill(_)), "{error}");
}

#[test]
fn p2_logical_messages_hold_no_rows_and_change_no_ordinal() {
    let message = || Bytes::from_static(b"M\0\0\0\0\0\0\0\0\x07audit\0\0\0\0\0");
    let mut assembler = Assembler::new(1 << 20, std::env::temp_dir());
    assert!(assembler.take(Lsn(1), message()).unwrap().is_none());
    assembler.take(Lsn(1), begin(7, 90)).unwrap();
    for value in 0..2 {
        assembler.take(Lsn(2), message()).unwrap();
        assembler.take(Lsn(2), insert(value)).unwrap();
    }
    let mut transaction = assembler.take(Lsn(90), commit(90, 99)).unwrap().unwrap();
    let mut ordinals = Vec::new();
    while let Some((ordinal, _)) = transaction.next_message().unwrap() {
        ordinals.push(ordinal);
    }
    assert_eq!(ordinals, [Some(1), Some(2)]);
}

#[test]
fn messages_outside_a_transaction_are_refused() {
    let mut assembler = Assembler::new(1 << 20, std::env::temp_dir());
    assert!(assembler.take(Lsn(2), insert(1)).is_err());
    assert!(assembler.take(Lsn(2), commit(1, 2)).is_err());
    assembler.take(Lsn(1), begin(7, 90)).unwrap();
    assert!(assembler.take(Lsn(1), begin(8, 95)).is_err());
    assert!(
        assembler.take(Lsn(2), commit(91, 99)).is_err(),
        "another transaction's commit"
    );
}
