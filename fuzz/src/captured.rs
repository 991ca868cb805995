//! What a Postgres really sent: `wal-consumer/fixtures/streams`, made by
//! `scripts/capture-pgoutput.sh`. One message a line, `LSN hex`.

use bytes::Bytes;
use cluster_core::wal_position::Lsn;

/// Protocol 2 in binary and unstreamed, which is what we ask for; protocol 1, in
/// binary and as text.
pub const STREAMS: [(&str, &str); 3] = [
    (
        "v2-binary",
        include_str!("../../wal-consumer/fixtures/streams/v2-binary.txt"),
    ),
    (
        "v1-binary",
        include_str!("../../wal-consumer/fixtures/streams/v1-binary.txt"),
    ),
    (
        "v1-text",
        include_str!("../../wal-consumer/fixtures/streams/v1-text.txt"),
    ),
];
/// With messages that streaming and later versions bring, which we neither ask for nor take.
pub const FOREIGN: [(&str, &str); 2] = [
    (
        "v2-streaming",
        include_str!("../../wal-consumer/fixtures/streams/v2-streaming.txt"),
    ),
    (
        "v3-two-phase",
        include_str!("../../wal-consumer/fixtures/streams/v3-two-phase.txt"),
    ),
];
/// `COPY … TO STDOUT (FORMAT binary)`, in hex.
const COPIED: &str = include_str!("../../wal-consumer/fixtures/streams/copy-binary.txt");

pub type Message = (Lsn, Bytes);

/// Lines that are none of ours would be an error of whoever captured them.
pub fn messages(stream: &str) -> Vec<Message> {
    let lines = stream.lines().map(|line| {
        let (at, hex) = line.split_once(' ').expect("LSN and hex");
        (at.parse().expect("an LSN"), unhex(hex).into())
    });
    lines.collect()
}

pub fn copied() -> Vec<u8> {
    unhex(&COPIED.split_whitespace().collect::<String>())
}

/// All streams, also those of later versions.
pub fn all_messages() -> Vec<Message> {
    let all = STREAMS.iter().chain(&FOREIGN);
    all.flat_map(|(_, stream)| messages(stream)).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "an odd count of hex digits");
    let digit = |c: u8| char::from(c).to_digit(16).expect("a hex digit") as u8;
    pairs
        .iter()
        .map(|[high, low]| digit(*high) << 4 | digit(*low))
        .collect()
}
