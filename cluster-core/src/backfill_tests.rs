use super::*;
use crate::wal_position::Lsn;

const FILE: TableFile = TableFile {
    relfilenode: 16_400,
    membership: 16_500,
};

fn at(lsn: u64) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(lsn))
}

fn mark(next_block: u32, first: u64, last: u64, snapshots: u32) -> BackfillMark {
    BackfillMark {
        file: FILE,
        next_block: BlockNumber(next_block),
        first_stamp: at(first),
        last_stamp: at(last),
        rows: u64::from(next_block) * 10,
        snapshots,
    }
}

#[test]
fn p2_a_copy_goes_on_where_the_replica_that_has_the_least_of_it_stands() {
    let marks = [mark(700, 10, 30, 2), mark(300, 10, 20, 1)];
    let resumed = resume(marks.map(Some), FILE, Incarnation(1)).expect("goes on");
    assert_eq!(resumed.next_block, BlockNumber(300));
    assert_eq!(resumed.rows, 3_000);
    let stamps = (resumed.first_stamp, resumed.last_stamp);
    assert_eq!((stamps, resumed.snapshots), ((at(10), at(30)), 2));
}

#[test]
fn p2_a_copy_begins_again_where_a_replica_is_fresh_or_the_rows_have_moved() {
    let whole = mark(700, 10, 30, 2);
    let going_on = |marks: &[Option<BackfillMark>], file, incarnation| {
        resume(marks.iter().copied(), file, Incarnation(incarnation)).is_some()
    };
    assert!(going_on(&[Some(whole), Some(whole)], FILE, 1));
    assert!(!going_on(&[Some(whole), None], FILE, 1), "a fresh replica");
    assert!(!going_on(&[], FILE, 1), "nobody holds anything");
    let later = mark(700, 20, 30, 2);
    for marks in [[whole, later], [later, whole]] {
        // The later one trusts nothing from before, and would refuse its mark for ever.
        assert!(
            !going_on(&marks.map(Some), FILE, 1),
            "another first snapshot"
        );
    }
    let rewritten = TableFile {
        relfilenode: 16_401,
        ..FILE
    };
    assert!(!going_on(&[Some(whole)], rewritten, 1), "VACUUM FULL");
    let published_again = TableFile {
        membership: 16_501,
        ..FILE
    };
    assert!(
        !going_on(&[Some(whole)], published_again, 1),
        "changes went by while it was not published"
    );
    assert!(!going_on(&[Some(whole)], FILE, 2), "another history");
}

#[test]
fn p10_ranges_grow_to_the_wished_time_and_shrink_at_once() {
    assert_eq!(next_range_blocks(256, 10, 1_000), 512);
    assert_eq!(next_range_blocks(256, 800, 1_000), 320);
    assert_eq!(next_range_blocks(4_096, 8_000, 1_000), 512);
    assert_eq!(next_range_blocks(1, 60_000, 1_000), 1);
    assert_eq!(
        next_range_blocks(RANGE_BLOCKS_MAX, 0, 1_000),
        RANGE_BLOCKS_MAX
    );
}
