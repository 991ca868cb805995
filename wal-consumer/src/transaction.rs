//! Puts a transaction together until its commit.
//!
//! It begins with rows that were understood as they came, as long as its messages are
//! rows and memory allows. From the first message that must wait for the commit on,
//! everything stays as it came. Beyond a limit in memory such raw messages go to an
//! anonymous temporary file and are streamed back. The file lies in the consumer's
//! folder: the system's own may be in memory. It has a limit,
//! too, and so has the disk: a transaction that is past either is named, and the
//! file goes with it.
//!
//! Ordinals count the surviving row and TRUNCATE messages from 1, over every
//! table of the publication, before anything is routed or dropped: the same
//! transaction gets the same ordinals whenever it is replayed.

use crate::replication::pgoutput::{self, DecodeError, Message};
use crate::rows::RowOp;
use bytes::Bytes;
use cluster_core::change::VectorColumn;
use cluster_core::ids::CollectionId;
use cluster_core::wal_position::Lsn;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// What a message in memory costs beyond its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// What a row in memory costs beyond its keys and vector.
const ROW_OVERHEAD_BYTES: usize = 112;
/// Before each message in the file: its position and length.
const SPILLED_HEADER_BYTES: u64 = 16;

#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("spilling a transaction to a temporary file: {0}")]
    Spill(#[from] io::Error),
    #[error(
        "transaction {xid}, which commits at {at}, is too large: {bytes} bytes of it have come, \
         and transaction_spill_bytes_max lets {bytes_max} be kept on disk. It is not applied, and \
         the slot waits before it: raise transaction_spill_bytes_max of the consumer, and start \
         the consumer again"
    )]
    TooLarge {
        xid: u32,
        at: Lsn,
        bytes: u64,
        bytes_max: u64,
    },
    #[error(
        "the disk of {} is full ({error}): {bytes} bytes of transaction {xid}, which commits at \
         {at}, had come. It is not applied, and the slot waits before it: make room for the whole \
         transaction there, or set data_dir of the consumer to a larger disk. It is tried again, \
         with pauses up to transaction_retry_ms_max",
        dir.display()
    )]
    NoRoom {
        xid: u32,
        at: Lsn,
        bytes: u64,
        dir: PathBuf,
        error: io::Error,
    },
    #[error("{what} at {at}")]
    Protocol { what: &'static str, at: Lsn },
}

/// What a change does to a collection, understood before its position was known.
#[derive(Debug, PartialEq)]
pub struct PreparedRow {
    pub ordinal: u32,
    pub collection: CollectionId,
    pub op: RowOp,
}

impl PreparedRow {
    fn memory_bytes(&self) -> usize {
        let vector_bytes = |vector: &VectorColumn| match vector {
            VectorColumn::Value(value) => value.len() * 4,
            VectorColumn::Null | VectorColumn::Unchanged => 0,
        };
        ROW_OVERHEAD_BYTES
            + match &self.op {
                RowOp::Upsert { key, vector } => key.as_bytes().len() + vector_bytes(vector),
                RowOp::Delete { key } => key.as_bytes().len(),
                RowOp::Move { .. } => unreachable!("a changed key waits for the commit"),
            }
    }
}

/// A committed transaction: prepared rows, then messages, each taken in order.
#[derive(Debug)]
pub struct Transaction {
    pub xid: u32,
    pub end_lsn: Lsn,
    pub committed_at_us: i64,
    /// Whether some UPDATE changes a key: then values must be remembered.
    pub has_key_changes: bool,
    prepared: VecDeque<PreparedRow>,
    memory: VecDeque<(Lsn, Bytes)>,
    spilled: Option<BufReader<File>>,
    next_ordinal: u32,
}

impl Transaction {
    /// The next of the rows that it begins with.
    pub fn next_prepared(&mut self) -> Option<PreparedRow> {
        self.prepared.pop_front()
    }

    /// Changes before the one that comes next of the messages.
    pub fn changes(&self) -> u32 {
        self.next_ordinal - 1
    }

    /// The next message; with its ordinal when it is a row or TRUNCATE change.
    pub fn next_message(&mut self) -> Result<Option<(Option<u32>, Message)>, TransactionError> {
        assert!(
            self.prepared.is_empty(),
            "prepared rows come before the messages"
        );
        let Some((at, payload)) = self.next_raw()? else {
            return Ok(None);
        };
        let is_change = is_change(&payload);
        let message = pgoutput::decode(at, payload)?;
        let mut ordinal = None;
        if is_change {
            ordinal = Some(self.next_ordinal);
            self.next_ordinal = after(self.next_ordinal, at)?;
        }
        Ok(Some((ordinal, message)))
    }

