//! Strings as lines, and back.

use std::ptr::NonNull;

use super::*;
use crate::filter::Value;

#[test]
fn strings_of_all_lengths_come_back_from_their_lines() {
    let lengths = [0, 1, 1_023, 1_024, 1_025, 8_192, 3, 2_048, 1];
    let columns = Columns::new(&[ColumnType::Bytes]).expect("few columns");
    for (row, length) in (0..).zip(lengths) {
        let bytes = vec![200 - row as u8; length];
        columns.write(row, &[Value::Bytes(bytes.into())]);
    }
    let stored = columns.unchanged().columns();
    let total: usize = lengths.iter().sum();
    let counts = (stored[0].strings, stored[0].lines as usize);
    assert_eq!(counts, (9, total.div_ceil(LINE_BYTES)));
    let rows = lengths.len() as u32;
    let removed = rows - 1;
    columns.forget(removed, || ());
    let stored = columns.unchanged().columns();
    assert_eq!(stored[0].strings, 8);
    let mut again = Columns::new(&[ColumnType::Bytes]).expect("few columns");
    for section in again.sections(rows, &stored) {
        section.make_room().expect("there is memory");
        for row in 0..section.rows {
            let mut bytes = vec![0xEE; section.row_bytes()];
            match section.kind {
                Kind::Cells => columns.row(row).copy(&mut bytes),
                _ => section.read(row, &mut bytes),
            }
            let (memory, behind) = section.memory_at(row as usize * bytes.len());
            assert!(behind >= bytes.len());
            // SAFETY: memory of the section, which is this test's alone.
            #[allow(unsafe_code)]
            unsafe {
                memory.copy_from_nonoverlapping(NonNull::from(&bytes[..]).cast(), bytes.len());
            }
        }
    }
    again
        .restore(rows, stored, |row| row == removed)
        .expect("as it was written");
    for row in 0..rows {
        let expected = match row == removed {
            true => vec![Value::Null],
            false => columns.values(row),
        };
        assert_eq!(again.values(row), expected);
    }
    // No string comes under the key of another, be it a removed row's.
    again.write(rows, &[Value::Bytes([7].into())]);
    assert_eq!(
        again.row(rows).key(0),
        columns.row(rows - 1).key(0).map(|last| last + 1)
    );
}

#[test]
fn what_was_in_a_slot_before_null_is_not_told() {
    let columns = Columns::new(&[ColumnType::Int]).expect("few columns");
    columns.write(0, &[Value::Int(77)]);
    columns.forget(0, || ());
    columns.write(0, &[Value::Null]);
    let mut bytes = [0xEE; 2 * WORD_BYTES];
    columns.row(0).copy(&mut bytes);
    assert_eq!(bytes[WORD_BYTES..], [0; WORD_BYTES]);
}

#[test]
fn a_vector_goes_together_with_its_values() {
    let columns = Columns::new(&[ColumnType::Bytes]).expect("few columns");
    columns.write(0, &[Value::Bytes([1].into())]);
    let can_begin = || columns.listed.try_read().is_some();
    assert!(can_begin());
    assert!(
        !columns.forget(0, can_begin),
        "a checkpoint between the two"
    );
    let _unchanged = columns.unchanged();
    assert!(columns.listed.try_write().is_none());
}
