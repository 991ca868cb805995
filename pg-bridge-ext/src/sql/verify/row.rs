//! A row of the table as the cluster knows it: canonical key bytes, the same as the
//! consumer's, and the digest of the vector's bits.

use super::Subject;
use crate::scan::memory_context;
use crate::types::vector;
use cluster_core::row_key::RowKey;
use cluster_core::verify::RowDigest;
use pgrx::pg_sys;
use std::ffi::c_int;

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;

pub struct RowReader {
    keys: Vec<KeyColumn>,
    vector_attnum: i16,
    /// Emptied after each row.
    memory: pg_sys::MemoryContext,
}

struct KeyColumn {
    attnum: i16,
    function: pg_sys::Oid,
    is_binary: bool,
}

impl RowReader {
    /// # Safety
    /// The subject is open; the current memory context outlives the reader.
    pub unsafe fn new(subject: &Subject) -> Self {
        let columns = subject.key.columns.iter();
        let keys = columns.map(|column| KeyColumn::of(column.attnum, column.kind));
        Self {
            keys: keys.collect(),
            vector_attnum: subject.definition.column_attnum,
            memory: memory_context(pg_sys::CurrentMemoryContext, c"ruvector verified row"),
        }
    }

    /// Key and digest; no digest where the vector is NULL.
    ///
    /// # Safety
    /// The slot holds a row of the subject's table, and the session's encoding is
    /// UTF-8.
    pub unsafe fn read(&self, slot: *mut pg_sys::TupleTableSlot) -> (RowKey, Option<RowDigest>) {
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = self.memory;
        let key = self.key(slot);
        let mut is_null = false;
        let vector = pg_sys::slot_getattr(slot, c_int::from(self.vector_attnum), &mut is_null);
        let digest = (!is_null).then(|| RowDigest::of(&key, Some(vector::elements(vector))));
        pg_sys::CurrentMemoryContext = caller;
        pg_sys::MemoryContextReset(self.memory);
        (key, digest)
    }

    /// # Safety
    /// In the transaction that made it.
    pub unsafe fn close(self) {
        pg_sys::MemoryContextDelete(self.memory);
    }

    unsafe fn key(&self, slot: *mut pg_sys::TupleTableSlot) -> RowKey {
        let values = self.keys.iter().map(|column| {
            let mut is_null = false;
            let value = pg_sys::slot_getattr(slot, c_int::from(column.attnum), &mut is_null);
            if is_null {
                pgrx::error!("column {} of the row key is NULL", column.attnum);
            }
            column.bytes(value)
        });
        match RowKey::from_columns(values) {
            Ok(key) => key,
            Err(problem) => pgrx::error!("a row's key cannot be compared: {problem}"),
        }
    }
}

impl KeyColumn {
    /// As pgoutput does: binary where the type has a send function.
    unsafe fn of(attnum: i16, kind: pg_sys::Oid) -> Self {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as c_int,
            pg_sys::Datum::from(kind),
        );
        if tuple.is_null() {
            pgrx::error!("cache lookup failed for type {}", kind.to_u32());
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
        let (send, output) = ((*form).typsend, (*form).typoutput);
        pg_sys::ReleaseSysCache(tuple);
        let is_binary = send != pg_sys::InvalidOid;
        Self {
            attnum,
            function: if is_binary { send } else { output },
            is_binary,
        }
    }

    unsafe fn bytes<'a>(&self, value: pg_sys::Datum) -> &'a [u8] {
        if self.is_binary {
            let sent = pg_sys::OidSendFunctionCall(self.function, value);
            return pgrx::varlena::varlena_to_byte_slice(sent.cast());
        }
        let text = pg_sys::OidOutputFunctionCall(self.function, value);
        let length = std::ffi::CStr::from_ptr(text).count_bytes() as c_int;
        let utf8 = pg_sys::pg_server_to_any(text, length, UTF8);
        std::ffi::CStr::from_ptr(utf8).to_bytes()
    }
}
