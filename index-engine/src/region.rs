//! Zeroed memory from the system, on huge pages where it allows them.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::arena::ZeroIsValid;

/// Below, a huge page would be mostly empty.
const HUGE_FROM_BYTES: usize = 4 << 20;

/// An array that is never moved.
pub(crate) struct Region<T> {
    first: NonNull<T>,
    len: usize,
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
        if bytes >= HUGE_FROM_BYTES {
            // SAFETY: advice on the mapping just made; refused advice changes nothing.
            #[allow(unsafe_code)]
            unsafe {
                libc::madvise(at, bytes, libc::MADV_HUGEPAGE);
            }
        }
        let first = NonNull::new(at.cast()).expect("mmap answers no null");
        Self {
            first,
            len,
            owns: PhantomData,
        }
    }
}

impl<T> Region<T> {
    #[inline]
    pub(crate) fn elements(&self) -> &[T] {
        // SAFETY: `len` elements, zeroed and so valid (`zeroed` asks for
        // `ZeroIsValid`), mapped until the region is dropped.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.first.as_ptr(), self.len)
        }
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `zeroed` made. Its elements own nothing: their
        // zero bytes are valid values.
        #[allow(unsafe_code)]
        unsafe {
            libc::munmap(self.first.as_ptr().cast(), self.len * size_of::<T>());
        }
    }
}
