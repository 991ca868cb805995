//! From a row key to the row's version that the query's snapshot sees, by the
//! index that the replica identity stands on.
//!
//! What comes out is the TID that the index holds, the root of its HOT chain:
//! the executor fetches the row again by it, and would not find a heap-only
//! tuple by its own TID.

use crate::access_method::definition::RowKeyIndex;
use crate::error::{SqlError, SqlState};
use cluster_core::row_key::RowKey;
use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys;
use std::ffi::c_int;

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;
const BTREE_EQUAL: u16 = pg_sys::BTEqualStrategyNumber as u16;

pub struct KeyLookup {
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    columns: Vec<Column>,
    /// Where the index scan keeps what it allocates on the way: btree's list of
    /// killed items is made at the first dead entry and lives until the scan ends.
    memory: pg_sys::MemoryContext,
}

/// A row key's text is UTF-8, as the consumer's connection has it, while send and
/// receive functions convert to and from the encoding of this session's client:
/// while this lives, that is UTF-8.
pub struct Utf8Session(Option<c_int>);

impl Utf8Session {
    /// # Safety
    /// On the backend's main thread, in a transaction.
    pub unsafe fn begin() -> Self {
        let client = pg_sys::pg_get_client_encoding();
        if client == UTF8 {
            return Self(None);
        }
        if pg_sys::PrepareClientEncoding(UTF8) < 0 || pg_sys::SetClientEncoding(UTF8) < 0 {
            pgrx::error!("row keys cannot be converted from UTF-8 to the database's encoding");
        }
        Self(Some(client))
    }
}

impl Drop for Utf8Session {
    fn drop(&mut self) {
        if let Some(client) = self.0 {
            // SAFETY: its conversion was prepared when the session chose it.
            unsafe { pg_sys::SetClientEncoding(client) };
        }
    }
}

/// How one column of the key, in the row key's order, becomes a scan key.
struct Column {
    index_attnum: i16,
    kind: pg_sys::Oid,
    receive: Receive,
    typmod: i32,
    subtype: pg_sys::Oid,
    collation: pg_sys::Oid,
    equal: pg_sys::RegProcedure,
}

/// A type without a binary form travels as text.
enum Receive {
    Binary {
        function: pg_sys::Oid,
        parameter: pg_sys::Oid,
    },
    Text,
}

impl KeyLookup {
    /// # Safety
    /// The table is open and the key index is one of it; the current memory
    /// context outlives the lookup.
    pub unsafe fn open(
        table: pg_sys::Relation,
        snapshot: pg_sys::Snapshot,
        key: &RowKeyIndex,
    ) -> Self {
        let index = pg_sys::index_open(key.index_oid, pg_sys::AccessShareLock as c_int);
        let form = (*index).rd_index;
        let attnums = std::slice::from_raw_parts(
            (*form).indkey.values.as_ptr(),
            (*form).indnkeyatts as usize,
        );
        let columns = key
            .columns
            .iter()
            .map(|column| {
                let place = attnums.iter().position(|&attnum| attnum == column.attnum);
                let Some(place) = place else {
                    pgrx::error!("column {} left the index of the row key", column.attnum)
                };
                Column::of(table, index, column.attnum, place)
            })
            .collect::<Vec<_>>();
        let scan = pg_sys::index_beginscan(table, index, snapshot, columns.len() as c_int, 0);
        let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
        Self {
            index,
            scan,
            slot,
            columns,
            memory: pg_sys::CurrentMemoryContext,
        }
    }

    /// Finds the visible version and leaves it in [`KeyLookup::slot`]. The key's
    /// values are made in the current context, which may be reset afterwards.
    ///
    /// # Safety
    /// The lookup is open.
    pub unsafe fn find(&mut self, key: &[u8]) -> Option<u64> {
        let mut keys = self.scan_keys(key);
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = self.memory;
        pg_sys::index_rescan(
            self.scan,
            keys.as_mut_ptr(),
            keys.len() as c_int,
            std::ptr::null_mut(),
            0,
        );
        let root = self.first_visible();
        pg_sys::CurrentMemoryContext = caller;
        root
    }

    /// Whether a running transaction has written a row of this key. The lookup was
    /// opened under a dirty snapshot, which says so of each row that it shows.
    ///
    /// # Safety
    /// The lookup is open.
    pub unsafe fn is_busy(&mut self, key: &[u8]) -> bool {
        let mut keys = self.scan_keys(key);
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = self.memory;
        let (count, none) = (keys.len() as c_int, std::ptr::null_mut());
        pg_sys::index_rescan(self.scan, keys.as_mut_ptr(), count, none, 0);
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        let mut is_busy = false;
        while !is_busy && pg_sys::index_getnext_slot(self.scan, forward, self.slot) {
            let seen = &*(*self.scan).xs_snapshot;
            let none = pg_sys::TransactionId::INVALID;
            is_busy = seen.xmin != none || seen.xmax != none;
        }
        pg_sys::ExecClearTuple(self.slot);
        pg_sys::CurrentMemoryContext = caller;
        is_busy
    }

