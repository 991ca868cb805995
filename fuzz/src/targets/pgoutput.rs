//! One message of a replication stream, and what is read from its values.

use super::Target;
use crate::captured;
use crate::encode::encode;
use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use cluster_core::ids::SourceId;
use cluster_core::wal_position::Lsn;
use wal_consumer::replication::pgoutput::{Message, Relation, RelationColumn, decode};
use wal_consumer::replication::tuple::{Cell, Tuple};
use wal_consumer::source::definitions;
use wal_consumer::vector;

pub const TARGET: Target = Target {
    name: "pgoutput",
    corpus: || {
        captured::all_messages()
            .into_iter()
            .map(|(_, bytes)| bytes.to_vec())
            .collect()
    },
    check,
    mend: None,
};

const AT: Lsn = Lsn(0x12_3456_789a);
/// An operator reads it, and the coordinators keep it.
const ERROR_CHARS_MAX: usize = 400;

fn check(input: &[u8]) -> Result<String> {
    let message = match decode(AT, Bytes::copy_from_slice(input)) {
        Ok(message) => message,
        Err(error) => return refused(&error.to_string(), input),
    };
    if let Some(again) = encode(&message, input) {
        ensure!(
            again == input,
            "{message:?} is written as other bytes than it was read from"
        );
    }
    Ok(match &message {
        Message::Insert { new, .. } => format!("Insert, {}", read_values(new)),
        other => format!("{:?}", std::mem::discriminant(other)),
    })
}

/// The source stops with this text: it names the position and shows the bytes.
fn refused(error: &str, input: &[u8]) -> Result<String> {
    if !error.contains(&AT.to_string()) {
        bail!("the error does not name the position: {error}");
    }
    let beginning: String = input
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(
        error.contains(&beginning),
        "the error does not show the bytes: {error}"
    );
    ensure!(
        error.chars().count() <= ERROR_CHARS_MAX,
        "an error of {} bytes",
        error.len()
    );
    // Without the bytes, which are always others.
    Ok(error.split("bytes:").next().unwrap_or_default().to_owned())
}

fn read_values(tuple: &Tuple) -> String {
    for cell in tuple {
        if let Cell::Binary(value) = cell {
            // What it says is the table's matter; that it says so is ours.
            let _ = vector::decode(value, 6);
            let _ = vector::decode(value, 768);
        }
    }
    let relation = definitions_relation();
    let read = definitions::from_tuple(SourceId(1), &relation, tuple);
    let key = definitions::from_old_tuple(&relation, tuple);
    format!("a definition: {}, its key: {}", read.is_ok(), key.is_ok())
}

/// `ruvector.collections`, whose rows a message may claim to hold.
fn definitions_relation() -> Relation {
    let names = [
        "index_oid",
        "definition_generation",
        "table_oid",
        "schema_name",
        "table_name",
        "index_name",
        "column_name",
        "column_attnum",
        "key_attnums",
        "metric",
        "dimensions",
        "m",
        "ef_construction",
    ];
    let column = |name: &str| RelationColumn {
        is_key: name == "index_oid",
        name: name.to_owned(),
        type_oid: 0,
    };
    Relation {
        oid: 1,
        schema: definitions::SCHEMA.to_owned(),
        name: definitions::TABLE.to_owned(),
        replica_identity: b'd',
        columns: names.map(column).into(),
    }
}
