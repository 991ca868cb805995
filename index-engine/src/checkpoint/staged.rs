//! Rows that are read behind one another, of what an index holds in another form.

use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;

use super::Array;
use crate::arena::copy_elements;
use crate::params::IndexError;
use crate::region::Region;

/// Empty until there is room for rows; made once for all of them.
pub(crate) struct Staged {
    row_bytes: usize,
    memory: OnceLock<Region<AtomicU8>>,
}

impl Staged {
    pub(crate) fn new(row_bytes: usize) -> Self {
        let memory = OnceLock::new();
        Self { row_bytes, memory }
    }

    fn elements(&self) -> &[AtomicU8] {
        self.memory.get().map_or(&[], Region::elements)
    }

    pub(crate) fn bytes(&mut self) -> &[u8] {
        let elements = self.elements();
        // SAFETY: an atomic byte is a byte, and nobody writes it while `self` is borrowed.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(elements.as_ptr().cast(), elements.len())
        }
    }
}

impl Array for Staged {
    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn ensure_all(&self, rows: u32) -> Result<(), IndexError> {
        if rows > 0 {
            let bytes = rows as usize * self.row_bytes;
            self.memory.get_or_init(|| Region::zeroed(bytes));
        }
        Ok(())
    }

    fn memory_at(&self, at: usize) -> (NonNull<u8>, usize) {
        let behind = &self.elements()[at..];
        (NonNull::from(behind).cast(), behind.len())
    }

    #[allow(unsafe_code)]
    unsafe fn copy_row(&self, row: u32, into: &mut [u8]) {
        let from = row as usize * self.row_bytes;
        // SAFETY: atomics.
        unsafe { copy_elements(&self.elements()[from..from + self.row_bytes], into) };
    }
}
