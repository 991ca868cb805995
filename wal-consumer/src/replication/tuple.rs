//! Reads bytes that a server sent: every length is checked before it is used.

use bytes::Bytes;

/// The bytes end where more were announced, or announce what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of {len}")]
pub struct Malformed {
    pub what: &'static str,
    pub at: usize,
    pub len: usize,
}

/// A cursor over one message. Slices share the message's memory.
pub struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn malformed(&self, what: &'static str) -> Malformed {
        Malformed {
            what,
            at: self.at,
            len: self.bytes.len(),
        }
    }

    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        if len > self.remaining() {
            return Err(self.malformed(what));
        }
        let taken = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let Some(array) = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.first_chunk::<N>())
        else {
            return Err(self.malformed(what));
        };
        let array = *array;
        self.at += N;
        Ok(array)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.array::<1>(what)?[0])
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// A NUL-terminated UTF-8 string.
    pub fn cstr(&mut self, what: &'static str) -> Result<String, Malformed> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|b| *b == 0) else {
            return Err(self.malformed(what));
        };
        let text = std::str::from_utf8(&rest[..len])
            .map_err(|_| self.malformed(what))?
            .to_owned();
        self.at += len + 1;
        Ok(text)
    }

    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.remaining() == 0 {
            Ok(())
        } else {
            Err(self.malformed(what))
        }
    }
}

/// A column of a tuple in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Null,
    /// Out of line and not touched: the value is not in the stream.
    Unchanged,
    /// The type's binary send format.
    Binary(Bytes),
    /// The text output, of a type without a binary format.
    Text(Bytes),
}

impl Cell {
    /// The value, in whichever format.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Cell::Binary(bytes) | Cell::Text(bytes) => Some(bytes),
            Cell::Null | Cell::Unchanged => None,
        }
    }
}

pub type Tuple = Vec<Cell>;

/// The most columns that a Postgres table can have.
const COLUMNS_MAX: u16 = 1664;

pub fn read_tuple(reader: &mut Reader) -> Result<Tuple, Malformed> {
    let count = reader.u16("tuple cut off")?;
    if count > COLUMNS_MAX {
        return Err(reader.malformed("too many columns in a tuple"));
    }
    let mut tuple = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        tuple.push(match reader.u8("column kind cut off")? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            kind @ (b'b' | b't') => {
                let len = reader.u32("column length cut off")? as usize;
                let value = reader.bytes(len, "column value cut off")?;
                if kind == b'b' {
                    Cell::Binary(value)
                } else {
                    Cell::Text(value)
                }
            }
            _ => return Err(reader.malformed("unknown column kind")),
        });
    }
    Ok(tuple)
}
