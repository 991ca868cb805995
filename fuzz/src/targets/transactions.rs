//! A whole stream: mangled messages between real ones, through what puts transactions
//! together, with a limit so low that it spills now and then.

use super::Target;
use crate::captured;
use anyhow::Result;
use bytes::Bytes;
use cluster_core::wal_position::Lsn;
use wal_consumer::transaction::{Assembler, TransactionError};

pub const TARGET: Target = Target {
    name: "transactions",
    corpus,
    check,
    mend: None,
};

/// Each message behind its length.
const LENGTH_BYTES: usize = 2;
/// Of a transaction in memory; a stream that is longer goes to a file.
const MEMORY_BYTES: usize = 48 << 10;

fn corpus() -> Vec<Vec<u8>> {
    let streams = captured::STREAMS.iter().chain(&captured::FOREIGN);
    let mut inputs = Vec::new();
    for (_, stream) in streams {
        let mut input = Vec::new();
        for (_, message) in captured::messages(stream) {
            let Ok(len) = u16::try_from(message.len()) else {
                continue;
            };
            input.extend(len.to_be_bytes());
            input.extend_from_slice(&message);
            if message.first() == Some(&b'C') {
                inputs.push(std::mem::take(&mut input));
            }
        }
        inputs.push(input);
    }
    inputs.retain(|input| !input.is_empty());
    inputs
}

fn check(input: &[u8]) -> Result<String> {
    Ok(match read(input) {
        Ok(messages) => format!("{} messages", "m".repeat(messages.min(20))),
        Err(error) => {
            let text = error.to_string();
            text.split("bytes:").next().unwrap_or_default().to_owned()
        }
    })
}

fn read(mut input: &[u8]) -> Result<usize, TransactionError> {
    let mut assembler = Assembler::new(MEMORY_BYTES, std::env::temp_dir());
    let (mut at, mut messages) = (0, 0);
    while let Some((len, rest)) = input.split_first_chunk::<LENGTH_BYTES>() {
        let (message, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*len))));
        input = rest;
        at += 8;
        let Some(mut transaction) = assembler.take(Lsn(at), Bytes::copy_from_slice(message))?
        else {
            continue;
        };
        while transaction.next_message()?.is_some() {
            messages += 1;
        }
    }
    Ok(messages)
}
