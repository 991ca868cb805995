//! A message as one line that a person can read, and compare.

use std::fmt::Write;
use wal_consumer::replication::pgoutput::{Message, OldTuple, Relation};
use wal_consumer::replication::tuple::{Cell, Tuple};

/// Of a value; the rest is told by its length.
const SHOWN_BYTES: usize = 12;

pub fn line(message: &Message) -> String {
    match message {
        Message::Begin { final_lsn, xid } => format!("Begin {final_lsn} xid {xid}"),
        Message::Commit {
            commit_lsn,
            end_lsn,
            ..
        } => format!("Commit {commit_lsn} end {end_lsn}"),
        Message::Relation(relation) => of_relation(relation),
        Message::Insert { relation, new } => format!("Insert {relation} {}", of_tuple(new)),
        Message::Update { relation, old, new } => {
            let old = old
                .as_ref()
                .map_or(String::new(), |old| format!(" {}", of_old(old)));
            format!("Update {relation}{old} {}", of_tuple(new))
        }
        Message::Delete { relation, old } => format!("Delete {relation} {}", of_old(old)),
        Message::Truncate { relations } => format!("Truncate {relations:?}"),
        Message::Type => "Type".to_owned(),
        Message::Origin => "Origin".to_owned(),
        Message::Logical => "Logical".to_owned(),
    }
}

fn of_relation(relation: &Relation) -> String {
    let columns = relation.columns.iter().map(|c| {
        let key = if c.is_key { "*" } else { "" };
        format!("{}{key}:{}", c.name, c.type_oid)
    });
    format!(
        "Relation {} {}.{} {} ({})",
        relation.oid,
        relation.schema,
        relation.name,
        char::from(relation.replica_identity),
        columns.collect::<Vec<_>>().join(", ")
    )
}

fn of_old(old: &OldTuple) -> String {
    let kind = if matches!(old, OldTuple::Key(_)) {
        "key"
    } else {
        "full"
    };
    format!("{kind} {}", of_tuple(old.tuple()))
}

fn of_tuple(tuple: &Tuple) -> String {
    let cells = tuple.iter().map(|cell| match cell {
        Cell::Null => "null".to_owned(),
        Cell::Unchanged => "unchanged".to_owned(),
        Cell::Binary(value) => of_value('b', value),
        Cell::Text(value) => of_value('t', value),
    });
    format!("[{}]", cells.collect::<Vec<_>>().join(", "))
}

fn of_value(kind: char, value: &[u8]) -> String {
    let mut text = format!("{kind}:");
    for byte in value.iter().take(SHOWN_BYTES) {
        let _ = write!(text, "{byte:02x}");
    }
    if value.len() > SHOWN_BYTES {
        let _ = write!(text, "…{}", value.len());
    }
    text
}
