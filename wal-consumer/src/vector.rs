//! pgvector's binary format: `int16` dimensions, `int16` unused, then
//! big-endian `f32`s. Impossible vectors stop their collection, with a name.

use bytes::Bytes;
use cluster_core::change::is_finite;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadVector {
    #[error("expected {expected} dimensions, not {found}")]
    Dimensions { expected: u32, found: u32 },
    #[error("a component of the vector is NaN or infinite")]
    NotFinite,
    #[error("{0} bytes are no vector in pgvector's binary format; is the column still a vector?")]
    Format(usize),
}

pub fn decode(bytes: &[u8], dimensions: u32) -> Result<Box<[f32]>, BadVector> {
    let malformed = || BadVector::Format(bytes.len());
    let (header, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
    let found = u16::from_be_bytes([header[0], header[1]]);
    let unused = u16::from_be_bytes([header[2], header[3]]);
    let (components, left_over) = rest.as_chunks::<4>();
    if unused != 0 || !left_over.is_empty() || components.len() != usize::from(found) {
        return Err(malformed());
    }
    if u32::from(found) != dimensions {
        return Err(BadVector::Dimensions {
            expected: dimensions,
            found: found.into(),
        });
    }
    let vector: Box<[f32]> = components.iter().map(|c| f32::from_be_bytes(*c)).collect();
    if is_finite(&vector) {
        Ok(vector)
    } else {
        Err(BadVector::NotFinite)
    }
}

/// The inverse, for tests and for what is spilled.
pub fn encode(vector: &[f32]) -> Bytes {
    let mut bytes = Vec::with_capacity(4 + vector.len() * 4);
    bytes.extend_from_slice(&(vector.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    for x in vector {
        bytes.extend_from_slice(&x.to_be_bytes());
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pgvectors_binary_format_is_pinned() {
        let bytes = [0, 2, 0, 0, 0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0];
        assert_eq!(decode(&bytes, 2).as_deref(), Ok([1.0f32, -2.0].as_slice()));
        assert_eq!(encode(&[1.0, -2.0]), &bytes[..]);
    }

    #[test]
    fn an_impossible_vector_is_refused_by_name() {
        let bytes = encode(&[1.0, 2.0]);
        assert_eq!(
            decode(&bytes, 3),
            Err(BadVector::Dimensions {
                expected: 3,
                found: 2
            })
        );
        assert_eq!(decode(&encode(&[f32::NAN]), 1), Err(BadVector::NotFinite));
        assert_eq!(
            decode(&encode(&[f32::INFINITY]), 1),
            Err(BadVector::NotFinite)
        );
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], 2).is_err(), "{cut}");
        }
    }
}
