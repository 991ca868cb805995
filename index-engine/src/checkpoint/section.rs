//! One array of the index, as a checkpoint holds it: rows of one size behind one another.

use std::ptr::NonNull;

use crate::arena::{AsBytes, Segments};
use crate::params::IndexError;

/// What an array is. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Vectors = 1,
    Lives = 2,
    Places = 3,
    Upper = 4,
    Copies = 5,
    Base = 6,
    Blocks = 7,
    Sketches = 8,
    Spans = 9,
    Codes = 10,
    Origin = 11,
    Widths = 12,
    CodesOfOne = 13,
    CodesOfTwo = 14,
    CodesOfFour = 15,
    CodesOfEight = 16,
    Cells = 17,
    Dictionary = 18,
    Strings = 19,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vectors => "vectors",
            Self::Lives => "lives",
            Self::Places => "places",
            Self::Upper => "upper lists",
            Self::Copies => "copies",
            Self::Base => "base lists",
            Self::Blocks => "code blocks",
            Self::Sketches => "sketches",
            Self::Spans => "spans",
            Self::Codes => "codes",
            Self::Origin => "origin",
            Self::Widths => "widths",
            Self::CodesOfOne => "codes of one bit",
            Self::CodesOfTwo => "codes of two bits",
            Self::CodesOfFour => "codes of four bits",
            Self::CodesOfEight => "codes of eight bits",
            Self::Cells => "cells",
            Self::Dictionary => "dictionary",
            Self::Strings => "strings",
        }
    }
}

/// When an array is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// While nothing is linked: what has to be of one moment. Such arrays are small, for
    /// they are kept in memory until they are written.
    AtStart,
    /// Beside inserts and folding: rows that never change, or can be read alone.
    Beside,
}

/// The memory of an array.
pub(crate) trait Array {
    fn row_bytes(&self) -> usize;
    fn ensure_all(&self, rows: u32) -> Result<(), IndexError>;
    fn memory_at(&self, at: usize) -> (NonNull<u8>, usize);
    /// # Safety
    /// If the elements are cells, nobody writes to the row meanwhile.
    #[allow(unsafe_code)]
    unsafe fn copy_row(&self, row: u32, into: &mut [u8]);
}

impl<T: AsBytes> Array for Segments<T> {
    fn row_bytes(&self) -> usize {
        self.row_bytes()
    }

    fn ensure_all(&self, rows: u32) -> Result<(), IndexError> {
        self.ensure_all(rows)
    }

    fn memory_at(&self, at: usize) -> (NonNull<u8>, usize) {
        self.memory_at(at)
    }

    #[allow(unsafe_code)]
    unsafe fn copy_row(&self, row: u32, into: &mut [u8]) {
        // SAFETY: by this function's contract, which is the other's.
        unsafe { self.copy_row(row, into) };
    }
}

/// Reads a row into bytes.
type Read<'a> = Box<dyn Fn(u32, &mut [u8]) + 'a>;

pub(crate) struct Section<'a> {
    pub(crate) kind: Kind,
    pub(crate) rows: u32,
    pub(crate) taken: Taken,
    memory: &'a dyn Array,
    read: Read<'a>,
}

impl<'a> Section<'a> {
    /// # Safety
    /// If the elements are cells, nobody writes to rows below `rows` while the section
    /// is read.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn new(kind: Kind, rows: u32, taken: Taken, memory: &'a dyn Array) -> Self {
        let read = move |row, into: &mut [u8]| {
            // SAFETY: by this function's contract.
            unsafe { memory.copy_row(row, into) }
        };
        Self::read_by(kind, rows, taken, memory, read)
    }

    /// An array whose rows others change: `read` knows how one is read alone.
    pub(crate) fn read_by(
        kind: Kind,
        rows: u32,
        taken: Taken,
        memory: &'a dyn Array,
        read: impl Fn(u32, &mut [u8]) + 'a,
    ) -> Self {
        Self {
            kind,
            rows,
            taken,
            memory,
            read: Box::new(read),
        }
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.memory.row_bytes()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rows as usize * self.row_bytes()
    }

    pub(crate) fn read(&self, row: u32, into: &mut [u8]) {
        (self.read)(row, into);
    }

    pub(crate) fn copied(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes()];
        let rows = bytes.chunks_exact_mut(self.row_bytes());
        for (row, into) in (0..self.rows).zip(rows) {
            self.read(row, into);
        }
        bytes
    }

    pub(crate) fn make_room(&self) -> Result<(), IndexError> {
        self.memory.ensure_all(self.rows)
    }

    /// Where byte `at` of the section is in memory, and how many follow it there.
    pub(crate) fn memory_at(&self, at: usize) -> (NonNull<u8>, usize) {
        self.memory.memory_at(at)
    }
}
