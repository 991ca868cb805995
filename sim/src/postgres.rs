//! A stand-in for one Postgres database with one table and one index on it.
//!
//! A transaction gets its xid when it begins and does all its work in the
//! instant of its commit, so that xids interleave and commits are serial. The WAL
//! is the list of committed transactions; the slot keeps it from the confirmed
//! position on. At most one walsender streams a slot: a new one ends the former.
//! Postgres itself does not fail here.
//!
//! Not modelled: rollbacks (they leave no trace in logical decoding), a commit
//! that is in the WAL and not yet visible, other tables.

use crate::checks::Fact;
use crate::message::Message;
use crate::oracle::{Ended, Oracle};
use crate::process::{Effects, Proc, Ticket};
use crate::random::Rng;
use cluster_core::change::{BackfillRow, VectorColumn};
use cluster_core::collection::BackfillSnapshot;
use cluster_core::ids::Incarnation;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::collections::BTreeMap;
use std::sync::Arc;

pub const INCARNATION: Incarnation = Incarnation(1);
const KEEPALIVE_EVERY_MS: u64 = 300;
const CHANGES_MAX: u64 = 5;

#[derive(Clone, Debug, PartialEq)]
pub enum TableChange {
    Upsert {
        key: RowKey,
        vector: VectorColumn,
    },
    /// An UPDATE that changes the key.
    Move {
        old: RowKey,
        new: RowKey,
        vector: VectorColumn,
    },
    Delete {
        key: RowKey,
    },
    Truncate,
    /// The row of `ruvector.collections` that defines the index.
    Define {
        definition_generation: u64,
    },
}

/// A committed transaction; change number `i` has the ordinal `i + 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// pgoutput carries the low half only.
    pub xid: u32,
    pub end: Lsn,
    pub changes: Vec<TableChange>,
}

/// What a temporary slot's exported snapshot sees.
#[derive(Clone, Debug)]
pub struct SlotSnapshot {
    pub consistent_point: Lsn,
    pub seen: BackfillSnapshot,
    pub rows: Vec<BackfillRow>,
}

/// A session's snapshot. It is held until it is dropped by name.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub number: u64,
    pub xmin: FullXid,
    pub xmax: FullXid,
    pub running: Vec<FullXid>,
    pub at: Lsn,
}

struct Walsender {
    consumer: Proc,
    stream: Ticket,
    /// Index into the WAL of what is sent next.
    next: usize,
    keepalive_at: u64,
}

pub struct Postgres {
    pub oracle: Oracle,
    wal: Vec<Arc<Transaction>>,
    end: Lsn,
    next_xid: FullXid,
    open: Vec<FullXid>,
    /// The heap; `None` is a row whose vector is NULL.
    rows: BTreeMap<RowKey, Option<Box<[f32]>>>,
    snapshots: BTreeMap<u64, FullXid>,
    last_snapshot: u64,
    confirmed: Lsn,
    walsender: Option<Walsender>,
    keys: u64,
    values: u32,
    last_truncate: Lsn,
}

pub fn row_key(number: u64) -> RowKey {
    RowKey::from_columns([number.to_be_bytes().as_slice()]).expect("eight bytes are a key")
}

fn end_of(lsn: Lsn) -> WalPosition {
    WalPosition::end_of(INCARNATION, lsn)
}

impl Postgres {
    /// `keys`: how many different keys rows have.
    pub fn new(keys: u64, rng: &mut Rng) -> Self {
        // Some runs pass the 32-bit wraparound.
        let first_xid = match rng.chance(300) {
            true => (1 << 32) - rng.between(3, 200),
            false => 700,
        };
        Self {
            oracle: Oracle::default(),
            wal: Vec::new(),
            end: Lsn(1_000),
            next_xid: first_xid,
            open: Vec::new(),
            rows: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            last_snapshot: 0,
            confirmed: Lsn(1_000),
            walsender: None,
            keys,
            values: 0,
            last_truncate: Lsn(0),
        }
    }

    pub fn end(&self) -> Lsn {
        self.end
    }

    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    pub fn last_truncate(&self) -> Lsn {
        self.last_truncate
    }

