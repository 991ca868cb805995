//! Mangles bytes: what breaks parsers are lengths that lie, ends that come early, and
//! parts of one message within another.

use rand::RngExt;
use rand::rngs::SmallRng;

/// Longer inputs only make the others fewer. One that is mangled may stay as long as it was.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// Counts and lengths at which something may turn over.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x680,
    0x681,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
];

/// A few changes to one input, with parts of another.
pub fn mutate(rng: &mut SmallRng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..6) {
        once(rng, &mut bytes, other);
    }
    bytes.truncate(INPUT_BYTES_MAX.max(input.len()));
    bytes
}

fn once(rng: &mut SmallRng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.random_range(0..bytes.len() + 1);
    match rng.random_range(0..11) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, rng.random()),
        4 | 5 => write_number(rng, bytes, at),
        6 => {
            let end = rng.random_range(at..bytes.len() + 1);
            bytes.drain(at..end);
        }
        7 => {
            let end = rng.random_range(at..bytes.len() + 1);
            let twice = bytes[at..end].to_vec();
            bytes.splice(at..at, twice);
        }
        8 => {
            let from = rng.random_range(0..other.len() + 1);
            let to = rng.random_range(from..other.len() + 1);
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        9 => {
            // The head of one, the tail of the other.
            let from = rng.random_range(0..other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        // Letters are what tags are made of.
        _ if at < bytes.len() => {
            bytes[at] = *b"BCRIUDTYOMSEcAPbpKrNKOnubtkwd\0"
                .get(rng.random_range(0..30))
                .unwrap_or(&0)
        }
        _ => {}
    }
}

/// Big-endian, or little-endian, over what stands there.
fn write_number(rng: &mut SmallRng, bytes: &mut Vec<u8>, at: usize) {
    let value = match rng.random_range(0..3) {
        0 => rng.random_range(0..bytes.len() as u64 + 2),
        _ => EDGES[rng.random_range(0..EDGES.len())],
    };
    let width = [2, 4, 8][rng.random_range(0..3)];
    let mut number = value.to_be_bytes()[8 - width..].to_vec();
    if rng.random_ratio(1, 4) {
        number.reverse();
    }
    for (place, byte) in number.into_iter().enumerate() {
        match bytes.get_mut(at + place) {
            Some(old) => *old = byte,
            None => bytes.push(byte),
        }
    }
}
