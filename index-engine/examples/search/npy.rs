//! Two-dimensional arrays in numpy's `.npy` files: as much of the format as the
//! data sets use.

use std::error::Error;
use std::path::Path;

/// Bytes before the header's text in version 1 of the format.
const PREAMBLE: usize = 10;

pub struct Array {
    pub columns: usize,
    /// Bytes of an element.
    width: usize,
    bytes: Vec<u8>,
    start: usize,
}

impl Array {
    /// Reads a file of little-endian elements in C order.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(path)?;
        let head = bytes.get(8..PREAMBLE).ok_or("a truncated file")?;
        let start = PREAMBLE + usize::from(u16::from_le_bytes([head[0], head[1]]));
        let text = std::str::from_utf8(bytes.get(PREAMBLE..start).ok_or("a truncated file")?)?;
        let shape = text.split("'shape': (").nth(1).ok_or("no shape")?;
        let shape = shape.split(')').next().ok_or("no shape")?;
        let columns = shape.split(',').nth(1).ok_or("no columns")?;
        Ok(Self {
            columns: columns.trim().parse()?,
            width: if text.contains("8'") { 8 } else { 4 },
            bytes,
            start,
        })
    }

    fn row(&self, row: usize) -> &[u8] {
        let bytes = self.columns * self.width;
        &self.bytes[self.start + row * bytes..][..bytes]
    }

    pub fn len(&self) -> usize {
        (self.bytes.len() - self.start) / (self.columns * self.width)
    }

    pub fn floats(&self, row: usize) -> Vec<f32> {
        let (parts, _) = self.row(row).as_chunks::<4>();
        parts.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// The first `count` of a row of ids.
    pub fn ids(&self, row: usize, count: usize) -> Vec<u32> {
        let parts = self.row(row).chunks_exact(self.width).take(count);
        parts
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }
}
