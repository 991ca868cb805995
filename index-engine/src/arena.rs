//! Growing storage that readers use without locks while one writer appends.
//!
//! Rows live in buckets that double in size and never move, so a reference
//! stays good for the index's life. Buckets come zeroed: memory that no row has
//! touched yet is address space, not resident. Large ones lie on huge pages where
//! the system allows it: a search's random reads then miss fewer translations.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, atomic};

use crate::distance::Lane;
use crate::memory::{Advice, Backing, Mapping};
use crate::params::IndexError;
use crate::region::Region;
use crate::sync::OnceLock;
use crate::sync::atomic::Ordering;

/// Rows of the first bucket, as a power of two.
const FIRST_BUCKET_BITS: u32 = if cfg!(loom) { 1 } else { 9 };
/// A model has few rows.
const ROW_BITS: u32 = if cfg!(loom) { 3 } else { u32::BITS };
/// Enough for every row number.
const BUCKETS: usize = (ROW_BITS - FIRST_BUCKET_BITS + 1) as usize;

/// Marks types for which all-zero bytes are a valid value.
///
/// # Safety
/// Implementors must be valid when every byte is zero.
#[allow(unsafe_code)]
pub(crate) unsafe trait ZeroIsValid: Sized {
    /// So many of them. What a model watches is more than its bytes, and made otherwise.
    fn zeroed(len: usize) -> Region<Self> {
        Region::zeroed(len)
    }
}

// SAFETY: an atomic integer is an integer in memory; zero is one.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for atomic::AtomicU32 {}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for atomic::AtomicU64 {}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for atomic::AtomicU8 {}

// SAFETY: sixteen floats in a cell; the bit pattern zero is 0.0.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for UnsafeCell<Lane> {}

/// Elements that a checkpoint holds as the bytes that they are in memory.
///
/// # Safety
/// Any bytes are a value, and the memory may be written to behind a shared
/// reference: a cell, or an atomic.
#[allow(unsafe_code)]
pub(crate) unsafe trait AsBytes: ZeroIsValid {
    /// Copies the element's bytes.
    ///
    /// # Safety
    /// If it is a cell, nobody writes to it meanwhile.
    unsafe fn copy(&self, into: &mut [u8]);
}

// SAFETY: an atomic integer is its bytes.
#[allow(unsafe_code)]
unsafe impl AsBytes for atomic::AtomicU32 {
    unsafe fn copy(&self, into: &mut [u8]) {
        into.copy_from_slice(&self.load(Ordering::Relaxed).to_ne_bytes());
    }
}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl AsBytes for atomic::AtomicU8 {
    unsafe fn copy(&self, into: &mut [u8]) {
        into.copy_from_slice(&[self.load(Ordering::Relaxed)]);
    }
}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl AsBytes for atomic::AtomicU64 {
    unsafe fn copy(&self, into: &mut [u8]) {
        into.copy_from_slice(&self.load(Ordering::Relaxed).to_ne_bytes());
    }
}

// SAFETY: floats in a cell; any bits are a float.
#[allow(unsafe_code)]
unsafe impl AsBytes for UnsafeCell<Lane> {
    unsafe fn copy(&self, into: &mut [u8]) {
        // SAFETY: nobody writes to it, by the contract; a lane has no padding.
        unsafe { copy_cell(self, into) };
    }
}

/// # Safety
/// Nobody writes to the cell, and its content has no padding.
#[allow(unsafe_code)]
pub(crate) unsafe fn copy_cell<T>(cell: &UnsafeCell<T>, into: &mut [u8]) {
    // SAFETY: the cell's own memory, initialised and at rest by the contract.
    let bytes = unsafe { std::slice::from_raw_parts(cell.get().cast::<u8>(), size_of::<T>()) };
    into.copy_from_slice(bytes);
}

/// # Safety
/// If the elements are cells, nobody writes to them.
#[allow(unsafe_code)]
pub(crate) unsafe fn copy_elements<T: AsBytes>(elements: &[T], into: &mut [u8]) {
    let bytes = into.chunks_exact_mut(size_of::<T>());
    for (element, into) in elements.iter().zip(bytes) {
        // SAFETY: by this function's contract.
        unsafe { element.copy(into) };
    }
}

/// Rows of `stride` elements each, found by number.
pub(crate) struct Segments<T> {
    buckets: [OnceLock<Region<T>>; BUCKETS],
    stride: usize,
    /// Where buckets come from, if not from the system.
    backing: Option<Arc<dyn Backing>>,
}

impl<T: ZeroIsValid> Segments<T> {
    pub(crate) fn new(stride: usize) -> Self {
        Self::backed(stride, None)
    }

    /// In memory that is handed in, if any.
    pub(crate) fn backed(stride: usize, backing: Option<Arc<dyn Backing>>) -> Self {
        Self {
            buckets: std::array::from_fn(|_| OnceLock::new()),
            stride,
            backing,
        }
    }