    fn next_raw(&mut self) -> Result<Option<(Lsn, Bytes)>, TransactionError> {
        if let Some(file) = &mut self.spilled {
            if let Some(read) = read_spilled(file)? {
                return Ok(Some(read));
            }
            self.spilled = None;
        }
        Ok(self.memory.pop_front())
    }
}

/// END stands behind all of a transaction's changes.
fn after(ordinal: u32, at: Lsn) -> Result<u32, TransactionError> {
    let next = ordinal.checked_add(1).filter(|next| *next < u32::MAX);
    next.ok_or(TransactionError::Protocol {
        what: "transaction of 2^32 changes",
        at,
    })
}

fn is_change(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(b'I' | b'U' | b'D' | b'T'))
}

struct Open {
    xid: u32,
    final_lsn: Lsn,
    has_key_changes: bool,
    prepared: VecDeque<PreparedRow>,
    prepared_bytes: usize,
    /// Of the change that comes after those that were prepared.
    next_ordinal: u32,
    memory: VecDeque<(Lsn, Bytes)>,
    memory_bytes: usize,
    spill: Option<BufWriter<File>>,
    spilled_bytes: u64,
}

/// Takes the stream's messages; gives whole transactions.
pub struct Assembler {
    memory_bytes_max: usize,
    spill_dir: PathBuf,
    spill_bytes_max: u64,
    open: Option<Open>,
}

impl Assembler {
    pub fn new(memory_bytes_max: usize, spill_dir: impl Into<PathBuf>) -> Self {
        Self {
            memory_bytes_max,
            spill_dir: spill_dir.into(),
            spill_bytes_max: u64::MAX,
            open: None,
        }
    }

    /// Of one transaction, no more than this is kept on disk.
    pub fn spill_at_most(self, spill_bytes_max: u64) -> Self {
        Self {
            spill_bytes_max,
            ..self
        }
    }

    pub fn is_within_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the next message of the transaction may be handed in as rows: all before
    /// it were, and there is room.
    pub fn takes_prepared(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let has_messages = !open.memory.is_empty() || open.spill.is_some();
            !has_messages && open.prepared_bytes < self.memory_bytes_max
        })
    }

    /// Takes a row change that has been understood: what it does to each collection of
    /// its table. A changed key is never among them: whether values must be remembered
    /// is known from the messages, and the old one may have to be fetched.
    pub fn push_prepared(
        &mut self,
        at: Lsn,
        ops: Vec<(CollectionId, RowOp)>,
    ) -> Result<(), TransactionError> {
        assert!(
            self.takes_prepared(),
            "a prepared row behind raw messages, or over the limit, at {at}"
        );
        if let Some(open) = &mut self.open {
            let ordinal = open.next_ordinal;
            open.next_ordinal = after(ordinal, at)?;
            for (collection, op) in ops {
                let row = PreparedRow {
                    ordinal,
                    collection,
                    op,
                };
                open.prepared_bytes += row.memory_bytes();
                open.prepared.push_back(row);
            }
        }
        Ok(())
    }

    pub fn take(
        &mut self,
        at: Lsn,
        payload: Bytes,
    ) -> Result<Option<Transaction>, TransactionError> {
        match payload.first() {
            Some(b'B') => self.begin(at, payload).map(|()| None),
            Some(b'C') => self.commit(at, payload).map(Some),
            // Logical messages, of a transaction or not, hold no rows.
            Some(b'M') => Ok(None),
            _ => self.push(at, payload).map(|()| None),
        }
    }

    fn begin(&mut self, at: Lsn, payload: Bytes) -> Result<(), TransactionError> {
        let Message::Begin { final_lsn, xid } = pgoutput::decode(at, payload)? else {
            return Err(TransactionError::Protocol {
                what: "no Begin",
                at,
            });
        };
        if self.open.is_some() {
            return Err(TransactionError::Protocol {
                what: "Begin within a transaction",
                at,
            });
        }
        self.open = Some(Open {
            xid,
            final_lsn,
            has_key_changes: false,
            prepared: VecDeque::new(),
            prepared_bytes: 0,
            next_ordinal: 1,
            memory: VecDeque::new(),
            memory_bytes: 0,
            spill: None,
            spilled_bytes: 0,
        });
        Ok(())
    }

    fn push(&mut self, at: Lsn, payload: Bytes) -> Result<(), TransactionError> {
        let Some(open) = &mut self.open else {
            return Err(TransactionError::Protocol {
                what: "change outside a transaction",
                at,
            });
        };
        // `U`, relation, then the kind of tuple: an old one first.
        open.has_key_changes |=
            payload.first() == Some(&b'U') && matches!(payload.get(5), Some(b'K' | b'O'));
        open.memory_bytes += payload.len() + MESSAGE_OVERHEAD_BYTES;
        open.memory.push_back((at, payload));
        if open.prepared_bytes + open.memory_bytes > self.memory_bytes_max {
            open.spill(&self.spill_dir, self.spill_bytes_max)?;
        }
        Ok(())
    }

    fn commit(&mut self, at: Lsn, payload: Bytes) -> Result<Transaction, TransactionError> {
        let Message::Commit {
            commit_lsn,
            end_lsn,
            committed_at_us,
        } = pgoutput::decode(at, payload)?
        else {
            return Err(TransactionError::Protocol {
                what: "no Commit",
                at,
            });
        };
        let Some(mut open) = self.open.take() else {
            return Err(TransactionError::Protocol {
                what: "Commit outside a transaction",
                at,
            });
        };
        if open.final_lsn != commit_lsn {
            return Err(TransactionError::Protocol {
                what: "Commit of another transaction",
                at,
            });
        }
        if open.spill.is_some() {
            open.spill(&self.spill_dir, self.spill_bytes_max)?;
        }
        let spilled = match open.spill.take() {
            Some(writer) => {
                let written = read_back(writer);
                Some(written.map_err(|error| open.disk_error(&self.spill_dir, error))?)
            }
            None => None,
        };
        Ok(Transaction {
            xid: open.xid,
            end_lsn,
            committed_at_us,
            has_key_changes: open.has_key_changes,
            prepared: open.prepared,
            memory: open.memory,
            spilled,
            next_ordinal: open.next_ordinal,
        })
    }
}

