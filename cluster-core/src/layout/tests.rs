//! The working copy keeps its rules, whatever is tried out on it.

use super::*;

fn layout(zones: &[&str], homes: &[&[SeatNo]]) -> Layout {
    let mut layout = Layout::default();
    for (number, zone) in zones.iter().enumerate() {
        layout.add_seat(NodeId(number as u64), zone, 0, Standing::Open);
    }
    for seats in homes {
        let partition = layout.add_partition(0);
        for seat in *seats {
            layout.hold(partition, *seat);
            layout.release(partition, *seat);
        }
    }
    layout
}

fn loads(layout: &Layout) -> Vec<usize> {
    layout.seats().iter().map(Seat::load).collect()
}

#[test]
fn a_chain_reaches_what_no_direct_move_can() {
    // Seat 0 holds too much and shares each partition with zone c; only
    // by way of zone b does the empty seat in c take anything.
    let zones = ["a", "b", "c", "c"];
    let mut layout = layout(&zones, &[&[0, 2], &[0, 2], &[0, 3], &[1]]);
    let moves = layout.level(2, true);
    assert_eq!(loads(&layout).iter().max(), Some(&2), "{moves:?}");
    for partition in 0..layout.partitions() {
        let zones: BTreeSet<_> = layout.homes(partition).iter().map(|s| zones[*s]).collect();
        assert_eq!(zones.len(), layout.homes(partition).len());
    }
}

#[test]
fn levelling_stops_where_zones_forbid() {
    let mut layout = layout(&["a", "b", "b"], &[&[0, 1], &[0, 2], &[0, 1], &[0, 2]]);
    assert_eq!(layout.level(3, true), []);
    assert_eq!(loads(&layout), [4, 2, 2]);
}

#[test]
fn a_settled_partition_moves_no_more() {
    let mut layout = layout(&["a", "a"], &[&[0], &[0], &[0]]);
    layout.settle(0);
    layout.settle(1);
    let moved = layout.level(1, true);
    assert_eq!(moved.iter().map(|s| s.partition).collect::<Vec<_>>(), [2]);
    assert_eq!(loads(&layout), [2, 1]);
}

#[test]
fn a_copy_goes_to_the_emptiest_zone_then_to_the_emptiest_seat() {
    let layout = layout(&["a", "a", "b", "b"], &[&[0], &[2], &[2], &[2, 3]]);
    assert_eq!(
        layout.best_seat(0, None),
        Some(3),
        "zone b, although fuller"
    );
    assert_eq!(
        layout.best_seat(0, Some(0)),
        Some(1),
        "any zone: the emptiest"
    );
    assert_eq!(layout.best_seat(3, None), Some(1));
}