    /// The last transaction that committed.
    pub fn last(&self) -> Option<&Transaction> {
        self.wal.last().map(|transaction| &**transaction)
    }

    pub fn begin(&mut self) -> FullXid {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.open.push(xid);
        xid
    }

    pub fn open_transactions(&self) -> &[FullXid] {
        &self.open
    }

    /// Commits an open transaction with changes by chance; where its commit ends.
    pub fn commit(&mut self, xid: FullXid, rng: &mut Rng) -> Lsn {
        let begins_at = self.end.0 + rng.between(1, 60);
        let end = Lsn(begins_at + rng.between(1, 60));
        let mut changes = Vec::new();
        for _ in 0..rng.between(1, CHANGES_MAX) {
            let at = WalPosition::new(INCARNATION, end, changes.len() as u32 + 1);
            changes.extend(self.change(at, xid, rng));
        }
        self.append(xid, end, changes)
    }

    /// `CREATE INDEX`, or a rebuild that makes the contents void.
    pub fn define(&mut self, definition_generation: u64) {
        let xid = self.begin();
        let end = Lsn(self.end.0 + 50);
        let define = TableChange::Define {
            definition_generation,
        };
        self.append(xid, end, vec![define]);
    }

    fn append(&mut self, xid: FullXid, end: Lsn, changes: Vec<TableChange>) -> Lsn {
        self.open.retain(|open| *open != xid);
        self.end = end;
        self.wal.push(Arc::new(Transaction {
            xid: xid as u32,
            end,
            changes,
        }));
        end
    }

    fn change(&mut self, at: WalPosition, xid: FullXid, rng: &mut Rng) -> Option<TableChange> {
        let key = row_key(rng.below(self.keys));
        let ended = Ended {
            at,
            xid,
            by_truncate: false,
        };
        let Some(stored) = self.rows.get(&key).cloned() else {
            let vector = self.some_vector(rng);
            self.put(&key, at, vector.clone());
            return Some(TableChange::Upsert {
                key,
                vector: column(vector),
            });
        };
        match rng.below(100) {
            0 => {
                self.oracle.truncate(at, xid);
                self.rows.clear();
                self.last_truncate = at.commit_end;
                Some(TableChange::Truncate)
            }
            1..20 => {
                self.oracle.end(&key, ended);
                self.rows.remove(&key);
                Some(TableChange::Delete { key })
            }
            20..35 => {
                let new = row_key(rng.below(self.keys));
                if self.rows.contains_key(&new) {
                    return None;
                }
                let is_touched = rng.chance(400);
                let vector = match is_touched {
                    true => self.some_vector(rng),
                    false => stored.clone(),
                };
                self.oracle.end(&key, ended);
                self.rows.remove(&key);
                self.put(&new, at, vector.clone());
                let vector = match is_touched {
                    true => column(vector),
                    false => untouched(&stored),
                };
                Some(TableChange::Move {
                    old: key,
                    new,
                    vector,
                })
            }
            35..65 => Some(TableChange::Upsert {
                key,
                vector: untouched(&stored),
            }),
            _ => {
                let vector = self.some_vector(rng);
                self.oracle.end(&key, ended);
                self.put(&key, at, vector.clone());
                Some(TableChange::Upsert {
                    key,
                    vector: column(vector),
                })
            }
        }
    }

    fn put(&mut self, key: &RowKey, at: WalPosition, vector: Option<Box<[f32]>>) {
        if let Some(vector) = &vector {
            self.oracle.begin(key.clone(), at, vector.clone());
        }
        self.rows.insert(key.clone(), vector);
    }

    /// NULL now and then; else a value that no other version has.
    fn some_vector(&mut self, rng: &mut Rng) -> Option<Box<[f32]>> {
        if rng.chance(60) {
            return None;
        }
        self.values += 1;
        let near = rng.below(64) as f32;
        Some(vec![near, self.values as f32].into())
    }