    /// Makes room for `row`. Only the appending writer calls this, and not where memory is
    /// handed in.
    pub(crate) fn ensure(&self, row: u32) {
        assert!(self.backing.is_none(), "memory may be refused");
        let (bucket, _) = place(row);
        self.buckets[bucket].get_or_init(|| T::zeroed(self.bucket_elements(bucket)));
    }

    /// The same for memory that is handed in, and may be refused.
    pub(crate) fn try_ensure(&self, row: u32) -> Result<(), IndexError> {
        let Some(backing) = &self.backing else {
            self.ensure(row);
            return Ok(());
        };
        let (bucket, _) = place(row);
        let bucket_is_new = self.buckets[bucket].get().is_none();
        if bucket_is_new {
            let len = self.bucket_elements(bucket);
            let bytes = len * size_of::<T>();
            let mapping = backing.zeroed(bytes);
            let mapping = mapping.ok_or(IndexError::NoMemory { bytes })?;
            self.buckets[bucket].get_or_init(|| Region::of_mapping(mapping, len));
        }
        Ok(())
    }

    pub(crate) fn wants_to_know_reads(&self) -> bool {
        let first = self.buckets[0].get().and_then(Region::mapping);
        first.is_some_and(Mapping::wants_to_know_reads)
    }

    fn bucket_elements(&self, bucket: usize) -> usize {
        (1 << (bucket as u32 + FIRST_BUCKET_BITS)) * self.stride
    }

    /// Tells the memory that was handed in of rows, as ranges of bytes.
    pub(crate) fn advise(&self, rows: Range<u32>, advice: Advice) {
        let row_bytes = self.stride * size_of::<T>();
        let mut next = rows.start;
        while next < rows.end {
            let (bucket, offset) = place(next);
            let bucket_rows = 1usize << (bucket as u32 + FIRST_BUCKET_BITS);
            let count = (bucket_rows - offset).min((rows.end - next) as usize);
            let bytes = offset * row_bytes..(offset + count) * row_bytes;
            let region = self.buckets[bucket].get();
            if let Some(mapping) = region.and_then(Region::mapping) {
                mapping.advise(&[bytes], advice);
            }
            next += count as u32;
        }
    }

    /// The pieces of rows in memory, as bytes of a bucket.
    fn pieces(&self, rows: Range<u32>) -> impl Iterator<Item = (Option<&Region<T>>, Range<usize>)> {
        let row_bytes = self.stride * size_of::<T>();
        let mut next = rows.start;
        let pieces = std::iter::from_fn(move || {
            if next >= rows.end {
                return None;
            }
            let (bucket, offset) = place(next);
            let bucket_rows = 1usize << (bucket as u32 + FIRST_BUCKET_BITS);
            let count = (bucket_rows - offset).min((rows.end - next) as usize);
            next = next.saturating_add(count as u32);
            Some((bucket, offset * row_bytes..(offset + count) * row_bytes))
        });
        pieces.map(|(bucket, bytes)| (self.buckets[bucket].get(), bytes))
    }

    /// Gives the memory of rows back to the system, but for pages that others share. Their
    /// bytes are any from then on.
    ///
    /// # Safety
    /// Nobody reads or writes the rows, and elements are cells or atomics. Not where memory is
    /// handed in.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn give_back(&self, rows: Range<u32>) {
        for (region, bytes) in self.pieces(rows) {
            let Some(region) = region else { continue };
            // SAFETY: by this function's contract; elements may be zero.
            unsafe { region.give_back(bytes) };
        }
    }

    /// Rows that were given back are going to be written again.
    pub(crate) fn take_again(&self, rows: Range<u32>) {
        for (region, bytes) in self.pieces(rows) {
            let Some(region) = region else { continue };
            region.take_again(bytes);
        }
    }

    /// Bytes that giving rows back frees. What was never made is as free.
    pub(crate) fn pages_of(&self, rows: Range<u32>) -> usize {
        let pieces = self.pieces(rows).map(|(region, bytes)| match region {
            Some(region) => region.pages_in(bytes).len(),
            None => bytes.len(),
        });
        pieces.sum()
    }

    /// Bytes in memory of the first `rows`, if all of them have been touched.
    pub(crate) fn resident_bytes(&self, rows: u32) -> usize {
        let row_bytes = self.stride * size_of::<T>();
        let (bucket, offset) = place(rows);
        let region = self.buckets[bucket].get();
        let behind = region.map_or(0, |region| region.resident_behind(offset * row_bytes));
        rows as usize * row_bytes + behind
    }

    /// The row's elements.
    ///
    /// # Panics
    /// If `ensure` was never called for the row: an id that was not handed out.
    #[inline]
    pub(crate) fn row(&self, row: u32) -> &[T] {
        let (bucket, offset) = place(row);
        let elements = self.buckets[bucket]
            .get()
            .expect("a row is read only after its bucket was made")
            .elements();
        let start = offset * self.stride;
        &elements[start..start + self.stride]
    }

    /// The first row from `row` on that begins `count` rows of one bucket.
    pub(crate) fn run_from(&self, mut row: u32, count: usize) -> Option<u32> {
        loop {
            let (bucket, offset) = place(row);
            let left = (1usize << (bucket as u32 + FIRST_BUCKET_BITS)) - offset;
            if count <= left {
                return Some(row);
            }
            row = row.checked_add(u32::try_from(left).ok()?)?;
        }
    }

    /// The elements of rows that `run_from` found.
    #[inline]
    pub(crate) fn run(&self, row: u32, count: usize) -> &[T] {
        let (bucket, offset) = place(row);
        let elements = self.buckets[bucket]
            .get()
            .expect("a row is read only after its bucket was made")
            .elements();
        &elements[offset * self.stride..(offset + count) * self.stride]
    }
}

