//! Zeroed memory: from the system, on huge pages where it allows them, or handed in.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use crate::arena::ZeroIsValid;
use crate::memory::Mapping;

/// Below, a huge page would be mostly empty.
const HUGE_FROM_BYTES: usize = 4 << 20;

/// An array that is never moved.
pub(crate) struct Region<T> {
    first: NonNull<T>,
    len: usize,
    /// By the system, for this region alone.
    is_mapped: bool,
    /// Whose memory it is, where it was handed in.
    mapping: Option<Box<dyn Mapping>>,
    owns: PhantomData<T>,
}

// SAFETY: a region owns its elements as a box would.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Region<T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for Region<T> {}

impl<T: ZeroIsValid> Region<T> {
    /// Elements whose every byte is zero.
    ///
    /// # Panics
    /// If the system has no such range of addresses left.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        assert!(bytes > 0, "a region of nothing");
        if bytes < HUGE_FROM_BYTES {
            return Self::of_box(len);
        }
        Self::of_system(len, true)
    }

    /// The same in pages of its own, none of them huge: all of it goes back to the system
    /// when it is dropped, and nothing is in memory beside what was touched.
    pub(crate) fn of_pages(len: usize) -> Self {
        Self::of_system(len, false)
    }

    fn of_system(len: usize, is_huge: bool) -> Self {
        let bytes = len * size_of::<T>();
        assert!(bytes > 0, "a region of nothing");
        // SAFETY: a new private mapping; it aliases nothing. Pages are aligned
        // beyond any element.
        #[allow(unsafe_code)]
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(at != libc::MAP_FAILED, "no {bytes} bytes of addresses left");
        advise_huge_pages(at, bytes, is_huge);
        let first = NonNull::new(at.cast()).expect("mmap answers no null");
        Self {
            first,
            len,
            is_mapped: true,
            mapping: None,
            owns: PhantomData,
        }
    }

    /// Elements in memory that was handed in for as many bytes as they take.
    ///
    /// # Panics
    /// If it is not aligned as its contract says.
    pub(crate) fn of_mapping(mapping: Box<dyn Mapping>, len: usize) -> Self {
        let first = mapping.start().cast::<T>();
        assert!(first.is_aligned(), "memory at {first:?} is not aligned");
        Self {
            first,
            len,
            is_mapped: false,
            mapping: Some(mapping),
            owns: PhantomData,
        }
    }

    /// Small ones come from the allocator: the system counts mappings.
    fn of_box(len: usize) -> Self {
        let zeroed = Box::<[T]>::new_zeroed_slice(len);
        // SAFETY: `T: ZeroIsValid`, so zeroed elements are initialised.
        #[allow(unsafe_code)]
        let elements = Box::leak(unsafe { zeroed.assume_init() });
        Self {
            first: NonNull::from(elements).cast(),
            len,
            is_mapped: false,
            mapping: None,
            owns: PhantomData,
        }
    }
}

#[cfg(loom)]
impl<T: Default> Region<T> {
    /// Elements that are made one by one.
    pub(crate) fn of_defaults(len: usize) -> Self {
        let elements: Box<[T]> = (0..len).map(|_| T::default()).collect();
        Self {
            first: NonNull::from(Box::leak(elements)).cast(),
            len,
            is_mapped: false,
            mapping: None,
            owns: PhantomData,
        }
    }
}

impl<T> Region<T> {
    pub(crate) const PAGE_BYTES: usize = 4096;

    /// The pages that lie in these bytes as a whole, as bytes.
    pub(crate) fn pages_in(&self, bytes: Range<usize>) -> Range<usize> {
        let start = self.first.as_ptr().addr();
        let from = (start + bytes.start).next_multiple_of(Self::PAGE_BYTES);
        let to = (start + bytes.end) / Self::PAGE_BYTES * Self::PAGE_BYTES;
        from - start..to.max(from) - start
    }

