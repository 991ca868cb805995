//! Judges keys of one replica: the end of the log, running writers, the heap, the
//! replica, running writers, the heap again.
//! The order of the readings is what `cluster_core::verify::judge` stands on.

use super::Subject;
use super::compare::ask;
use super::row::RowReader;
use crate::pause::pause;
use crate::scan::freshness;
use crate::scan::key_lookup::{KeyLookup, Utf8Session};
use crate::scan::memory_context;
use crate::worker::{ReplicaPlace, ScanFailure};
use cluster_core::ids::Incarnation;
use cluster_core::row_key::RowKey;
use cluster_core::verify::settle::Settled;
use cluster_core::verify::{HeapRow, HeapVersion, ReplicaRow, Sandwich, Settling, Verdict, Wanted};
use cluster_core::wal_position::{Lsn, WalPosition};
use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys;
use std::collections::HashMap;
use std::time::Duration;

/// Bytes of keys in one request to a replica.
const REQUEST_KEY_BYTES: usize = 32 << 10;
/// No row of a replica that nobody feeds is newer than a reading of the heap.
const ANY_POSITION: WalPosition = WalPosition {
    incarnation: Incarnation(u64::MAX),
    commit_end: Lsn(u64::MAX),
    ordinal: WalPosition::END,
};

pub struct Judge<'a> {
    subject: &'a Subject,
    place: ReplicaPlace,
    is_fed: bool,
}

impl<'a> Judge<'a> {
    pub fn new(subject: &'a Subject, place: ReplicaPlace, is_fed: bool) -> Self {
        Self {
            subject,
            place,
            is_fed,
        }
    }

    /// # Safety
    /// The subject is open, in a transaction of isolation level READ COMMITTED.
    pub unsafe fn settle(&self, keys: Vec<RowKey>) -> Result<Settled, ScanFailure> {
        let mut settling = Settling::new(keys);
        while !settling.wanted().is_empty() {
            pause(Duration::from_millis(settling.pause_ms()));
            // What a reading allocates goes with it: there may be millions of keys.
            let caller = pg_sys::CurrentMemoryContext;
            let memory = memory_context(caller, c"ruvector verified keys");
            pg_sys::CurrentMemoryContext = memory;
            let verdicts = self.judge(settling.wanted());
            pg_sys::CurrentMemoryContext = caller;
            pg_sys::MemoryContextDelete(memory);
            settling.judged(&verdicts?);
        }
        Ok(settling.finish())
    }

    unsafe fn judge(&self, keys: &[RowKey]) -> Result<Vec<Verdict>, ScanFailure> {
        let known = Lsn(freshness::end_of_wal());
        let was_busy = self.busy(keys);
        let before = self.shown(keys);
        let (incarnation, replica) = self.held(keys)?;
        let is_busy = self.busy(keys);
        let after = self.shown(keys);
        let known = match incarnation {
            Some(incarnation) => WalPosition::end_of(incarnation, known),
            None => ANY_POSITION,
        };
        let sandwich = |number: usize| Sandwich {
            known,
            is_busy: was_busy[number] || is_busy[number],
            before: before[number],
            replica: replica.get(&keys[number]).copied(),
            after: after[number],
        };
        Ok((0..keys.len()).map(|n| sandwich(n).judge()).collect())
    }

    /// What a snapshot taken now shows of the keys.
    unsafe fn shown(&self, keys: &[RowKey]) -> Vec<Option<HeapRow>> {
        let subject = self.subject;
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let mut lookup = KeyLookup::open(subject.table, snapshot, &subject.key);
        let reader = RowReader::new(subject);
        let utf8 = Utf8Session::begin();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            pgrx::check_for_interrupts!();
            let found = lookup.find(key.as_bytes()).is_some();
            rows.push(if found {
                shown(&lookup, &reader, key)
            } else {
                None
            });
            pg_sys::ExecClearTuple(lookup.slot());
        }
        drop(utf8);
        lookup.close();
        pg_sys::UnregisterSnapshot(snapshot);
        rows
    }

    /// What the replica holds once it has applied whatever was shown before this call,
    /// and in which incarnation; in none if nobody feeds it.
    unsafe fn held(
        &self,
        keys: &[RowKey],
    ) -> Result<(Option<Incarnation>, HashMap<RowKey, ReplicaRow>), ScanFailure> {
        let min_lsn = self.is_fed.then(|| Lsn(freshness::flushed_end_of_wal()));
        let (mut incarnation, mut rows) = (None, HashMap::new());
        let mut rest = keys;
        while !rest.is_empty() {
            let (request, others) = rest.split_at(how_many(rest));
            let piece = ask(
                self.subject,
                &self.place,
                min_lsn,
                Wanted::Keys(request.to_vec()),
            )?;
            // Of several answers the lowest: nothing above it is judged.
            let reached = piece.at.map(|at| at.incarnation);
            incarnation = incarnation.or(reached).min(reached);
            rows.extend(piece.rows);
            rest = others;
        }
        Ok((incarnation, rows))
    }

    /// Which of the keys running transactions have written.
    unsafe fn busy(&self, keys: &[RowKey]) -> Vec<bool> {
        let subject = self.subject;
        let mut dirty = pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
            ..Default::default()
        };
        let mut lookup = KeyLookup::open(subject.table, &raw mut dirty, &subject.key);
        let mut busy = Vec::with_capacity(keys.len());
        for key in keys {
            pgrx::check_for_interrupts!();
            busy.push(lookup.is_busy(key.as_bytes()));
        }
        lookup.close();
        busy
    }

    /// Keys as a person writes them, with what is the matter.
    pub unsafe fn texts(&self, keys: &[(&RowKey, &'static str)]) -> Vec<(String, &'static str)> {
        if keys.is_empty() {
            return Vec::new();
        }
        let subject = self.subject;
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let mut lookup = KeyLookup::open(subject.table, snapshot, &subject.key);
        let texts = keys.iter().map(|(key, kind)| (lookup.text(key), *kind));
        let texts = texts.collect();
        lookup.close();
        pg_sys::UnregisterSnapshot(snapshot);
        texts
    }
}

/// The row that the lookup has found, if it bears this very key: what is equal to
/// the index need not have the same bytes.
unsafe fn shown(lookup: &KeyLookup, reader: &RowReader, wanted: &RowKey) -> Option<HeapRow> {
    let slot = lookup.slot();
    let (key, digest) = reader.read(slot);
    let mut is_null = false;
    let xmin = pg_sys::slot_getsysattr(slot, pg_sys::MinTransactionIdAttributeNumber, &mut is_null);
    let version = HeapVersion {
        xmin: xmin.value() as u32,
        tid: item_pointer_to_u64((*slot).tts_tid),
    };
    (key == *wanted).then_some(HeapRow { version, digest })
}

/// How many of the keys one request takes.
fn how_many(keys: &[RowKey]) -> usize {
    let mut bytes = 0;
    let fits = keys.iter().take_while(|key| {
        bytes += key.as_bytes().len();
        bytes <= REQUEST_KEY_BYTES
    });
    fits.count().max(1)
}