impl Open {
    /// Moves what is in memory behind what is in the file, if that may hold it.
    fn spill(&mut self, dir: &Path, bytes_max: u64) -> Result<(), TransactionError> {
        let sizes = self.memory.iter().map(|(_, payload)| payload.len() as u64);
        self.spilled_bytes += sizes.map(|size| size + SPILLED_HEADER_BYTES).sum::<u64>();
        if self.spilled_bytes > bytes_max {
            return Err(TransactionError::TooLarge {
                xid: self.xid,
                at: self.final_lsn,
                bytes: self.spilled_bytes,
                bytes_max,
            });
        }
        let written = self.write_memory(dir);
        written.map_err(|error| self.disk_error(dir, error))
    }

    fn write_memory(&mut self, dir: &Path) -> io::Result<()> {
        let writer = match &mut self.spill {
            Some(writer) => writer,
            None => {
                let file = tempfile::tempfile_in(dir)?;
                self.spill.insert(BufWriter::with_capacity(1 << 20, file))
            }
        };
        for (at, payload) in self.memory.drain(..) {
            writer.write_all(&at.0.to_le_bytes())?;
            writer.write_all(&(payload.len() as u64).to_le_bytes())?;
            writer.write_all(&payload)?;
        }
        self.memory_bytes = 0;
        Ok(())
    }

    /// A full disk is for an operator; whatever else is worth another try.
    fn disk_error(&self, dir: &Path, error: io::Error) -> TransactionError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TransactionError::NoRoom {
                xid: self.xid,
                at: self.final_lsn,
                bytes: self.spilled_bytes,
                dir: dir.to_owned(),
                error,
            },
            _ => TransactionError::Spill(error),
        }
    }
}

fn read_back(writer: BufWriter<File>) -> io::Result<BufReader<File>> {
    let mut file = writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

fn read_spilled(file: &mut BufReader<File>) -> io::Result<Option<(Lsn, Bytes)>> {
    let mut header = [0u8; SPILLED_HEADER_BYTES as usize];
    match file.read_exact(&mut header) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut number = [0u8; 8];
    number.copy_from_slice(&header[..8]);
    let at = Lsn(u64::from_le_bytes(number));
    number.copy_from_slice(&header[8..]);
    let len = u64::from_le_bytes(number);
    // Our own file, yet a disk: grow with what arrives, not with what it says.
    let mut payload = Vec::new();
    file.by_ref().take(len).read_to_end(&mut payload)?;
    if payload.len() as u64 != len {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "spilled message cut off",
        ));
    }
    Ok(Some((at, payload.into())))
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
