//! What planner and scan read about the cluster without asking anybody: the
//! worker flattens every map that it takes into shared memory.
//!
//! A sequence lock guards the table: odd while it is written. There is one
//! writer; a reader copies and looks whether the sequence has moved. What it copied
//! is not looked at before that.

use cluster_core::collection::{BackfillSnapshot, CollectionState};
use cluster_core::freshness::samples::BootMicros;
use cluster_core::ids::{CollectionId, ServerStart, SourceId};
use cluster_core::map::PartitionMap;
use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Collections of this server that shared memory has room for.
pub const COLLECTIONS_MAX: usize = 1024;
/// Followed databases of this server that shared memory has room for.
pub const DATABASES_MAX: usize = 64;
/// Transactions that a backfill's snapshot may take for running. Beyond it no
/// query's snapshot is taken for covered, and scans are exact.
pub const RUNNING_MAX: usize = 64;
const REASON_BYTES_MAX: usize = 256;
/// Without word from a coordinator, or from a node while none can be reached, for
/// so long, the table is not trusted.
pub const DISCONNECTED_AFTER: Duration = Duration::from_secs(5);
/// A writer takes microseconds, unless it is not running or has died.
const READ_SPINS_MAX: usize = 1_000;
const READ_PAUSE: Duration = Duration::from_micros(100);
const READ_PATIENCE: Duration = Duration::from_millis(200);

const OTHER_SERVER: &str = "the cluster follows this database on another server, or on this one \
     before it was started: a copy has the same identifiers and rows of its own, so it is not \
     answered. Give a copy a source of its own; it needs a system identifier of its own as well";

/// Which of all servers this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    pub system_identifier: u64,
    pub start: ServerStart,
    /// On CLOCK_BOOTTIME.
    pub started_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewState {
    /// The cluster does not list the index.
    Unknown,
    Building,
    Ready,
    Failed,
    /// The worker has not heard from the cluster for a while.
    Disconnected,
    /// The cluster follows this database, but has not seen this start of the server.
    Unidentified,
}

/// What is known of one index.
#[derive(Clone, Debug)]
pub struct IndexView {
    pub state: ViewState,
    pub collection: CollectionId,
    pub source: SourceId,
    pub partitions: u32,
    /// Those of which no replica has everything any more.
    pub stale_partitions: u32,
    pub snapshot: BackfillSnapshot,
    pub reason: String,
    /// The database was last followed on a server that was started another time.
    pub is_of_other_server: bool,
    /// And is right now: this server is a copy of that one.
    pub is_followed_elsewhere: bool,
}

impl IndexView {
    pub fn without_collection(state: ViewState, reason: impl Into<String>) -> Self {
        Self {
            state,
            collection: CollectionId(0),
            source: SourceId(0),
            partitions: 0,
            stale_partitions: 0,
            snapshot: BackfillSnapshot::default(),
            reason: reason.into(),
            is_of_other_server: false,
            is_followed_elsewhere: false,
        }
    }
}

#[repr(C)]
pub struct Table {
    sequence: AtomicU64,
    /// When the cluster was last known to be in contact; 0: never.
    heard_at_ms: AtomicU64,
    /// When a coordinator last was, who alone can make collections; 0: never.
    coordinator_at_ms: AtomicU64,
    content: UnsafeCell<Content>,
}

