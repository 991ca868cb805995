use super::*;
use crate::apply::{FormerVersion, RowState};
use crate::change::VectorColumn;
use crate::ids::{CollectionId, Generation, Incarnation, PartitionId};
use crate::map::HashRange;
use crate::wal_position::Lsn;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

fn at(lsn: u64) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(lsn))
}

fn key(text: &str) -> CopyKey {
    CopyKey(text.as_bytes().into())
}

fn show(learner: &Learner) -> String {
    let lsn = |position: WalPosition| position.commit_end.0;
    format!(
        "{:?} log {} durable {}",
        learner.phase(),
        lsn(learner.log_end()),
        lsn(learner.durable())
    )
}

/// Runs a script: each line is what happens, `->`, and what comes of it.
fn golden(script: &str) {
    let mut learner = Learner::default();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (event, want) = line.split_once("->").expect("event -> outcome");
        let words: Vec<_> = event.split_whitespace().collect();
        let number = |n: usize| at(words[n].parse().expect("a number"));
        let said = |result: Result<(), CopyRefused>| match result {
            Ok(()) => String::new(),
            Err(refused) => format!("{refused:?} ")
                .split(' ')
                .next()
                .unwrap_or("")
                .into(),
        };
        let outcome = match words[0] {
            "attach" => format!("{:?}", learner.attach(number(1))),
            "batch" => {
                let admission = learner.admit(number(1), number(2));
                if admission == Admission::Apply {
                    learner.log_to(number(2));
                    learner.durable_to(number(2));
                }
                format!("{admission:?}")
            }
            "nothing-else" => {
                learner.log_to(number(1));
                String::new()
            }
            "header" => said(learner.take_header(number(1))),
            "records" => said(learner.take_records(&key(words[1]), key(words[2]), number(3))),
            "end" => said(learner.take_end()),
            "overflow" => {
                learner.give_up();
                String::new()
            }
            "once-more" => {
                learner.copy_once_more();
                String::new()
            }
            "restart" => {
                let log = learner
                    .attached_from()
                    .map(|from| (from, learner.durable()));
                learner = Learner::restored(log, learner.copied().clone());
                String::new()
            }
            "applied" => format!("live {:?}", learner.goes_live(true).map(|p| p.commit_end.0)),
            other => panic!("unknown event {other}"),
        };
        let got = format!("{outcome} {}", show(&learner));
        assert_eq!(got.trim(), want.trim(), "after {event}");
    }
}

#[test]
fn p4_a_learner_logs_what_follows_and_refuses_a_gap() {
    golden(
        "batch 0 10        -> Gap Unattached log 0 durable 0
         nothing-else 20   -> Unattached log 0 durable 0
         header 50         -> NotWanted Unattached log 0 durable 0
         attach 20         -> BeginsAnew Copying log 20 durable 20
         batch 10 20       -> Duplicate Copying log 20 durable 20
         batch 10 30       -> Apply Copying log 30 durable 30
         batch 40 50       -> Gap Copying log 30 durable 30
         nothing-else 40   -> Copying log 40 durable 30
         batch 40 50       -> Apply Copying log 50 durable 50
         batch 20 30       -> Duplicate Copying log 50 durable 50",
    );
}

#[test]
fn a_learner_goes_live_only_when_its_log_reaches_the_newest_part() {
    golden(
        "attach 20         -> BeginsAnew Copying log 20 durable 20
         applied           -> live None Copying log 20 durable 20
         header 19         -> TooOld Copying log 20 durable 20
         records a b 30    -> NotWanted Copying log 20 durable 20
         end               -> NotWanted Copying log 20 durable 20
         header 25         -> Copying log 20 durable 20
         records a c 40    -> Copying log 20 durable 20
         records c d 40    -> OutOfOrder Copying log 20 durable 20
         records e d 40    -> OutOfOrder Copying log 20 durable 20
         batch 20 30       -> Apply Copying log 30 durable 30
         header 39         -> TooOld Copying log 30 durable 30
         header 40         -> Copying log 30 durable 30
         records d e 40    -> Copying log 30 durable 30
         end               -> Replaying log 30 durable 30
         records f g 50    -> NotWanted Replaying log 30 durable 30
         applied           -> live None Replaying log 30 durable 30
         nothing-else 40   -> Replaying log 40 durable 30
         applied           -> live Some(40) Replaying log 40 durable 30",
    );
}

