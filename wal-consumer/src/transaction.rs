//! Puts a transaction together until its commit. Beyond a limit in memory the
//! raw messages go to an anonymous temporary file and are streamed back. The file
//! lies in the consumer's folder: the system's own may be in memory.
//!
//! Ordinals count the surviving row and TRUNCATE messages from 1, over every
//! table of the publication, before anything is routed or dropped: the same
//! transaction gets the same ordinals whenever it is replayed.

use crate::replication::pgoutput::{self, DecodeError, Message};
use bytes::Bytes;
use cluster_core::wal_position::Lsn;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// What a message in memory costs beyond its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("spilling a transaction to a temporary file: {0}")]
    Spill(#[from] io::Error),
    #[error("{what} at {at}")]
    Protocol { what: &'static str, at: Lsn },
}

/// A committed transaction, whose messages are taken in order.
#[derive(Debug)]
pub struct Transaction {
    pub xid: u32,
    pub end_lsn: Lsn,
    pub committed_at_us: i64,
    /// Whether some UPDATE changes a key: then values must be remembered.
    pub has_key_changes: bool,
    memory: VecDeque<(Lsn, Bytes)>,
    spilled: Option<BufReader<File>>,
    next_ordinal: u32,
}

impl Transaction {
    /// The next message; with its ordinal when it is a row or TRUNCATE change.
    pub fn next_message(&mut self) -> Result<Option<(Option<u32>, Message)>, TransactionError> {
        let Some((at, payload)) = self.next_raw()? else {
            return Ok(None);
        };
        let is_change = is_change(&payload);
        let message = pgoutput::decode(at, payload)?;
        let mut ordinal = None;
        if is_change {
            ordinal = Some(self.next_ordinal);
            // END stands behind all of a transaction's changes.
            self.next_ordinal = self
                .next_ordinal
                .checked_add(1)
                .filter(|next| *next < u32::MAX)
                .ok_or(TransactionError::Protocol {
                    what: "transaction of 2^32 changes",
                    at,
                })?;
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

fn is_change(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(b'I' | b'U' | b'D' | b'T'))
}

struct Open {
    xid: u32,
    final_lsn: Lsn,
    has_key_changes: bool,
    memory: VecDeque<(Lsn, Bytes)>,
    memory_bytes: usize,
    spill: Option<BufWriter<File>>,
}

/// Takes the stream's messages; gives whole transactions.
pub struct Assembler {
    memory_bytes_max: usize,
    spill_dir: PathBuf,
    open: Option<Open>,
}

impl Assembler {
    pub fn new(memory_bytes_max: usize, spill_dir: impl Into<PathBuf>) -> Self {
        Self {
            memory_bytes_max,
            spill_dir: spill_dir.into(),
            open: None,
        }
    }

    pub fn is_within_transaction(&self) -> bool {
        self.open.is_some()
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
            memory: VecDeque::new(),
            memory_bytes: 0,
            spill: None,
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
        if open.memory_bytes > self.memory_bytes_max {
            open.spill(&self.spill_dir)?;
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
            open.spill(&self.spill_dir)?;
        }
        let spilled = match open.spill {
            Some(writer) => {
                let mut file = writer
                    .into_inner()
                    .map_err(io::IntoInnerError::into_error)?;
                file.rewind()?;
                Some(BufReader::with_capacity(1 << 20, file))
            }
            None => None,
        };
        Ok(Transaction {
            xid: open.xid,
            end_lsn,
            committed_at_us,
            has_key_changes: open.has_key_changes,
            memory: open.memory,
            spilled,
            next_ordinal: 1,
        })
    }
}

impl Open {
    /// Moves what is in memory behind what is in the file.
    fn spill(&mut self, dir: &Path) -> io::Result<()> {
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
}

fn read_spilled(file: &mut BufReader<File>) -> io::Result<Option<(Lsn, Bytes)>> {
    let mut header = [0u8; 16];
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
}
