//! Codes of several widths as a checkpoint holds them: the width of each block, and of each
//! width the rows of its blocks behind one another.
//!
//! They are read into arrays of their own, for where they belong is known only once widths
//! are. Then each block's are copied there.

use std::cell::{OnceCell, UnsafeCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::coarse::{Coarse, CodesOf};
use super::code::{Word, row_words};
use super::mixture::{BlockCodes, rows_of};
use crate::accesses::BLOCK_VECTORS;
use crate::arena::{Segments, copy_elements};
use crate::checkpoint::{CheckpointError, Cut, Kind, Section, Taken, corrupt};
use crate::params::CodeBits;

/// What a checkpoint is read into.
pub(super) struct Loaded {
    widths: Segments<AtomicU8>,
    codes: [Segments<UnsafeCell<Word>>; CodeBits::ALL.len()],
}

impl Loaded {
    pub(super) fn new(dimensions: usize) -> Self {
        Self {
            widths: Segments::new(1),
            codes: CodeBits::ALL.map(|bits| Segments::new(row_words(dimensions, bits))),
        }
    }
}

impl Coarse {
    /// How many rows have codes of each width; zeros if all have the index's own.
    pub(crate) fn rows_by_width(&self, rows: u32) -> [u32; CodeBits::ALL.len()] {
        let mut count = [0; CodeBits::ALL.len()];
        if self.mixture.is_mixed() {
            for block in 0..rows.div_ceil(BLOCK_VECTORS) {
                count[self.bits_of(block) as usize] += rows_of(block, rows).len() as u32;
            }
        }
        count
    }

    /// Of rows whose codes do not change while sections are read.
    #[allow(unsafe_code)]
    pub(crate) fn sections(&self, cut: Cut) -> Vec<Section<'_>> {
        if !cut.is_mixed() {
            // SAFETY: nobody writes to a published node's code.
            return vec![unsafe {
                Section::new(Kind::Codes, cut.rows, Taken::Beside, &self.words)
            }];
        }
        let blocks = cut.rows.div_ceil(BLOCK_VECTORS);
        let width = |block, into: &mut [u8]| into[0] = self.bits_of(block).count() as u8;
        let widths = &self.loaded.widths;
        let mut sections = vec![Section::read_by(
            Kind::Widths,
            blocks,
            Taken::AtStart,
            widths,
            width,
        )];
        for bits in CodeBits::ALL {
            // Listed by the first who reads: whoever loads does not.
            let of_width = OnceCell::new();
            let list = move || (0..blocks).filter(|b| self.bits_of(*b) == bits).collect();
            // Blocks are full but for the last of all.
            let read = move |row: u32, into: &mut [u8]| {
                let of_width: &Vec<u32> = of_width.get_or_init(list);
                let block = of_width[(row / BLOCK_VECTORS) as usize];
                let (_, words) = self.row(block * BLOCK_VECTORS + row % BLOCK_VECTORS);
                // SAFETY: nobody writes to a published node's code.
                unsafe { copy_elements(words, into) };
            };
            let rows = cut.rows_by_width[bits as usize];
            let codes = &self.loaded.codes[bits as usize];
            sections.push(Section::read_by(
                kind(bits),
                rows,
                Taken::Beside,
                codes,
                read,
            ));
        }
        sections
    }

    /// Is what was read of widths what the cut says?
    pub(crate) fn check(&self, cut: Cut) -> Result<(), CheckpointError> {
        if !cut.is_mixed() {
            return Ok(());
        }
        let mut count = [0; CodeBits::ALL.len()];
        for block in 0..cut.rows.div_ceil(BLOCK_VECTORS) {
            let Some(bits) = self.loaded_width(block) else {
                let what = format!("block {block} has codes of no width that there is");
                return Err(corrupt(Kind::Widths.name(), what));
            };
            count[bits as usize] += rows_of(block, cut.rows).len() as u32;
        }
        match count == cut.rows_by_width {
            true => Ok(()),
            false => {
                let what = format!("{count:?} rows by width, not {:?}", cut.rows_by_width);
                Err(corrupt(Kind::Widths.name(), what))
            }
        }
    }

    /// Takes up codes that were read and found sound.
    pub(crate) fn restore(&mut self, cut: Cut) {
        let blocks = 0..cut.rows.div_ceil(BLOCK_VECTORS);
        for block in blocks.clone() {
            self.mixture.reserve(block * BLOCK_VECTORS);
        }
        if !cut.is_mixed() {
            return;
        }
        let mut taken = [0; CodeBits::ALL.len()];
        for block in blocks {
            let rows = rows_of(block, cut.rows);
            let bits = self.loaded_width(block).unwrap_or(self.bits);
            let first = &mut taken[bits as usize];
            let read = *first..*first + rows.len() as u32;
            *first = read.end;
            let codes = match bits == self.bits {
                true => CodesOf::Own,
                false => CodesOf::Other(Arc::new(BlockCodes::new(
                    bits,
                    row_words(self.dimensions, bits),
                ))),
            };
            self.take_up(bits, &codes, rows, read);
            self.lead(block, codes);
            if bits != self.bits {
                // Nothing was put there.
                self.mixture.note_given_back(block);
            }
        }
        *self.loaded = Loaded::new(self.dimensions);
    }

    /// Copies rows that were read to a block's codes, which nobody is led to.
    fn take_up(&self, bits: CodeBits, codes: &CodesOf, rows: Range<u32>, read: Range<u32>) {
        for (node, read) in rows.zip(read) {
            let row = self.row_of(node, codes);
            let from = self.loaded.codes[bits as usize].row(read);
            for (to, from) in row.iter().zip(from) {
                // SAFETY: an index that is being loaded is nobody's yet.
                #[allow(unsafe_code)]
                unsafe {
                    *to.get() = *from.get();
                }
            }
        }
    }

    fn loaded_width(&self, block: u32) -> Option<CodeBits> {
        let count = self.loaded.widths.row(block)[0].load(Ordering::Relaxed);
        let mut all = CodeBits::ALL.into_iter();
        all.find(|bits| bits.count() == usize::from(count))
    }
}

fn kind(bits: CodeBits) -> Kind {
    match bits {
        CodeBits::One => Kind::CodesOfOne,
        CodeBits::Two => Kind::CodesOfTwo,
        CodeBits::Four => Kind::CodesOfFour,
        CodeBits::Eight => Kind::CodesOfEight,
    }
}