#[test]
fn p2_an_attachment_below_the_log_goes_on_and_one_above_begins_anew() {
    golden(
        "attach 20         -> BeginsAnew Copying log 20 durable 20
         header 25         -> Copying log 20 durable 20
         records a c 25    -> Copying log 20 durable 20
         batch 20 30       -> Apply Copying log 30 durable 30
         nothing-else 50   -> Copying log 50 durable 30
         restart           -> Copying log 30 durable 30
         attach 15         -> GoesOn Copying log 30 durable 30
         records b c 30    -> OutOfOrder Copying log 30 durable 30
         attach 30         -> GoesOn Copying log 30 durable 30
         attach 31         -> BeginsAnew Copying log 31 durable 31
         records d e 40    -> NotWanted Copying log 31 durable 31
         header 31         -> Copying log 31 durable 31
         records a b 31    -> Copying log 31 durable 31
         end               -> Replaying log 31 durable 31
         restart           -> Replaying log 31 durable 31
         overflow          -> Unattached log 0 durable 0
         batch 31 40       -> Gap Unattached log 0 durable 0
         applied           -> live None Unattached log 0 durable 0",
    );
}

#[test]
fn a_copy_with_a_hole_is_made_once_more() {
    golden(
        "attach 20         -> BeginsAnew Copying log 20 durable 20
         header 25         -> Copying log 20 durable 20
         records a c 60    -> Copying log 20 durable 20
         once-more         -> Copying log 20 durable 20
         records a b 30    -> Copying log 20 durable 20
         end               -> Replaying log 20 durable 20
         nothing-else 59   -> Replaying log 59 durable 20
         applied           -> live None Replaying log 59 durable 20
         nothing-else 60   -> Replaying log 60 durable 20
         applied           -> live Some(60) Replaying log 60 durable 20",
    );
}

#[test]
fn a_beginning_anew_voids_the_copy_that_runs() {
    let mut learner = Learner::default();
    learner.attach(at(10));
    let first = learner.wants().expect("wanted");
    assert_eq!((first.at_least, first.after), (at(10), CopyKey::default()));
    learner.attach(at(20));
    assert_ne!(learner.run(), first.run);
}

#[test]
fn peers_take_turns_and_pauses_grow_to_a_limit() {
    let replica = |node, state| Replica {
        node: NodeId(node),
        generation: Generation(node),
        state,
    };
    let mut partition = Partition {
        id: PartitionId(1),
        collection: CollectionId(1),
        range: HashRange::WHOLE,
        replicas: vec![
            replica(1, ReplicaState::Serving),
            replica(2, ReplicaState::Demoted),
            replica(3, ReplicaState::Serving),
            replica(4, ReplicaState::Learner),
        ],
    };
    let chosen = |partition: &Partition, failures| {
        choose_peer(partition, NodeId(4), failures).map(|replica| replica.node.0)
    };
    let turns = [0, 1, 2].map(|failures| chosen(&partition, failures));
    assert_eq!(turns, [Some(1), Some(3), Some(1)]);
    partition.replicas.retain(|r| r.node.0 == 4);
    assert_eq!(chosen(&partition, 0), None);
    assert_eq!([0, 1, 2, 3, 99].map(backoff_ms), [0, 100, 200, 400, 5_000]);
}

// ------------------------------------------------------------- a model of it

#[derive(Clone, Debug)]
enum Op {
    Upsert(u8, i8),
    Unchanged(u8),
    Delete(u8),
    Truncate,
}

/// A replica's rows and former versions.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rows {
    rows: BTreeMap<u8, RowState>,
    formers: BTreeMap<(u8, WalPosition), FormerVersion>,
}

impl Rows {
    fn apply(&mut self, op: &Op, position: WalPosition) {
        let xid = position.commit_end.0;
        let (key, vector) = match *op {
            Op::Truncate => {
                *self = Self::default();
                return;
            }
            Op::Upsert(key, x) => (key, Some(VectorColumn::Value(vec![f32::from(x)].into()))),
            Op::Unchanged(key) => (key, Some(VectorColumn::Unchanged)),
            Op::Delete(key) => (key, None),
        };
        let state = self.rows.remove(&key).unwrap_or_default();
        let effect = match vector {
            Some(vector) => apply::upsert(state, position, xid, vector, false),
            None => apply::delete(state, position, xid, false),
        };
        if effect.state != RowState::default() {
            self.rows.insert(key, effect.state);
        }
        if let Some(former) = effect.former {
            self.formers.insert((key, former.ended), former);
        }
    }

    /// Up to `max` records behind a key, as a peer would send them.
    fn records_after(&self, after: &CopyKey, max: usize) -> Vec<(CopyKey, Record)> {
        let rows = self.rows.iter().map(|(key, state)| {
            let record = Record::Row(*key, state.clone());
            (CopyKey([3, *key].into()), record)
        });
        let formers = self.formers.iter().map(|((key, ended), former)| {
            let mut bytes = vec![5, *key];
            bytes.extend(ended.commit_end.0.to_be_bytes());
            (CopyKey(bytes.into()), Record::Former(*key, former.clone()))
        });
        let behind = rows.chain(formers).filter(|(key, _)| key > after);
        behind.take(max).collect()
    }
}

