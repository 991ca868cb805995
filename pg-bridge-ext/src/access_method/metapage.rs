//! Block 0 of the index: which definition, and which generation of it, this
//! index stands for. A stored format; WAL-logged, so standbys have it.

use super::definition::{Definition, fingerprint_hash};
use crate::error::{SqlError, SqlState};
use pgrx::pg_sys;

/// InvalidSubTransactionId, a macro with a cast that bindgen leaves out.
pub const INVALID_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

const MAGIC: u32 = 0x5276_4864; // "RvHd"
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Metapage {
    magic: u32,
    version: u32,
    /// 0: the cluster does not keep this index.
    pub definition_generation: u64,
    pub fingerprint_hash: u64,
}

impl Metapage {
    /// Of an index whose entry in the catalog is there, and whose file is empty: CREATE INDEX
    /// CONCURRENTLY is waiting for older transactions, or was cut off then.
    const NOT_BUILT: Self = Self {
        magic: 0,
        version: 0,
        definition_generation: 0,
        fingerprint_hash: 0,
    };

    pub fn new(definition_generation: u64, definition: &Definition) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            definition_generation,
            fingerprint_hash: fingerprint_hash(&definition.fingerprint()),
        }
    }

    /// Writes the page of a new, empty index.
    ///
    /// # Safety
    /// The index is open, locked exclusively, and the fork has no block.
    pub unsafe fn create(self, index: pg_sys::Relation, fork: pg_sys::ForkNumber::Type) {
        const P_NEW: pg_sys::BlockNumber = pg_sys::InvalidBlockNumber;
        let buffer = pg_sys::ReadBufferExtended(
            index,
            fork,
            P_NEW,
            pg_sys::ReadBufferMode::RBM_NORMAL,
            std::ptr::null_mut(),
        );
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        let page = pg_sys::BufferGetPage(buffer);
        pg_sys::CritSectionCount += 1;
        pg_sys::PageInit(page, pg_sys::BLCKSZ as usize, 0);
        let header = page.cast::<pg_sys::PageHeaderData>();
        contents(page).write(self);
        (*header).pd_lower = (pg_sys::SizeOfPageHeaderData() + std::mem::size_of::<Self>()) as u16;
        pg_sys::MarkBufferDirty(buffer);
        let is_init_fork = fork == pg_sys::ForkNumber::INIT_FORKNUM;
        if is_init_fork || relation_needs_wal(index) {
            pg_sys::log_newpage_buffer(buffer, true);
        }
        pg_sys::CritSectionCount -= 1;
        pg_sys::UnlockReleaseBuffer(buffer);
    }

    /// Whether the index stands for this very definition, as far as the cluster has
    /// been told of it.
    pub fn stands_for(&self, definition: &Definition) -> bool {
        self.definition_generation != 0
            && self.fingerprint_hash == fingerprint_hash(&definition.fingerprint())
    }

    pub fn is_built(&self) -> bool {
        self.magic == MAGIC
    }

    /// Reads the page, from the relation cache after the first time.
    ///
    /// # Safety
    /// The index is open and one of ours.
    pub unsafe fn read(index: pg_sys::Relation) -> Self {
        let cached = (*index).rd_amcache.cast::<Self>();
        if !cached.is_null() {
            return *cached;
        }
        if pg_sys::RelationGetNumberOfBlocksInFork(index, pg_sys::ForkNumber::MAIN_FORKNUM) == 0 {
            return Self::NOT_BUILT;
        }
        let buffer = pg_sys::ReadBuffer(index, 0);
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let metapage = *contents(pg_sys::BufferGetPage(buffer));
        pg_sys::UnlockReleaseBuffer(buffer);
        if metapage.magic != MAGIC || metapage.version != VERSION {
            SqlError::new(
                SqlState::CORRUPT_INDEX,
                format!(
                    "index \"{}\" has magic {:#x} and version {} where {MAGIC:#x} and {VERSION} belong",
                    pg_sys::name_data_to_str(&(*(*index).rd_rel).relname),
                    metapage.magic,
                    metapage.version,
                ),
            )
            .hint("REINDEX the index.")
            .raise();
        }
        let copy = pg_sys::MemoryContextAlloc((*index).rd_indexcxt, std::mem::size_of::<Self>());
        copy.cast::<Self>().write(metapage);
        (*index).rd_amcache = copy;
        metapage
    }
}

unsafe fn contents(page: pg_sys::Page) -> *mut Metapage {
    page.cast::<u8>().add(pg_sys::SizeOfPageHeaderData()).cast()
}

/// RelationNeedsWAL: permanent, and not created in a transaction that skips WAL.
unsafe fn relation_needs_wal(index: pg_sys::Relation) -> bool {
    let permanent =
        (*(*index).rd_rel).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as std::ffi::c_char;
    let created_here = (*index).rd_createSubid != INVALID_SUBTRANSACTION
        || (*index).rd_firstRelfilenodeSubid != INVALID_SUBTRANSACTION;
    permanent && (pg_sys::wal_level > pg_sys::WalLevel::WAL_LEVEL_MINIMAL as i32 || !created_here)
}
