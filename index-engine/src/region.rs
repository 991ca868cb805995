//! Zeroed memory: from the system, on huge pages where it allows them, or handed in.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::arena::ZeroIsValid;
use crate::memory::Mapping;

/// Below, a huge page would be mostly empty.
const HUGE_FROM_BYTES: usize = 4 << 20;

/// An array that is never moved.
pub(crate) struct Region<T> {
    first: NonNull<T>,
    len: usize,
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
        #[cfg(target_os = "linux")]
        // SAFETY: advice on the mapping just made; refused advice changes nothing.
        #[allow(unsafe_code)]
        unsafe {
            libc::madvise(at, bytes, libc::MADV_HUGEPAGE);
        }
        let first = NonNull::new(at.cast()).expect("mmap answers no null");
        Self {
            first,
            len,
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
            mapping: None,
            owns: PhantomData,
        }
    }
}

impl<T> Region<T> {
    /// What the memory was handed in as.
    pub(crate) fn mapping(&self) -> Option<&dyn Mapping> {
        self.mapping.as_deref()
    }

    /// Bytes in memory behind the first `used`, for they share a huge page with them.
    /// Zero for memory that was handed in.
    pub(crate) fn resident_behind(&self, used: usize) -> usize {
        const HUGE_BYTES: usize = 2 << 20;
        const PAGE_BYTES: usize = 4096;
        let bytes = self.len * size_of::<T>();
        if self.mapping.is_some() || bytes < HUGE_FROM_BYTES {
            return 0;
        }
        let start = self.first.as_ptr().addr();
        let from = (start + used).next_multiple_of(PAGE_BYTES);
        let to = from.next_multiple_of(HUGE_BYTES).min(start + bytes);
        if from >= to {
            return 0;
        }
        let mut pages = [0u8; HUGE_BYTES / PAGE_BYTES];
        // SAFETY: pages of the region's own mapping, and a byte for each. Nothing is read
        // or written in them.
        #[allow(unsafe_code)]
        let refused = unsafe {
            let at = self.first.as_ptr().byte_add(from - start);
            libc::mincore(at.cast(), to - from, pages.as_mut_ptr().cast())
        };
        match refused {
            0 => pages.iter().filter(|page| **page & 1 == 1).count() * PAGE_BYTES,
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

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        if self.mapping.is_some() {
            return;
        }
        let bytes = self.len * size_of::<T>();
        // SAFETY: what `of_box` leaked, or the mapping that `zeroed` made. Its elements
        // own nothing: their zero bytes are valid values.
        #[allow(unsafe_code)]
        unsafe {
            if bytes < HUGE_FROM_BYTES {
                drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                    self.first.as_ptr(),
                    self.len,
                )));
            } else {
                libc::munmap(self.first.as_ptr().cast(), bytes);
            }
        }
    }
}