    /// A key as a person writes it: one column's value, or several in parentheses.
    ///
    /// # Safety
    /// The lookup is open.
    pub unsafe fn text(&self, key: &RowKey) -> String {
        let values = key.columns().unwrap_or_default();
        if values.len() != self.columns.len() {
            return format!("{key:?}");
        }
        let utf8 = Utf8Session::begin();
        let values: Vec<_> = self
            .columns
            .iter()
            .zip(values)
            .map(|(column, bytes)| (column.kind, column.value(bytes)))
            .collect();
        drop(utf8);
        let texts = values.into_iter().map(|(kind, value)| {
            let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(kind, &mut output, &mut is_varlena);
            let text = pg_sys::OidOutputFunctionCall(output, value);
            std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned()
        });
        let texts: Vec<_> = texts.collect();
        match texts.as_slice() {
            [one] => one.clone(),
            several => format!("({})", several.join(",")),
        }
    }

    unsafe fn first_visible(&mut self) -> Option<u64> {
        loop {
            let tid =
                pg_sys::index_getnext_tid(self.scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tid.is_null() {
                return None;
            }
            // Taken now: the fetch overwrites it with the member's own TID.
            let root = item_pointer_to_u64(*tid);
            if pg_sys::index_fetch_heap(self.scan, self.slot) {
                return Some(root);
            }
        }
    }

    pub fn slot(&self) -> *mut pg_sys::TupleTableSlot {
        self.slot
    }

    unsafe fn scan_keys(&self, key: &[u8]) -> Vec<pg_sys::ScanKeyData> {
        let parsed = RowKey::from_bytes(key);
        let values = parsed
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|key| {
                let values = key.columns().map_err(|error| error.to_string())?;
                if values.len() == self.columns.len() {
                    Ok(values)
                } else {
                    Err(format!(
                        "{} columns, not {}",
                        values.len(),
                        self.columns.len()
                    ))
                }
            });
        let values = match values {
            Ok(values) => values,
            Err(problem) => SqlError::new(
                SqlState::CORRUPT_DATA,
                format!("the cluster answered with a bad row key: {problem}"),
            )
            .raise(),
        };
        let utf8 = Utf8Session::begin();
        let mut keys: Vec<_> = self
            .columns
            .iter()
            .zip(values)
            .map(|(column, bytes)| column.scan_key(bytes))
            .collect();
        drop(utf8);
        // btree wants them in the order of its own columns.
        keys.sort_by_key(|key: &pg_sys::ScanKeyData| key.sk_attno);
        keys
    }

    /// # Safety
    /// The lookup is open, in the transaction that opened it.
    pub unsafe fn close(&mut self) {
        pg_sys::ExecDropSingleTupleTableSlot(self.slot);
        pg_sys::index_endscan(self.scan);
        pg_sys::index_close(self.index, pg_sys::NoLock as c_int);
    }
}

impl Column {
    unsafe fn of(
        table: pg_sys::Relation,
        index: pg_sys::Relation,
        attnum: i16,
        place: usize,
    ) -> Self {
        let attribute = (*(*table).rd_att).attrs.as_ptr().add(attnum as usize - 1);
        let kind = (*attribute).atttypid;
        let family = *(*index).rd_opfamily.add(place);
        let subtype = *(*index).rd_opcintype.add(place);
        let operator = pg_sys::get_opfamily_member(family, subtype, subtype, BTREE_EQUAL as i16);
        if operator == pg_sys::InvalidOid {
            pgrx::error!("no equality operator for column {attnum} of the row key");
        }
        Self {
            index_attnum: place as i16 + 1,
            kind,
            receive: Receive::of(kind),
            typmod: (*attribute).atttypmod,
            subtype,
            collation: *(*index).rd_indcollation.add(place),
            equal: pg_sys::get_opcode(operator),
        }
    }

    unsafe fn scan_key(&self, bytes: &[u8]) -> pg_sys::ScanKeyData {
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyEntryInitialize(
            &mut key,
            0,
            self.index_attnum,
            BTREE_EQUAL,
            self.subtype,
            self.collation,
            self.equal,
            self.value(bytes),
        );
        key
    }

    unsafe fn value(&self, bytes: &[u8]) -> pg_sys::Datum {
        // Input functions expect a terminator behind what they are given.
        let copy = pg_sys::palloc(bytes.len() + 1).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        *copy.add(bytes.len()) = 0;
        match self.receive {
            Receive::Binary {
                function,
                parameter,
            } => {
                let mut message = pg_sys::StringInfoData {
                    data: copy.cast(),
                    len: bytes.len() as c_int,
                    maxlen: bytes.len() as c_int + 1,
                    cursor: 0,
                };
                pg_sys::OidReceiveFunctionCall(function, &mut message, parameter, self.typmod)
            }
            Receive::Text => {
                let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
                pg_sys::getTypeInputInfo(self.kind, &mut function, &mut parameter);
                // Terminated as well, whether it is a new copy or this one.
                let text = pg_sys::pg_any_to_server(copy.cast(), bytes.len() as c_int, UTF8);
                pg_sys::OidInputFunctionCall(function, text, parameter, self.typmod)
            }
        }
    }
}

impl Receive {
    unsafe fn of(kind: pg_sys::Oid) -> Self {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as c_int,
            pg_sys::Datum::from(kind),
        );
        if tuple.is_null() {
            pgrx::error!("cache lookup failed for type {}", kind.to_u32());
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
        let has_binary =
            (*form).typreceive != pg_sys::InvalidOid && (*form).typsend != pg_sys::InvalidOid;
        pg_sys::ReleaseSysCache(tuple);
        if !has_binary {
            return Self::Text;
        }
        let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        pg_sys::getTypeBinaryInputInfo(kind, &mut function, &mut parameter);
        Self::Binary {
            function,
            parameter,
        }
    }
}