enum Record {
    Row(u8, RowState),
    Former(u8, FormerVersion),
}

/// The learner with what its node keeps for it.
#[derive(Default)]
struct Node {
    learner: Learner,
    rows: Rows,
    log: VecDeque<(Op, WalPosition)>,
    live: Option<WalPosition>,
}

impl Node {
    fn stream(&mut self, op: &Op, previous: WalPosition, to: WalPosition) {
        if let Some(watermark) = self.live {
            assert_eq!(apply::admit(watermark, previous, to), Admission::Apply);
            self.rows.apply(op, to);
            self.live = Some(to);
        } else if self.learner.admit(previous, to) == Admission::Apply {
            self.log.push_back((op.clone(), to));
            self.learner.log_to(to);
            self.learner.durable_to(to);
        }
    }

    /// One part, from a peer that stands where `peer` says.
    fn copy(&mut self, peer: &Rows, watermark: WalPosition, max: usize) {
        let Some(wanted) = self.learner.wants() else {
            return;
        };
        if self.learner.take_header(watermark).is_err() {
            return;
        }
        let records = peer.records_after(&wanted.after, max);
        let (Some((first, _)), Some((last, _))) = (records.first(), records.last()) else {
            self.learner.take_end().expect("a header came");
            return;
        };
        let taken = self.learner.take_records(first, last.clone(), watermark);
        taken.expect("in order");
        for (_, record) in records {
            match record {
                Record::Row(key, state) => drop(self.rows.rows.insert(key, state)),
                Record::Former(key, former) => {
                    self.rows.formers.insert((key, former.ended), former);
                }
            }
        }
    }

    fn replay(&mut self) {
        if self.live.is_some() || self.learner.phase() != Phase::Replaying {
            return;
        }
        if let Some((op, position)) = self.log.pop_front() {
            self.rows.apply(&op, position);
        }
        self.live = self.learner.goes_live(self.log.is_empty());
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..4u8, 0..3i8).prop_map(|(key, x)| Op::Upsert(key, x)),
        3 => (0..4u8).prop_map(Op::Unchanged),
        4 => (0..4u8).prop_map(Op::Delete),
        1 => Just(Op::Truncate),
    ];
    prop::collection::vec(op, 1..30)
}

/// Every state that the peers go through, and the change that leads to the next.
/// What could not happen in a heap is left out.
fn history(ops: Vec<Op>) -> (Vec<Op>, Vec<Rows>) {
    let mut states = vec![Rows::default()];
    let mut done = Vec::new();
    for op in ops {
        let now = states.last().expect("one at least");
        let exists = |key: &u8| now.rows.get(key).is_some_and(|state| state.row.is_some());
        match &op {
            Op::Unchanged(key) | Op::Delete(key) if !exists(key) => continue,
            _ => {}
        }
        let mut next = now.clone();
        next.apply(&op, at(states.len() as u64 * 10));
        states.push(next);
        done.push(op);
    }
    (done, states)
}

proptest! {
    /// P1, P2, P3: whatever the interleaving of parts, each read at its own later
    /// watermark and from either of two peers, of batches and of replay: at the
    /// moment when the learner goes live it is what its peers were at that
    /// position, and what follows applies as it does with them.
    #[test]
    fn p3_a_fuzzy_copy_and_the_log_end_where_the_stream_does(
        ops in ops(),
        attached in 0usize..30,
        steps in prop::collection::vec((0..5u8, 1..3usize), 0..120),
    ) {
        let (ops, states) = history(ops);
        let attached = attached.min(ops.len());
        let position = |n: usize| at(n as u64 * 10);
        let mut node = Node::default();
        node.learner.attach(position(attached));
        let (mut peers, mut streamed) = ([attached.saturating_sub(3), attached], attached);
        let all = std::iter::repeat_n([(0, 0), (1, 0), (2, 0), (4, 0)], ops.len()).flatten();
        let rest = std::iter::repeat_n([(3, 2), (4, 1)], 200).flatten();
        for (step, many) in steps.into_iter().chain(all).chain(rest) {
            let was_live = node.live.is_some();
            match step {
                0 | 1 => peers[step as usize] = (peers[step as usize] + 1).min(ops.len()),
                2 if streamed < ops.len() => {
                    streamed += 1;
                    let (previous, to) = (position(streamed - 1), position(streamed));
                    node.stream(&ops[streamed - 1], previous, to);
                }
                2 => {}
                3 => {
                    let peer = peers[many % 2];
                    node.copy(&states[peer], position(peer), many);
                }
                _ => node.replay(),
            }
            if let Some(live) = node.live && !was_live {
                prop_assert_eq!(&node.rows, &states[live.commit_end.0 as usize / 10]);
            }
        }
        prop_assert_eq!(node.live, Some(position(ops.len())));
        prop_assert_eq!(&node.rows, states.last().expect("one at least"));
    }
}
