//! Decodes pgoutput, protocol 2 without streaming, in binary. See
//! "Logical Replication Message Formats" in Postgres's manual.
//!
//! An unknown message is an error that stops the source, never skipped: it may
//! hold rows. Messages that carry no rows of ours are named and dropped by who
//! reads them.

use super::tuple::{Malformed, Reader, Tuple, read_tuple};
use bytes::Bytes;
use cluster_core::wal_position::Lsn;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity.
    pub is_key: bool,
    pub name: String,
    pub type_oid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `d`efault, `n`othing, `f`ull, `i`ndex.
    pub replica_identity: u8,
    /// Neither dropped nor generated ones are listed.
    pub columns: Vec<RelationColumn>,
}

/// What an UPDATE or DELETE tells of the row before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// Only the key's columns are meant; the others read `n`, which says nothing.
    Key(Tuple),
    Full(Tuple),
}

impl OldTuple {
    pub fn tuple(&self) -> &Tuple {
        match self {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Begin {
        final_lsn: Lsn,
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
        committed_at_us: i64,
    },
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        old: Option<OldTuple>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: OldTuple,
    },
    Truncate {
        relations: Vec<u32>,
    },
    Type,
    Origin,
    /// `pg_logical_emit_message`.
    Logical,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("message {tag:?} at {at}: {problem}; bytes: {bytes}")]
    Malformed {
        at: Lsn,
        tag: char,
        problem: Malformed,
        bytes: String,
    },
    #[error("unknown message {tag:?} at {at}; bytes: {bytes}")]
    Unknown { at: Lsn, tag: char, bytes: String },
}

impl DecodeError {
    pub fn at(&self) -> Lsn {
        match self {
            DecodeError::Malformed { at, .. } | DecodeError::Unknown { at, .. } => *at,
        }
    }
}

/// Decodes the message that the server sent for WAL position `at`.
pub fn decode(at: Lsn, payload: Bytes) -> Result<Message, DecodeError> {
    let tag = payload.first().copied().unwrap_or(0);
    let known = |problem| DecodeError::Malformed {
        at,
        tag: char::from(tag),
        problem,
        bytes: excerpt(&payload),
    };
    let mut reader = Reader::new(payload.clone());
    reader.u8("empty message").map_err(known)?;
    match decode_body(tag, &mut reader) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(DecodeError::Unknown {
            at,
            tag: char::from(tag),
            bytes: excerpt(&payload),
        }),
        Err(problem) => Err(known(problem)),
    }
}

fn decode_body(tag: u8, r: &mut Reader) -> Result<Option<Message>, Malformed> {
    let message = match tag {
        b'B' => {
            let final_lsn = Lsn(r.u64("Begin cut off")?);
            r.u64("Begin cut off")?;
            Message::Begin {
                final_lsn,
                xid: r.u32("Begin cut off")?,
            }
        }
        b'C' => {
            r.u8("Commit cut off")?;
            Message::Commit {
                commit_lsn: Lsn(r.u64("Commit cut off")?),
                end_lsn: Lsn(r.u64("Commit cut off")?),
                committed_at_us: r.u64("Commit cut off")?.cast_signed(),
            }
        }
        b'R' => Message::Relation(read_relation(r)?),
        b'I' => {
            let relation = r.u32("Insert cut off")?;
            expect(r, b'N')?;
            Message::Insert {
                relation,
                new: read_tuple(r)?,
            }
        }
        b'U' => read_update(r)?,
        b'D' => {
            let relation = r.u32("Delete cut off")?;
            let kind = r.u8("Delete cut off")?;
            Message::Delete {
                relation,
                old: read_old(kind, r)?,
            }
        }
        b'T' => read_truncate(r)?,
        // Content that concerns no row of ours; nothing to check behind the tag.
        b'Y' => return Ok(Some(Message::Type)),
        b'O' => return Ok(Some(Message::Origin)),
        b'M' => return Ok(Some(Message::Logical)),
        _ => return Ok(None),
    };
    r.end("bytes left over")?;
    Ok(Some(message))
}

fn read_relation(r: &mut Reader) -> Result<Relation, Malformed> {
    let oid = r.u32("Relation cut off")?;
    let schema = r.cstr("schema name")?;
    let name = r.cstr("table name")?;
    let replica_identity = r.u8("Relation cut off")?;
    let count = r.u16("Relation cut off")?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let is_key = r.u8("column cut off")? & 1 != 0;
        let name = r.cstr("column name")?;
        let type_oid = r.u32("column cut off")?;
        r.i32("column cut off")?;
        columns.push(RelationColumn {
            is_key,
            name,
            type_oid,
        });
    }
    // pg_catalog is sent as the empty name.
    let schema = if schema.is_empty() {
        "pg_catalog".to_owned()
    } else {
        schema
    };
    Ok(Relation {
        oid,
        schema,
        name,
        replica_identity,
        columns,
    })
}

fn read_update(r: &mut Reader) -> Result<Message, Malformed> {
    let relation = r.u32("Update cut off")?;
    let mut kind = r.u8("Update cut off")?;
    let mut old = None;
    if kind != b'N' {
        old = Some(read_old(kind, r)?);
        kind = r.u8("Update cut off")?;
    }
    if kind != b'N' {
        return Err(r.malformed("Update without a new tuple"));
    }
    Ok(Message::Update {
        relation,
        old,
        new: read_tuple(r)?,
    })
}

fn read_old(kind: u8, r: &mut Reader) -> Result<OldTuple, Malformed> {
    match kind {
        b'K' => Ok(OldTuple::Key(read_tuple(r)?)),
        b'O' => Ok(OldTuple::Full(read_tuple(r)?)),
        _ => Err(r.malformed("unknown kind of old tuple")),
    }
}

fn read_truncate(r: &mut Reader) -> Result<Message, Malformed> {
    let count = r.u32("Truncate cut off")? as usize;
    r.u8("Truncate cut off")?;
    if count > r.remaining() / 4 {
        return Err(r.malformed("Truncate names more tables than it has bytes"));
    }
    let relations = (0..count)
        .map(|_| r.u32("Truncate cut off"))
        .collect::<Result<_, _>>()?;
    Ok(Message::Truncate { relations })
}

fn expect(r: &mut Reader, kind: u8) -> Result<(), Malformed> {
    if r.u8("tuple kind cut off")? == kind {
        Ok(())
    } else {
        Err(r.malformed("unexpected tuple kind"))
    }
}

/// The first bytes, in hex, for a message that somebody must read.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const EXCERPT_BYTES: usize = 64;
    let mut text: String = bytes
        .iter()
        .take(EXCERPT_BYTES)
        .map(|b| format!("{b:02x}"))
        .collect();
    if bytes.len() > EXCERPT_BYTES {
        text.push_str(&format!("… ({} bytes)", bytes.len()));
    }
    text
}
