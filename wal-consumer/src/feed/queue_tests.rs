#![allow(clippy::unwrap_used)]

use super::*;
use cluster_core::ids::Incarnation;
use cluster_core::wal_position::Lsn;

fn end(lsn: u64) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(lsn))
}

const P: PartitionId = PartitionId(1);
const Q: PartitionId = PartitionId(2);
const G: Generation = Generation(1);

fn queue() -> NodeQueue {
    let mut queue = NodeQueue::default();
    queue.add_partition(P, G, Role::Required, end(10));
    queue.add_partition(Q, G, Role::Required, WalPosition::ZERO);
    report(&mut queue, P, end(10), end(10));
    queue
}

fn report(queue: &mut NodeQueue, id: PartitionId, applied: WalPosition, durable: WalPosition) {
    queue.report(Report {
        partition: id,
        generation: G,
        applied,
        durable,
        is_learning: false,
    });
}

/// A learner has logged the stream up to `durable`.
fn logged(queue: &mut NodeQueue, id: PartitionId, durable: WalPosition) {
    queue.report(Report {
        partition: id,
        generation: G,
        applied: WalPosition::ZERO,
        durable,
        is_learning: true,
    });
}

/// What is sent from here on, in words.
fn sends(queue: &mut NodeQueue) -> Vec<String> {
    let mut words = Vec::new();
    while let Some(kind) = queue.next_to_send().and_then(|m| m.kind) {
        let lsn = |p: Option<v1::WalPosition>| WalPosition::from(p.unwrap()).commit_end.0;
        words.push(match kind {
            Kind::Batch(b) => {
                format!("{} {}..{}", b.partition_id, lsn(b.previous), lsn(b.to))
            }
            Kind::NothingElse(n) => {
                format!("rest {} but {:?}", lsn(n.to), n.except_partition_ids)
            }
            Kind::Attach(a) => format!("{} from {}", a.partition_id, lsn(a.from)),
            Kind::Open(_) => unreachable!(),
        });
    }
    words
}

fn send(queue: &mut NodeQueue) -> (WalPosition, WalPosition) {
    match queue.next_to_send().unwrap().kind.unwrap() {
        Kind::Batch(b) => (b.previous.unwrap().into(), b.to.unwrap().into()),
        Kind::NothingElse(n) => (WalPosition::ZERO, n.to.unwrap().into()),
        Kind::Open(_) | Kind::Attach(_) => unreachable!(),
    }
}

#[test]
fn p4_previous_is_what_was_last_sent_for_the_partition() {
    let mut queue = queue();
    queue.push_batch(P, end(20), vec![], 0);
    queue.push_nothing_else(end(30), None, end(10));
    queue.push_batch(P, end(40), vec![], 0);
    queue.push_batch(Q, end(40), vec![], 0);
    assert_eq!(send(&mut queue), (end(10), end(20)));
    assert_eq!(send(&mut queue), (WalPosition::ZERO, end(30)));
    assert_eq!(send(&mut queue), (end(30), end(40)));
    // The node had not reported Q: "nothing else" may not have moved it.
    assert_eq!(send(&mut queue), (WalPosition::ZERO, end(40)));
    assert!(queue.next_to_send().is_none());
}

