//! COPY's binary format: a signature, then per row a count of columns and each
//! column's length and value. See "Binary Format" under COPY in the manual.

use anyhow::{bail, ensure};
use bytes::{Buf, Bytes, BytesMut};

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER_EXTENSION_BYTES_MAX: u32 = 1 << 16;
const COLUMNS_MAX: i16 = 1664;
/// Keys and vectors are far smaller.
const VALUE_BYTES_MAX: i32 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Rows,
    Ended,
}

pub type Row = Vec<Option<Bytes>>;

pub struct CopyReader {
    buffer: BytesMut,
    stage: Stage,
}

impl Default for CopyReader {
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            stage: Stage::Header,
        }
    }
}

impl CopyReader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the trailer came: without it rows may be missing.
    pub fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// The next whole row; `None` when more bytes are needed.
    pub fn next_row(&mut self) -> anyhow::Result<Option<Row>> {
        if self.stage == Stage::Header && !self.read_header()? {
            return Ok(None);
        }
        if self.stage == Stage::Ended {
            ensure!(self.buffer.is_empty(), "bytes after the end of COPY");
            return Ok(None);
        }
        // Looked at in place first: a row is taken whole or not at all.
        let mut rest = &self.buffer[..];
        let Ok(count) = rest.try_get_i16() else {
            return Ok(None);
        };
        if count == -1 {
            self.buffer.advance(2);
            self.stage = Stage::Ended;
            ensure!(self.buffer.is_empty(), "bytes after the end of COPY");
            return Ok(None);
        }
        ensure!(
            (0..=COLUMNS_MAX).contains(&count),
            "a COPY row of {count} columns"
        );
        // As many as the bytes at hand can hold: the others are only announced.
        let mut lengths = Vec::with_capacity((count as usize).min(rest.len() / 4));
        for _ in 0..count {
            let Ok(len) = rest.try_get_i32() else {
                return Ok(None);
            };
            match len {
                -1 => lengths.push(None),
                0..=VALUE_BYTES_MAX => {
                    let len = len as usize;
                    if rest.len() < len {
                        return Ok(None);
                    }
                    rest.advance(len);
                    lengths.push(Some(len));
                }
                _ => bail!("a COPY value of {len} bytes"),
            }
        }
        self.buffer.advance(2);
        let take = |len: Option<usize>| {
            self.buffer.advance(4);
            len.map(|len| self.buffer.split_to(len).freeze())
        };
        Ok(Some(lengths.into_iter().map(take).collect()))
    }

    fn read_header(&mut self) -> anyhow::Result<bool> {
        const FIXED: usize = SIGNATURE.len() + 8;
        if self.buffer.len() < FIXED {
            return Ok(false);
        }
        ensure!(
            self.buffer.starts_with(SIGNATURE),
            "not COPY's binary format"
        );
        let mut rest = &self.buffer[SIGNATURE.len()..];
        let flags = rest.get_u32();
        ensure!(flags == 0, "unknown flags {flags:x} in COPY's header");
        let extension = rest.get_u32();
        ensure!(
            extension <= HEADER_EXTENSION_BYTES_MAX,
            "COPY header extension of {extension} bytes"
        );
        if rest.len() < extension as usize {
            return Ok(false);
        }
        self.buffer.advance(FIXED + extension as usize);
        self.stage = Stage::Rows;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn copy_of(rows: &[&[Option<&[u8]>]]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 8]);
        for row in rows {
            bytes.extend((row.len() as i16).to_be_bytes());
            for value in *row {
                match value {
                    None => bytes.extend((-1i32).to_be_bytes()),
                    Some(v) => {
                        bytes.extend((v.len() as i32).to_be_bytes());
                        bytes.extend(*v);
                    }
                }
            }
        }
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    #[test]
    fn rows_come_out_whole_wherever_the_stream_is_cut() {
        let bytes = copy_of(&[&[Some(b"ab"), None], &[Some(b""), Some(b"xyz")]]);
        for cut in 0..bytes.len() {
            let mut reader = CopyReader::default();
            let mut rows = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                assert!(!reader.has_ended());
                reader.push(part);
                while let Some(row) = reader.next_row().unwrap() {
                    rows.push(row);
                }
            }
            assert!(reader.has_ended());
            assert_eq!(rows[0], [Some(Bytes::from_static(b"ab")), None]);
            assert_eq!(
                rows[1],
                [Some(Bytes::new()), Some(Bytes::from_static(b"xyz"))]
            );
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_it_is_waited_for() {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 8]);
        bytes.extend([0, 1, 0x7f, 0xff, 0xff, 0xff]);
        let mut reader = CopyReader::default();
        reader.push(&bytes);
        assert!(reader.next_row().is_err());
    }
}
