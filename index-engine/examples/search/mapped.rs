//! Vectors in a mapped file: what a shell hands in to an index.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use index_engine::memory::{Advice, Backing, Mapping};

/// Each piece is a file `PATH.N`, unlinked once it is mapped.
pub struct Files {
    path: PathBuf,
    count: AtomicUsize,
}

impl Files {
    pub fn new(path: &str) -> Self {
        Self {
            path: path.into(),
            count: AtomicUsize::new(0),
        }
    }

    fn map(&self, bytes: usize) -> std::io::Result<Piece> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let path = self.path.with_extension(number.to_string());
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        // SAFETY: an open file; its space is allotted, so no page can fail to be written.
        #[allow(unsafe_code)]
        let refused = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
        if refused != 0 {
            return Err(std::io::Error::from_raw_os_error(refused));
        }
        // SAFETY: a new mapping of a file that nobody else has open.
        #[allow(unsafe_code)]
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Piece { start, bytes })
    }
}

impl Backing for Files {
    fn zeroed(&self, bytes: usize) -> Option<Box<dyn Mapping>> {
        let piece = self.map(bytes).inspect_err(|error| eprintln!("{error}"));
        piece.ok().map(|piece| Box::new(piece) as _)
    }
}

struct Piece {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the piece owns its mapping and shows it to nobody else.
#[allow(unsafe_code)]
unsafe impl Send for Piece {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Piece {}

// SAFETY: a shared mapping of a file of its own: zeros at first, page-aligned, and with
// its space allotted.
#[allow(unsafe_code)]
unsafe impl Mapping for Piece {
    fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn advise(&self, ranges: &[Range<usize>], advice: Advice) {
        const PAGE: usize = 4096;
        let advice = match advice {
            Advice::WillNeed => libc::MADV_WILLNEED,
            Advice::Cold => libc::MADV_PAGEOUT,
        };
        for range in ranges {
            let from = range.start / PAGE * PAGE;
            // SAFETY: within the mapping; advice changes no content.
            unsafe {
                let at = self.start.as_ptr().add(from).cast();
                libc::madvise(at, range.end - from, advice);
            }
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made.
        #[allow(unsafe_code)]
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.bytes);
        }
    }
}