#[repr(C)]
struct Content {
    databases: [Database; DATABASES_MAX],
    database_count: u32,
    is_overfull: bool,
    count: u32,
    /// Ascending.
    keys: [Key; COLLECTIONS_MAX],
    entries: [Entry; COLLECTIONS_MAX],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Database {
    oid: u32,
    is_of_other_server: u32,
    is_followed_elsewhere: u32,
    problem: Text,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    database_oid: u32,
    index_oid: u32,
    definition_generation: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    state: u32,
    partitions: u32,
    stale_partitions: u32,
    collection: u64,
    source: u64,
    xmax: u64,
    running_count: u32,
    running: [u64; RUNNING_MAX],
    reason: Text,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Text {
    len: u32,
    bytes: [u8; REASON_BYTES_MAX],
}

const BUILDING: u32 = 1;
const READY: u32 = 2;
const FAILED: u32 = 3;

impl Text {
    fn new(text: &str) -> Self {
        let mut len = text.len().min(REASON_BYTES_MAX);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; REASON_BYTES_MAX];
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self {
            len: len as u32,
            bytes,
        }
    }

    fn read(&self) -> String {
        let len = (self.len as usize).min(REASON_BYTES_MAX);
        String::from_utf8_lossy(&self.bytes[..len]).into_owned()
    }
}

fn since(at_ms: &AtomicU64, now_ms: u64) -> Option<Duration> {
    match at_ms.load(Ordering::Relaxed) {
        0 => None,
        at => Some(Duration::from_millis(now_ms.saturating_sub(at))),
    }
}

impl Table {
    /// Somebody of the cluster has been heard, or even a coordinator.
    pub fn note_heard(&self, now_ms: u64, is_coordinator: bool) {
        self.heard_at_ms.store(now_ms, Ordering::Relaxed);
        if is_coordinator {
            self.coordinator_at_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// How long the cluster has been silent; `None`: always.
    pub fn silent_for(&self, now_ms: u64) -> Option<Duration> {
        since(&self.heard_at_ms, now_ms)
    }

    /// How long no coordinator has been heard; `None`: never one.
    pub fn coordinators_silent_for(&self, now_ms: u64) -> Option<Duration> {
        since(&self.coordinator_at_ms, now_ms)
    }

    /// Writes what a map says about the databases of this server. One writer at a
    /// time, in one process.
    pub fn write(
        &self,
        map: &PartitionMap,
        server: ServerIdentity,
        elsewhere: &BTreeSet<SourceId>,
    ) {
        let (databases, entries) = flatten(map, server, elsewhere);
        // A writer that died half-way left the sequence odd.
        let before = self.sequence.load(Ordering::Relaxed) & !1;
        self.sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        // SAFETY: the one writer; readers look at the sequence before they trust.
        unsafe {
            let content = self.content.get();
            (*content).database_count = databases.len().min(DATABASES_MAX) as u32;
            for (at, database) in databases.iter().take(DATABASES_MAX).enumerate() {
                (*content).databases[at] = *database;
            }
            (*content).count = entries.len().min(COLLECTIONS_MAX) as u32;
            (*content).is_overfull =
                entries.len() > COLLECTIONS_MAX || databases.len() > DATABASES_MAX;
            for (at, (key, entry)) in entries.iter().take(COLLECTIONS_MAX).enumerate() {
                (*content).keys[at] = *key;
                (*content).entries[at] = *entry;
            }
        }
        self.sequence.store(before + 2, Ordering::Release);
    }

    /// Whether no index of this server is known to the cluster.
    pub fn is_empty(&self) -> bool {
        // SAFETY: one integer, valid whatever it holds.
        unsafe { (&raw const (*self.content.get()).count).read_volatile() == 0 }
    }

    /// What was last written about an index, however long ago.
    pub fn read(&self, database_oid: u32, index_oid: u32, generation: u64) -> IndexView {
        let wanted = Key {
            database_oid,
            index_oid,
            definition_generation: generation,
        };
        let mut give_up_at = None;
        for attempt in 0.. {
            let before = self.sequence.load(Ordering::Acquire);
            if before & 1 == 0 {
                // SAFETY: plain integers, valid whatever they hold; copied with
                // volatile reads and used only if no writer was about.
                let copy = unsafe { copy(self.content.get(), wanted) };
                fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == before {
                    return copy.interpret();
                }
            }
            if attempt < READ_SPINS_MAX {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            if now >= *give_up_at.get_or_insert(now + READ_PATIENCE) {
                break;
            }
            std::thread::sleep(READ_PAUSE);
        }
        IndexView::without_collection(ViewState::Disconnected, "the worker stopped while it wrote")
    }
}

/// What a reader takes out of the table.
struct Copied {
    entry: Option<Entry>,
    database: Option<Database>,
    is_overfull: bool,
}

unsafe fn copy(content: *const Content, wanted: Key) -> Copied {
    let count = (&raw const (*content).count)
        .read_volatile()
        .min(COLLECTIONS_MAX as u32) as usize;
    let keys = (&raw const (*content).keys).cast::<Key>();
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if keys.add(middle).read_volatile() < wanted {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let is_found = low < count && keys.add(low).read_volatile() == wanted;
    let entries = (&raw const (*content).entries).cast::<Entry>();
    let databases = (&raw const (*content).databases).cast::<Database>();
    let known = (&raw const (*content).database_count)
        .read_volatile()
        .min(DATABASES_MAX as u32);
    let mut followed = (0..known as usize).map(|at| databases.add(at).read_volatile());
    Copied {
        entry: is_found.then(|| entries.add(low).read_volatile()),
        database: followed.find(|database| database.oid == wanted.database_oid),
        is_overfull: (&raw const (*content).is_overfull)
            .cast::<u8>()
            .read_volatile()
            != 0,
    }
}

impl Copied {
    fn interpret(self) -> IndexView {
        let Some(entry) = self.entry else {
            let is_of_other_server = self.database.is_some_and(|d| d.is_of_other_server != 0);
            let reason = match self.database {
                _ if self.is_overfull => format!(
                    "the server has more than {COLLECTIONS_MAX} collections or {DATABASES_MAX} databases"
                ),
                None => "no source of the cluster follows this database; \
                         add it with `ruvector ctl source add`"
                    .to_owned(),
                Some(_) if is_of_other_server => OTHER_SERVER.to_owned(),
                Some(database) => database.problem.read(),
            };
            return IndexView {
                is_of_other_server,
                is_followed_elsewhere: self.database.is_some_and(|d| d.is_followed_elsewhere != 0),
                ..IndexView::without_collection(ViewState::Unknown, reason)
            };
        };
        let running = (entry.running_count as usize).min(RUNNING_MAX);
        IndexView {
            state: match entry.state {
                BUILDING => ViewState::Building,
                READY => ViewState::Ready,
                FAILED => ViewState::Failed,
                _ => ViewState::Unknown,
            },
            collection: CollectionId(entry.collection),
            source: SourceId(entry.source),
            partitions: entry.partitions,
            stale_partitions: entry.stale_partitions,
            snapshot: BackfillSnapshot {
                xmax: entry.xmax,
                running: entry.running[..running].to_vec(),
                membership: None,
            },
            reason: entry.reason.read(),
            is_of_other_server: false,
            is_followed_elsewhere: false,
        }
    }
}

fn flatten(
    map: &PartitionMap,
    server: ServerIdentity,
    elsewhere: &BTreeSet<SourceId>,
) -> (Vec<Database>, Vec<(Key, Entry)>) {
    let mut databases = Vec::new();
    let mut entries = Vec::new();
    for source in map.sources.values() {
        let Some(slot) = &source.slot else { continue };
        if slot.system_identifier != server.system_identifier {
            continue;
        }
        // A copy of the followed server's files is another server with the same
        // identifiers: what the cluster holds is not what it holds (P1, P9).
        let is_of_other_server = source.server_start != Some(server.start);
        databases.push(Database {
            oid: slot.database_oid,
            is_of_other_server: is_of_other_server.into(),
            is_followed_elsewhere: elsewhere.contains(&source.id).into(),
            problem: Text::new(&source.problem),
        });
        if is_of_other_server {
            continue;
        }
        for collection in map
            .collections
            .values()
            .filter(|c| c.spec.source == source.id)
        {
            let key = Key {
                database_oid: slot.database_oid,
                index_oid: collection.spec.index_oid,
                definition_generation: collection.spec.definition_generation,
            };
            let stale = map.stale_partitions(collection.id) as u32;
            let mut entry = Entry {
                state: BUILDING,
                partitions: map.partitions_of(collection.id).len() as u32,
                stale_partitions: stale,
                collection: collection.id.0,
                source: source.id.0,
                xmax: 0,
                running_count: 0,
                running: [0; RUNNING_MAX],
                reason: Text::new(&source.problem),
            };
            if let Some(reconcile) = &collection.reconcile {
                entry.reason = Text::new(&reconcile.reason);
            }
            match &collection.state {
                CollectionState::Building { .. } => {}
                CollectionState::Failed { reason } => {
                    entry.state = FAILED;
                    entry.reason = Text::new(reason);
                }
                CollectionState::Ready { snapshot } => {
                    entry.state = READY;
                    entry.xmax = snapshot.xmax;
                    if snapshot.running.len() > RUNNING_MAX {
                        // No snapshot covers this one.
                        entry.xmax = u64::MAX;
                        entry.reason =
                            Text::new("its backfill's snapshot has too many transactions");
                    } else {
                        entry.running_count = snapshot.running.len() as u32;
                        entry.running[..snapshot.running.len()].copy_from_slice(&snapshot.running);
                    }
                }
            }
            entries.push((key, entry));
        }
    }
    entries.sort_by_key(|(key, _)| *key);
    (databases, entries)
}

/// Milliseconds of CLOCK_BOOTTIME, the same for all processes of the machine.
pub fn boot_ms() -> u64 {
    boot_micros().0 / 1_000
}

pub fn boot_micros() -> BootMicros {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    BootMicros(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000)
}