    /// Gives the pages within these bytes back to the system, which makes no huge pages there
    /// from now on: one would bring them all back. They read as zeros, or as before where
    /// the system refuses.
    ///
    /// # Safety
    /// Nobody reads or writes these bytes, zeros are a value of the elements, and these may be
    /// written behind a shared reference. The memory was not handed in.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn give_back(&self, bytes: Range<usize>) {
        assert!(self.mapping.is_none(), "memory of a caller's");
        assert!(bytes.end <= self.len * size_of::<T>(), "{bytes:?}");
        let pages = self.pages_in(bytes);
        if pages.is_empty() {
            return;
        }
        let at = self.first.as_ptr().wrapping_byte_add(pages.start).cast();
        if self.is_mapped {
            advise_huge_pages(at, pages.len(), false);
        }
        // SAFETY: whole pages of this region's private memory, which nobody uses.
        unsafe {
            libc::madvise(at, pages.len(), libc::MADV_DONTNEED);
        }
    }

    /// Such bytes are going to be written again.
    pub(crate) fn take_again(&self, bytes: Range<usize>) {
        let pages = self.pages_in(bytes);
        if self.is_mapped && !pages.is_empty() {
            let at = self.first.as_ptr().wrapping_byte_add(pages.start).cast();
            advise_huge_pages(at, pages.len(), true);
        }
    }

    /// What the memory was handed in as.
    pub(crate) fn mapping(&self) -> Option<&dyn Mapping> {
        self.mapping.as_deref()
    }

    /// Bytes in memory behind the first `used`, for they share a huge page with them.
    /// Zero for memory that was handed in.
    pub(crate) fn resident_behind(&self, used: usize) -> usize {
        const HUGE_BYTES: usize = 2 << 20;
        let bytes = self.len * size_of::<T>();
        if self.mapping.is_some() || bytes < HUGE_FROM_BYTES {
            return 0;
        }
        let start = self.first.as_ptr().addr();
        let from = (start + used).next_multiple_of(Self::PAGE_BYTES);
        let to = from.next_multiple_of(HUGE_BYTES).min(start + bytes);
        if from >= to {
            return 0;
        }
        let mut pages = [0u8; HUGE_BYTES / Region::<()>::PAGE_BYTES];
        // SAFETY: pages of the region's own mapping, and a byte for each. Nothing is read
        // or written in them.
        #[allow(unsafe_code)]
        let refused = unsafe {
            let at = self.first.as_ptr().byte_add(from - start);
            libc::mincore(at.cast(), to - from, pages.as_mut_ptr().cast())
        };
        match refused {
            0 => pages.iter().filter(|page| **page & 1 == 1).count() * Self::PAGE_BYTES,
            _ => 0,
        }
    }

    #[inline]
    pub(crate) fn elements(&self) -> &[T] {
        // SAFETY: `len` elements, zeroed and so valid (who makes a region asks for
        // `ZeroIsValid`), mapped until the region is dropped.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.first.as_ptr(), self.len)
        }
    }
}

/// Refused advice changes nothing.
fn advise_huge_pages(at: *mut std::ffi::c_void, bytes: usize, is_wanted: bool) {
    #[cfg(target_os = "linux")]
    // SAFETY: changes no content, whatever lies there.
    #[allow(unsafe_code)]
    unsafe {
        let advice = match is_wanted {
            true => libc::MADV_HUGEPAGE,
            false => libc::MADV_NOHUGEPAGE,
        };
        libc::madvise(at, bytes, advice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, bytes, is_wanted);
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        if self.mapping.is_some() {
            return;
        }
        let bytes = self.len * size_of::<T>();
        // SAFETY: what `of_box` leaked, or the mapping that `of_system` made. Its elements
        // own nothing: their zero bytes are valid values.
        #[allow(unsafe_code)]
        unsafe {
            if self.is_mapped {
                libc::munmap(self.first.as_ptr().cast(), bytes);
            } else {
                drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                    self.first.as_ptr(),
                    self.len,
                )));
            }
        }
    }
}