#[test]
fn what_is_not_durable_is_sent_again_on_a_new_stream() {
    let mut queue = queue();
    report(&mut queue, Q, end(10), end(10));
    queue.push_batch(P, end(20), vec![], 100);
    queue.push_batch(Q, end(30), vec![], 100);
    send(&mut queue);
    send(&mut queue);
    report(&mut queue, P, end(20), end(20));
    report(&mut queue, Q, end(30), end(10));
    queue.rewind();
    assert_eq!(send(&mut queue).1, end(30));
    report(&mut queue, Q, end(30), end(30));
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn p10_an_idle_source_does_not_fill_the_queue_of_a_dead_node() {
    let mut queue = queue();
    for lsn in 11..1000 {
        queue.push_nothing_else(end(lsn), None, end(10));
        // Sent, and never made durable.
        assert_eq!(send(&mut queue).1, end(lsn));
    }
    assert_eq!(queue.items.len(), 1);
}

#[test]
fn p10_a_partition_that_stands_still_does_not_fill_the_queue_with_what_others_have() {
    let mut queue = queue();
    report(&mut queue, Q, end(10), end(10));
    queue.push_batch(Q, end(11), vec![], 100);
    for lsn in 12..1000 {
        queue.push_batch(P, end(lsn), vec![], 100);
        queue.push_nothing_else(end(lsn), None, end(10));
        while queue.next_to_send().is_some() {}
        report(&mut queue, P, end(lsn), end(lsn));
    }
    let batches = queue.items.iter().filter(|item| item.partition.is_some());
    assert_eq!(batches.count(), 1);
    assert_eq!(queue.items.len(), 2);
    report(&mut queue, Q, end(999), end(999));
    assert_eq!((queue.items.len(), queue.sent, queue.bytes()), (0, 0, 0));
}

#[test]
fn a_partition_that_the_node_does_not_hold_is_left_out_by_name() {
    let mut queue = queue();
    queue.push_batch(Q, end(20), vec![], 100);
    queue.leave_out(Q, LeftOut::Absent);
    queue.push_batch(Q, end(30), vec![], 100);
    queue.push_nothing_else(end(30), None, end(10));
    match queue.next_to_send().unwrap().kind.unwrap() {
        Kind::NothingElse(message) => assert_eq!(message.except_partition_ids, [Q.0]),
        other => panic!("{other:?}"),
    }
    assert!(queue.next_to_send().is_none());
}

#[test]
fn a_dropped_partition_takes_its_messages_with_it() {
    let mut queue = queue();
    queue.push_batch(P, end(20), vec![], 100);
    queue.push_batch(Q, end(20), vec![], 100);
    send(&mut queue);
    queue.remove_partition(P);
    assert_eq!(send(&mut queue).1, end(20));
    report(&mut queue, Q, end(20), end(20));
    assert_eq!((queue.items.len(), queue.bytes()), (0, 0));
}

/// P serves, L learns from 10 on.
fn with_learner() -> NodeQueue {
    let mut queue = NodeQueue::default();
    queue.add_partition(P, G, Role::Required, end(10));
    queue.add_partition(L, G, Role::Learner, end(10));
    queue.rewind();
    report(&mut queue, P, end(10), end(10));
    queue
}

const L: PartitionId = PartitionId(3);

#[test]
fn a_learner_is_attached_before_its_batches_on_every_stream() {
    let mut queue = with_learner();
    queue.push_batch(L, end(20), vec![], 0);
    queue.push_batch(L, end(30), vec![], 0);
    assert_eq!(sends(&mut queue), ["3 from 10", "3 10..20", "3 20..30"]);
    logged(&mut queue, L, end(20));
    assert_eq!(queue.learner_bytes(), MESSAGE_OVERHEAD_BYTES);
    queue.rewind();
    assert_eq!(sends(&mut queue), ["3 from 20", "3 20..30"]);
    // The map calls it serving: it needs no attaching.
    queue.count(L);
    queue.set_role(L, Role::Required);
    queue.rewind();
    assert_eq!(sends(&mut queue), ["3 20..30"]);
}

#[test]
fn p4_a_learner_is_attached_where_it_stands_not_where_nothing_else_was_on_its_way() {
    let mut queue = with_learner();
    sends(&mut queue);
    logged(&mut queue, L, end(10));
    queue.push_batch(L, end(20), vec![], 0);
    queue.push_nothing_else(end(30), None, end(10));
    sends(&mut queue);
    logged(&mut queue, L, end(20));
    queue.rewind();
    assert_eq!(sends(&mut queue), ["3 from 20", "rest 30 but []"]);
    queue.push_batch(L, end(40), vec![], 0);
    assert_eq!(sends(&mut queue), ["3 30..40"]);
}

#[test]
fn p4_a_learner_moves_with_nothing_else_only_once_it_is_attached() {
    let mut queue = NodeQueue::default();
    queue.add_partition(P, G, Role::Required, end(10));
    queue.rewind();
    queue.add_detached(L, G, Role::Learner);
    logged(&mut queue, L, end(5));
    queue.push_batch(L, end(20), vec![], 0);
    queue.push_batch(P, end(20), vec![], 0);
    queue.push_nothing_else(end(20), None, end(10));
    assert_eq!(queue.attach_detached(end(20)), [(L, G)]);
    queue.push_batch(L, end(30), vec![], 0);
    queue.push_nothing_else(end(30), None, end(10));
    let first = [
        "1 10..20",
        "rest 20 but [3]",
        "3 from 20",
        "3 20..30",
        "rest 30 but []",
    ];
    assert_eq!(sends(&mut queue), first);
    queue.leave_out(L, LeftOut::Detached);
    assert!(queue.has_detached());
    queue.push_batch(L, end(40), vec![], 0);
    queue.push_nothing_else(end(40), None, end(10));
    assert_eq!(sends(&mut queue), ["rest 40 but [3]"]);
}

#[test]
fn p4_one_that_is_fed_no_longer_does_not_move_with_nothing_else() {
    let mut queue = with_learner();
    sends(&mut queue);
    queue.push_batch(P, end(20), vec![], 100);
    queue.retire(P, Some(Generation(9)));
    assert!(queue.partition(P).is_some(), "another generation");
    queue.retire(P, Some(G));
    assert_eq!((queue.bytes(), queue.partition(P).is_none()), (0, true));
    queue.push_nothing_else(end(20), None, end(10));
    assert_eq!(sends(&mut queue), ["rest 20 but [1]"]);
    // It comes back in a new generation, and is excepted until it is attached.
    queue.add_detached(P, Generation(2), Role::Learner);
    queue.push_nothing_else(end(30), None, end(10));
    assert_eq!(sends(&mut queue), ["rest 30 but [1]"]);
    queue.attach_detached(end(30));
    queue.push_nothing_else(end(40), None, end(10));
    assert_eq!(sends(&mut queue), ["1 from 30", "rest 40 but []"]);
}

#[test]
fn p10_what_waits_for_a_learner_is_counted_apart_and_dropped_alone() {
    let mut queue = with_learner();
    sends(&mut queue);
    queue.push_batch(P, end(20), vec![], 100);
    queue.push_batch(L, end(20), vec![], 1_000);
    let batch = |bytes| bytes + MESSAGE_OVERHEAD_BYTES;
    assert_eq!(queue.bytes(), batch(100));
    // The attaching message waits until something is logged.
    assert_eq!(queue.learner_bytes(), batch(1_000) + MESSAGE_OVERHEAD_BYTES);
    queue.leave_out(L, LeftOut::Detached);
    assert_eq!((queue.bytes(), queue.learner_bytes()), (batch(100), 0));
    assert_eq!(sends(&mut queue), ["1 10..20"]);
    assert_eq!((queue.give_up(), queue.bytes()), (1, 0));
    assert_eq!(
        queue.partition(P).unwrap().left_out,
        Some(LeftOut::Overflow)
    );
}

#[test]
fn p2_a_report_counts_only_on_a_queue_without_a_hole() {
    let mut queue = with_learner();
    assert!(queue.partition(L).unwrap().is_attached_below(end(10)));
    queue.leave_out(L, LeftOut::Detached);
    assert!(!queue.partition(L).unwrap().is_attached_below(end(90)));
    queue.attach_detached(end(50));
    // What it held before it was attached anew it is about to throw away.
    assert!(!queue.partition(L).unwrap().is_attached_below(end(40)));
    assert!(queue.partition(L).unwrap().is_attached_below(end(50)));
}
