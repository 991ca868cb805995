//! What a real Postgres sent: read as the golden files say, and written back to the
//! same bytes. Messages of protocol versions that we do not ask for are refused by name.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use cluster_core::wal_position::Lsn;
use fuzz::captured::{self, FOREIGN, STREAMS};
use fuzz::encode::encode;
use fuzz::golden;
use wal_consumer::backfill::copy::CopyReader;
use wal_consumer::replication::pgoutput::{DecodeError, decode};

/// One line a message; with UPDATE_GOLDEN set it is written instead.
fn assert_golden(name: &str, text: &str) {
    let file = format!("{}/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/golden")).unwrap();
        return std::fs::write(file, text).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap();
    for (number, (got, want)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(got, want, "{file}:{}", number + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "{file}");
}

#[test]
fn captured_streams_are_read_as_the_golden_files_say() {
    for (name, stream) in STREAMS {
        let mut text = String::new();
        for (at, payload) in captured::messages(stream) {
            let message = decode(at, payload).unwrap();
            text.push_str(&format!("{at} {}\n", golden::line(&message)));
        }
        assert_golden(name, &text);
    }
}

#[test]
fn captured_messages_are_written_back_to_the_same_bytes() {
    let mut written = 0;
    for (_, stream) in STREAMS {
        for (at, payload) in captured::messages(stream) {
            let message = decode(at, payload.clone()).unwrap();
            if let Some(again) = encode(&message, &payload) {
                assert_eq!(Bytes::from(again), payload, "{message:?}");
                written += 1;
            }
        }
    }
    assert!(written > 100, "{written} messages");
}

#[test]
fn messages_of_later_protocols_are_refused_with_position_and_bytes() {
    for (name, stream) in FOREIGN {
        let mut refused = Vec::new();
        for (at, payload) in captured::messages(stream) {
            let Err(error) = decode(at, payload.clone()) else {
                continue;
            };
            assert!(matches!(
                error,
                DecodeError::Unknown { .. } | DecodeError::Malformed { .. }
            ));
            let text = error.to_string();
            assert!(text.contains(&at.to_string()), "{text}");
            assert!(
                text.contains(&format!("bytes: {:02x}", payload[0])),
                "{text}"
            );
            refused.push(char::from(payload[0]));
        }
        let foreign = if name.starts_with("v2") {
            "SEc"
        } else {
            "bKPr"
        };
        for tag in foreign.chars() {
            assert!(
                refused.contains(&tag),
                "{name}: {tag} is not among {refused:?}"
            );
        }
    }
}

/// Protocol 4, of Postgres 16 on: Stream Abort with a position and a time; 'A'.
#[test]
fn every_tag_that_is_none_of_ours_is_refused_whatever_follows() {
    for tag in u8::MIN..=u8::MAX {
        if b"BCRIUDTYOM".contains(&tag) {
            continue;
        }
        for len in [0, 1, 8, 24, 40] {
            let mut bytes = vec![tag];
            bytes.resize(1 + len, 0);
            let error = decode(Lsn(0x10), bytes.into()).unwrap_err();
            assert!(matches!(error, DecodeError::Unknown { .. }), "{error}");
        }
    }
}

#[test]
fn a_captured_copy_is_read_whole() {
    let mut reader = CopyReader::default();
    reader.push(&captured::copied());
    let mut rows = Vec::new();
    while let Some(row) = reader.next_row().unwrap() {
        rows.push(row);
    }
    assert!(reader.has_ended());
    let lengths: Vec<_> = rows
        .iter()
        .map(|row| row[1].as_ref().map(Bytes::len))
        .collect();
    assert_eq!(lengths, [Some(4 + 4 * 768), None, None, None]);
    assert!(
        rows.iter()
            .all(|row| row[0].as_ref().is_some_and(|id| id.len() == 16))
    );
}
