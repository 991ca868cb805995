//! Golden tests on what a Postgres 15.20 sent: `fixtures/pgoutput-15.txt` holds
//! `LSN hex` per message of protocol 2 in binary, from
//! `pg_logical_slot_get_binary_changes` over tables
//! `items(id bigint primary key, label int, embedding bytea, note text)` with
//! an out-of-line embedding, `pairs(b text, a int, v real[], primary key (a, b))`
//! and `fulls(id int primary key, v bytea)` with REPLICA IDENTITY FULL.
#![allow(clippy::unwrap_used)]

use super::pgoutput::{DecodeError, Message, OldTuple, decode};
use super::tuple::{Cell, Tuple};
use crate::transaction::Assembler;
use bytes::Bytes;
use cluster_core::wal_position::Lsn;

const CAPTURED: &str = include_str!("../../fixtures/pgoutput-15.txt");

fn captured() -> Vec<(Lsn, Bytes)> {
    let unhex = |hex: &str| -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[i * 2..i * 2 + 2], 16).unwrap())
            .collect()
    };
    CAPTURED
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(lsn, hex)| (lsn.parse().unwrap(), unhex(hex).into()))
        .collect()
}

/// Messages with their ordinals.
type Messages = Vec<(Option<u32>, Message)>;

/// The changes of each transaction, as the consumer sees them.
fn transactions() -> Vec<(u32, Messages)> {
    let mut assembler = Assembler::new(1 << 20, std::env::temp_dir());
    let mut all = Vec::new();
    for (at, payload) in captured() {
        if let Some(mut transaction) = assembler.take(at, payload).unwrap() {
            let mut messages = Vec::new();
            while let Some(message) = transaction.next_message().unwrap() {
                messages.push(message);
            }
            all.push((transaction.xid, messages));
        }
    }
    all
}

fn bin(bytes: &[u8]) -> Cell {
    Cell::Binary(Bytes::copy_from_slice(bytes))
}

fn id(id: i64) -> Cell {
    bin(&id.to_be_bytes())
}

fn changes(xid: u32) -> Vec<Message> {
    let (_, messages) = transactions().into_iter().find(|t| t.0 == xid).unwrap();
    messages
        .into_iter()
        .filter(|m| m.0.is_some())
        .map(|m| m.1)
        .collect()
}

const ITEMS: u32 = 0x4000;
const PAIRS: u32 = 0x4007;
const FULLS: u32 = 0x400e;

#[test]
fn a_relation_names_its_key_columns() {
    let (_, messages) = &transactions()[0];
    let Message::Relation(items) = &messages[0].1 else {
        panic!("no relation first")
    };
    assert_eq!(
        (items.oid, items.schema.as_str(), items.name.as_str()),
        (ITEMS, "public", "items")
    );
    let columns: Vec<_> = items
        .columns
        .iter()
        .map(|c| (c.name.as_str(), c.is_key))
        .collect();
    assert_eq!(
        columns,
        [
            ("id", true),
            ("label", false),
            ("embedding", false),
            ("note", false)
        ]
    );
    let pairs = transactions()
        .into_iter()
        .flat_map(|t| t.1)
        .find_map(|m| match m.1 {
            Message::Relation(r) if r.oid == PAIRS => Some(r),
            _ => None,
        });
    // In attribute order, whatever the order of the primary key.
    let keys: Vec<_> = pairs
        .unwrap()
        .columns
        .into_iter()
        .filter(|c| c.is_key)
        .map(|c| c.name)
        .collect();
    assert_eq!(keys, ["b", "a"]);
}

#[test]
fn insert_and_unchanged_toast() {
    let inserts = changes(731);
    let new = vec![id(1), bin(&7i32.to_be_bytes()), bin(&[1, 2]), bin(b"a")];
    assert_eq!(
        inserts[0],
        Message::Insert {
            relation: ITEMS,
            new
        }
    );
    let Message::Update {
        relation: ITEMS,
        old: None,
        new,
    } = &changes(732)[0]
    else {
        panic!()
    };
    assert_eq!(new[2], Cell::Unchanged);
    assert_eq!(new[1], bin(&8i32.to_be_bytes()));
}

#[test]
fn a_key_change_bears_the_old_key_and_nothing_else() {
    let Message::Update {
        old: Some(OldTuple::Key(old)),
        new,
        ..
    } = &changes(733)[0]
    else {
        panic!()
    };
    let want: Tuple = vec![id(2), Cell::Null, Cell::Null, Cell::Null];
    assert_eq!(*old, want);
    assert_eq!((&new[0], &new[2]), (&id(3), &Cell::Unchanged));
}

#[test]
fn deletes_by_key_and_with_full_identity() {
    let old = OldTuple::Key(vec![id(1), Cell::Null, Cell::Null, Cell::Null]);
    assert_eq!(
        changes(734)[0],
        Message::Delete {
            relation: ITEMS,
            old
        }
    );
    let one = bin(&1i32.to_be_bytes());
    let old = OldTuple::Full(vec![one.clone(), bin(&[1])]);
    let new = vec![one.clone(), bin(&[2])];
    assert_eq!(
        changes(737)[0],
        Message::Update {
            relation: FULLS,
            old: Some(old),
            new
        }
    );
    let old = OldTuple::Full(vec![one, bin(&[2])]);
    assert_eq!(
        changes(738)[0],
        Message::Delete {
            relation: FULLS,
            old
        }
    );
}

#[test]
fn several_changes_of_a_row_in_one_transaction_keep_their_order() {
    let kinds: Vec<_> = changes(735)
        .iter()
        .map(|m| match m {
            Message::Insert { .. } => 'I',
            Message::Update { .. } => 'U',
            Message::Delete { .. } => 'D',
            _ => '?',
        })
        .collect();
    assert_eq!(kinds, ['I', 'U', 'D']);
}

#[test]
fn truncate_names_every_table_and_takes_one_ordinal() {
    assert_eq!(
        changes(739),
        [Message::Truncate {
            relations: vec![ITEMS, PAIRS]
        }]
    );
}

#[test]
fn a_rolled_back_savepoint_leaves_no_trace_in_the_ordinals() {
    let (_, messages) = transactions().into_iter().find(|t| t.0 == 740).unwrap();
    let ids: Vec<_> = messages
        .into_iter()
        .filter_map(|(ordinal, message)| match message {
            Message::Insert { new, .. } => Some((ordinal.unwrap(), new[0].clone())),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [(1, id(9)), (2, id(11))]);
}

#[test]
fn a_message_cut_anywhere_is_an_error_that_names_its_position() {
    for (at, payload) in captured() {
        // Past the first kilobyte a value is only longer.
        for cut in 0..payload.len().min(1024) {
            let error = decode(at, payload.slice(..cut)).unwrap_err();
            assert!(error.to_string().contains(&at.to_string()), "{error}");
        }
    }
}

#[test]
fn an_unknown_message_is_named_with_its_bytes() {
    let error = decode(Lsn(0x10), Bytes::from_static(b"S\x01\x02")).unwrap_err();
    assert!(matches!(error, DecodeError::Unknown { tag: 'S', .. }));
    assert_eq!(
        error.to_string(),
        "unknown message 'S' at 0/10; bytes: 530102"
    );
    let lying = Bytes::from_static(b"T\xff\xff\xff\xff\0");
    assert!(
        decode(Lsn(1), lying).is_err(),
        "a count that its bytes cannot hold"
    );
}