    pub fn take_snapshot(&mut self) -> Snapshot {
        self.last_snapshot += 1;
        let number = self.last_snapshot;
        let xmin = self.open.iter().copied().min().unwrap_or(self.next_xid);
        self.snapshots.insert(number, xmin);
        Snapshot {
            number,
            xmin,
            xmax: self.next_xid,
            running: self.open.clone(),
            at: self.end,
        }
    }

    pub fn drop_snapshot(&mut self, number: u64) {
        self.snapshots.remove(&number);
    }

    fn oldest_xmin(&self) -> FullXid {
        let running = self.open.iter().copied().min().unwrap_or(self.next_xid);
        let held = self.snapshots.values().copied().min();
        held.map_or(running, |held| held.min(running))
    }

    fn slot_snapshot(&self) -> SlotSnapshot {
        let rows = self.rows.iter().filter_map(|(key, vector)| {
            let (key, vector) = (key.clone(), vector.clone()?);
            Some(BackfillRow { key, vector })
        });
        let mut running = self.open.clone();
        running.sort_unstable();
        SlotSnapshot {
            consistent_point: self.end,
            seen: BackfillSnapshot {
                xmax: self.next_xid,
                running,
                membership: None,
            },
            rows: rows.collect(),
        }
    }

    pub fn on(&mut self, from: Proc, message: Message, effects: &mut Effects<'_>) {
        match message {
            Message::StartReplication { stream } => self.start_replication(from, stream, effects),
            Message::Status { stream, flush } => self.status(stream, flush, effects),
            Message::TakeSnapshot { call } => {
                let snapshot = Arc::new(self.slot_snapshot());
                effects.call(from, Message::Snapshot { call, snapshot });
            }
            Message::Reread { call, key } => {
                let vector = self.rows.get(&key).cloned().flatten();
                effects.call(from, Message::RereadDone { call, vector });
            }
            _ => {}
        }
    }

    fn start_replication(&mut self, from: Proc, stream: Ticket, effects: &mut Effects<'_>) {
        let confirmed = self.confirmed;
        let next = self.wal.partition_point(|t| t.end <= confirmed);
        self.walsender = Some(Walsender {
            consumer: from,
            stream,
            next,
            keepalive_at: 0,
        });
        let started = Message::Started {
            stream,
            confirmed,
            next_xid: self.next_xid,
        };
        effects.stream(from, stream, started);
        self.send_wal(effects);
    }

    fn status(&mut self, stream: Ticket, flush: Lsn, effects: &mut Effects<'_>) {
        let is_current = self.walsender.as_ref().is_some_and(|w| w.stream == stream);
        if is_current && flush > self.confirmed {
            self.confirmed = flush;
            effects.tell(Fact::SlotConfirmed(end_of(flush)));
        }
    }

    /// Sends what was committed, and keepalives.
    pub fn send_wal(&mut self, effects: &mut Effects<'_>) {
        let oldest_xmin = self.oldest_xmin();
        let Some(walsender) = &mut self.walsender else {
            return;
        };
        let (consumer, stream) = (walsender.consumer, walsender.stream);
        let news = self.wal.get(walsender.next..).unwrap_or_default();
        for transaction in news {
            let transaction = transaction.clone();
            let wal = Message::Wal {
                stream,
                transaction,
            };
            effects.stream(consumer, stream, wal);
        }
        let is_news = !news.is_empty();
        walsender.next = self.wal.len();
        if is_news || effects.now >= walsender.keepalive_at {
            walsender.keepalive_at = effects.now + KEEPALIVE_EVERY_MS;
            let keepalive = Message::Keepalive {
                stream,
                wal_end: self.end,
                oldest_xmin,
                next_xid: self.next_xid,
            };
            effects.stream(consumer, stream, keepalive);
        }
    }
}

fn column(vector: Option<Box<[f32]>>) -> VectorColumn {
    vector.map_or(VectorColumn::Null, VectorColumn::Value)
}

/// A NULL is told as NULL; a value out of line is not told again.
fn untouched(stored: &Option<Box<[f32]>>) -> VectorColumn {
    match stored {
        None => VectorColumn::Null,
        Some(_) => VectorColumn::Unchanged,
    }
}
