//! The primitives that threads meet by, so that a model checker can take their place.
//!
//! Normally these are the standard library's and parking_lot's. Under `--cfg loom` they
//! are loom's, and `interleavings` runs the same code through the orders of its steps, up to
//! some preemptions, and the stale values that loom can show. What is not of here is not seen by it; see
//! there for what that is.

#[cfg(not(loom))]
pub(crate) use self::plain::*;
#[cfg(loom)]
pub(crate) use self::watched::*;

#[cfg(not(loom))]
mod plain {
    pub(crate) use std::sync::OnceLock;
    pub(crate) use std::sync::atomic;

    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};

    /// Who reads and writes rows that are no atomics: nobody asks.
    pub(crate) struct Accessed;

    impl Accessed {
        pub(crate) fn new() -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn read(&self, _row: u32) {}

        #[inline(always)]
        pub(crate) fn written(&self, _row: u32) {}
    }
}

#[cfg(loom)]
mod watched {
    pub(crate) use loom::sync::{MutexGuard, atomic};

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
    use loom::sync::{RwLockReadGuard, RwLockWriteGuard};

    use crate::arena::{AsBytes, ZeroIsValid};
    use crate::region::Region;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a model ends with its first panic")
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().expect("a model ends with its first panic")
        }
    }

    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("a model ends with its first panic")
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("a model ends with its first panic")
        }
    }

    /// Set by one thread at a time. Whoever is not told of it may still find it empty.
    pub(crate) struct OnceLock<T> {
        is_set: AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self {
                is_set: AtomicBool::new(false),
                value: std::sync::OnceLock::new(),
            }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            let is_set = self.is_set.load(Ordering::Acquire);
            is_set.then(|| self.value.get()).flatten()
        }

        pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
            let is_set = self.is_set.load(Ordering::Acquire);
            let value = self.value.get_or_init(init);
            if !is_set {
                self.is_set.store(true, Ordering::Release);
            }
            value
        }
    }

    /// Rows that are no atomics: a read that is not ordered with a write ends the model.
    pub(crate) struct Accessed(Vec<UnsafeCell<()>>);

    // SAFETY: the cells hold nothing, and loom runs one thread at a time.
    #[allow(unsafe_code)]
    unsafe impl Sync for Accessed {}

    impl Accessed {
        const ROWS: usize = 8;

        pub(crate) fn new() -> Self {
            Self((0..Self::ROWS).map(|_| UnsafeCell::new(())).collect())
        }

        pub(crate) fn read(&self, row: u32) {
            self.0[row as usize].with(|_| ());
        }

        pub(crate) fn written(&self, row: u32) {
            self.0[row as usize].with_mut(|_| ());
        }
    }

    macro_rules! rows_of {
        ($atomic:ty) => {
            // SAFETY: `zeroed` makes them one by one, and so no bytes are asked for.
            #[allow(unsafe_code)]
            unsafe impl ZeroIsValid for $atomic {
                fn zeroed(len: usize) -> Region<Self> {
                    Region::of_defaults(len)
                }
            }

            // SAFETY: the value's bytes; nothing fills such rows by their bytes, for
            // models load no checkpoint.
            #[allow(unsafe_code)]
            unsafe impl AsBytes for $atomic {
                unsafe fn copy(&self, into: &mut [u8]) {
                    into.copy_from_slice(&self.load(Ordering::Relaxed).to_ne_bytes());
                }
            }
        };
    }

    rows_of!(AtomicU8);
    rows_of!(AtomicU32);
    rows_of!(AtomicU64);
}
