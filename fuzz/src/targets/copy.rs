//! COPY's binary format. How the network cuts it may not matter.

use super::Target;
use crate::captured;
use anyhow::{Result, ensure};
use wal_consumer::backfill::copy::{CopyReader, Row};

pub const TARGET: Target = Target {
    name: "copy",
    corpus: || {
        let whole = captured::copied();
        let mut all = vec![whole.clone()];
        // Its beginning alone is mangled more densely.
        all.extend([19, 40, 100, 400].map(|len| whole[..whole.len().min(len)].to_vec()));
        all
    },
    check,
    mend: None,
};

/// A row that is not whole is looked at again with each byte.
const BYTE_BY_BYTE_MAX: usize = 128;

fn check(input: &[u8]) -> Result<String> {
    let whole = read(input, input.len().max(1));
    for chunk in [1, 257, 4096] {
        // Byte by byte only where that is no matter of time.
        if chunk > 1 || input.len() < BYTE_BY_BYTE_MAX {
            let cut = read(input, chunk);
            ensure!(
                cut == whole,
                "cut into {chunk} bytes it reads {cut:?}, whole {whole:?}"
            );
        }
    }
    let (rows, end) = whole;
    Ok(format!("{} rows, {end}", "r".repeat(rows.len().min(10))))
}

fn read(input: &[u8], chunk: usize) -> (Vec<Row>, String) {
    let mut reader = CopyReader::default();
    let mut rows = Vec::new();
    for bytes in input.chunks(chunk) {
        reader.push(bytes);
        loop {
            match reader.next_row() {
                Ok(Some(row)) => rows.push(row),
                Ok(None) => break,
                Err(error) => return (rows, format!("{error:#}")),
            }
        }
    }
    let end = if reader.has_ended() {
        "ended"
    } else {
        "more is to come"
    };
    (rows, end.to_owned())
}