impl<T: AsBytes> Segments<T> {
    pub(crate) fn row_bytes(&self) -> usize {
        self.stride * size_of::<T>()
    }

    /// Makes room for rows `0..rows`. Only the appending writer calls this.
    pub(crate) fn ensure_all(&self, rows: u32) -> Result<(), IndexError> {
        let buckets = rows.checked_sub(1).map_or(0, |last| place(last).0 + 1);
        let mut buckets = 0..buckets as u32;
        buckets.try_for_each(|bucket| self.try_ensure(((1 << bucket) - 1) << FIRST_BUCKET_BITS))
    }

    /// Copies a row's bytes.
    ///
    /// # Safety
    /// If the elements are cells, nobody writes to the row meanwhile.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn copy_row(&self, row: u32, into: &mut [u8]) {
        // SAFETY: by this function's contract.
        unsafe { copy_elements(self.row(row), into) };
    }

    /// Where byte `at` of all rows is in memory, and how many follow it there.
    ///
    /// # Panics
    /// If `ensure` was never called for its row.
    pub(crate) fn memory_at(&self, at: usize) -> (NonNull<u8>, usize) {
        let (bucket, offset) = place((at / self.row_bytes()) as u32);
        let elements = self.buckets[bucket]
            .get()
            .expect("memory is filled only after its bucket was made")
            .elements();
        let offset = offset * self.row_bytes() + at % self.row_bytes();
        let first = NonNull::from(elements).cast::<u8>();
        // SAFETY: within the bucket, for the row is.
        #[allow(unsafe_code)]
        let memory = unsafe { first.add(offset) };
        (memory, size_of_val(elements) - offset)
    }
}

/// Bucket `b` holds rows `(2^b - 1) * first .. (2^(b+1) - 1) * first`.
#[inline]
fn place(row: u32) -> (usize, usize) {
    let bucket = ((row >> FIRST_BUCKET_BITS) + 1).ilog2();
    let first = ((1u32 << bucket) - 1) << FIRST_BUCKET_BITS;
    (bucket as usize, (row - first) as usize)
}

/// Hints, without effect on what is computed: this one for what is read next.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    to_first_cache(std::ptr::from_ref(at).cast());
}

/// For a row of many lines: into the second cache, which takes more requests at
/// a time. On Fashion-MNIST searches took a quarter less time than by `prefetch`.
#[inline(always)]
pub(crate) fn prefetch_row<T>(row: &[T]) {
    for at in row {
        to_second_cache(std::ptr::from_ref(at).cast());
    }
}

/// The line at any address: where there is no memory nothing is fetched.
#[inline(always)]
fn to_first_cache(at: *const u8) {
    // SAFETY: a prefetch reads nothing architecturally.
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// As [`to_first_cache`]. Which cache is part of the instruction, so each has a function.
#[inline(always)]
pub(crate) fn to_second_cache(at: *const u8) {
    // SAFETY: a prefetch reads nothing architecturally.
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) at.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Several rows. A prefetch waits until its address is translated, and several are
/// translated at a time: so the first lines go first.
#[inline(always)]
pub(crate) fn prefetch_rows<'a, T: 'a>(rows: &[u32], row: impl Fn(u32) -> &'a [T]) {
    for id in rows {
        prefetch_row(&row(*id)[..1]);
    }
    for id in rows {
        prefetch_row(&row(*id)[1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_buckets_without_gap_or_overlap() {
        let mut expected = (0usize, 0usize);
        for row in 0..100_000u32 {
            let at = place(row);
            assert_eq!(at, expected, "row {row}");
            let rows = 1usize << (at.0 as u32 + FIRST_BUCKET_BITS);
            expected = if at.1 + 1 == rows {
                (at.0 + 1, 0)
            } else {
                (at.0, at.1 + 1)
            };
        }
        assert!(place(u32::MAX).0 < BUCKETS);
    }
}
