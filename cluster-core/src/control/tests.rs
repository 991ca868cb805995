#![allow(clippy::unwrap_used)]

use super::*;
use crate::collection::*;
use crate::ids::*;
use crate::invariants::check_successor;
use crate::map::*;
use crate::placement::{PlacementPolicy, place_collection};
use crate::wal_position::Lsn;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Of the consumer in [`Cluster::ready`].
pub(super) const TOKEN: ConsumerEpoch = ConsumerEpoch(1);

/// A state machine that checks after each command what must hold.
pub(super) struct Cluster {
    pub(super) state: ClusterState,
    given: BTreeSet<String>,
}

impl Cluster {
    fn empty() -> Self {
        Self {
            state: ClusterState::default(),
            given: BTreeSet::new(),
        }
    }

    /// Initialised, with nodes, one source and its consumer (token 1).
    fn ready(nodes: u64) -> Self {
        let mut cluster = Self::empty();
        cluster.apply(initialise("c1"));
        cluster.apply(Command::NewEpoch {
            reign: reign_of(1, 1),
        });
        for i in 0..nodes {
            cluster.apply(join(i, None));
        }
        cluster.apply(Command::AddSource {
            name: "main".into(),
            dsn: "host=a".into(),
        });
        cluster.apply(Command::JoinConsumer {
            process_uuid: "p1".into(),
            address: "".into(),
        });
        cluster.apply(assign(1, 0));
        cluster
    }

    fn map(&self) -> &PartitionMap {
        self.state.map()
    }

    /// With one ready collection of one partition, on these nodes.
    pub(super) fn with_collection(nodes: u64, holders: &[u64]) -> Self {
        let mut cluster = Self::with_building_collection(nodes, holders);
        cluster.apply(begin(1, 1));
        cluster.apply(finish(1, 1, 1));
        cluster
    }

    pub(super) fn with_building_collection(nodes: u64, holders: &[u64]) -> Self {
        let mut cluster = Self::ready(nodes);
        let created = cluster.apply(Command::CreateCollection {
            token: TOKEN,
            spec: spec(50, 1),
            placement: vec![PlacedPartition {
                range: HashRange::WHOLE,
                nodes: holders.iter().map(|id| NodeId(*id)).collect(),
            }],
        });
        let collection = CollectionId(1);
        assert_eq!(created, Response::CollectionCreated { collection });
        cluster
    }

    /// The source gets another token.
    pub(super) fn hand_over(&mut self) {
        self.apply(assign(1, TOKEN.0));
    }

    pub(super) fn join_node(&mut self, disk: u64) -> NodeId {
        match self.apply(join(disk, None)) {
            Response::NodeJoined { node } => node,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn drop_collection(&mut self) {
        self.apply(Command::DropCollection {
            token: TOKEN,
            source: SourceId(1),
            index_oid: 50,
            definition_generation: 1,
        });
    }

    pub(super) fn apply(&mut self, command: Command) -> Response {
        let before = self.state.clone();
        let response = self.state.apply(command.clone());
        let (old, new) = (before.map(), self.state.map());

        let mut unversioned = new.clone();
        unversioned.version = old.version;
        let rise = if unversioned == *old { 0 } else { 1 };
        assert_eq!(new.version.0, old.version.0 + rise, "{command:?}");
        if matches!(response, Response::Refused(_)) {
            assert_eq!(
                self.state, before,
                "a refused command changes nothing: {command:?}"
            );
        }
        assert_eq!(self.state.violation(), None, "{command:?}");
        assert_eq!(check_successor(old, new), Ok(()), "{command:?}");
        self.note_new_ids(&before);
        // The state survives its stored form.
        let json = serde_json::to_string(&self.state).unwrap();
        assert_eq!(
            serde_json::from_str::<ClusterState>(&json).unwrap(),
            self.state
        );
        response
    }

    fn note_new_ids(&mut self, before: &ClusterState) {
        let (old, new) = (before.map(), self.state.map());
        let held = |map: &PartitionMap| -> BTreeSet<_> {
            map.held_partitions().map(|(p, _)| p.id).collect()
        };
        let mut fresh: Vec<String> = Vec::new();
        let unknown = |known: bool, id: String| (!known).then_some(id);
        fresh.extend(
            new.nodes
                .keys()
                .filter_map(|i| unknown(old.nodes.contains_key(i), i.to_string())),
        );
        fresh.extend(
            new.sources
                .keys()
                .filter_map(|i| unknown(old.sources.contains_key(i), i.to_string())),
        );
        fresh.extend(
            new.collections
                .keys()
                .filter_map(|i| unknown(old.collections.contains_key(i), i.to_string())),
        );
        fresh.extend(
            held(new)
                .iter()
                .filter_map(|i| unknown(held(old).contains(i), i.to_string())),
        );
        let generations = |map: &PartitionMap| -> BTreeSet<_> {
            let replicas = map.held_partitions().flat_map(|(p, _)| &p.replicas);
            replicas.map(|r| r.generation).collect()
        };
        let known = generations(old);
        let assigned = generations(new);
        fresh.extend(
            assigned
                .difference(&known)
                .map(|g| format!("generation {g}")),
        );
        let consumers = self.state.consumers().keys();
        fresh.extend(
            consumers.filter_map(|i| unknown(before.consumers().contains_key(i), i.to_string())),
        );
        let coordinators = self.state.members().iter().map(|m| m.id);
        fresh.extend(
            coordinators
                .filter_map(|id| unknown(before.is_member(id), format!("coordinator {id}"))),
        );
        for id in fresh {
            assert!(self.given.insert(id.clone()), "{id} was given twice");
        }
    }

    /// Applies a command twice: the second time changes nothing and says the same.
    pub(super) fn twice(&mut self, command: Command) -> Response {
        let first = self.apply(command.clone());
        let state = self.state.clone();
        let second = self.apply(command);
        assert_eq!(first, second);
        assert_eq!(self.state, state);
        first
    }

    fn create(&self, token: u64, index_oid: u32, generation: u64) -> Command {
        Command::CreateCollection {
            token: ConsumerEpoch(token),
            spec: spec(index_oid, generation),
            placement: place_collection(self.map(), PlacementPolicy::default(), 1),
        }
    }
}

fn reign_of(term: u64, leader: u64) -> Reign {
    Reign {
        term,
        leader,
        start: 9,
    }
}

fn initialise(id: &str) -> Command {
    let members = vec![CoordinatorMember {
        id: 1,
        address: "127.0.0.1:7401".into(),
    }];
    Command::Initialise {
        cluster_id: id.into(),
        members,
    }
}

fn join(disk: u64, known_as: Option<NodeId>) -> Command {
    Command::JoinNode {
        disk_uuid: format!("disk-{disk}"),
        known_as,
        address: format!("10.0.0.{disk}:7501"),
        zone: "z".into(),
    }
}

fn assign(consumer: u64, expected: u64) -> Command {
    Command::AssignSource {
        source: SourceId(1),
        consumer: ConsumerId(consumer),
        expected: ConsumerEpoch(expected),
    }
}

fn spec(index_oid: u32, definition_generation: u64) -> CollectionSpec {
    CollectionSpec {
        source: SourceId(1),
        index_oid,
        definition_generation,
        table_oid: 7,
        schema_name: "public".into(),
        table_name: "items".into(),
        index_name: "i".into(),
        column_name: "embedding".into(),
        column_attnum: 3,
        key_attnums: vec![1],
        metric: Metric::L2,
        dimensions: 8,
        m: 16,
        ef_construction: 64,
    }
}

fn finish(token: u64, collection: u64, backfill: u64) -> Command {
    Command::FinishBackfill {
        token: ConsumerEpoch(token),
        collection: CollectionId(collection),
        backfill: BackfillId(backfill),
        snapshot: BackfillSnapshot {
            xmax: 100,
            running: vec![90, 80],
            membership: None,
        },
    }
}

fn begin(token: u64, collection: u64) -> Command {
    Command::BeginBackfill {
        token: ConsumerEpoch(token),
        collection: CollectionId(collection),
    }
}

#[test]
fn a_cluster_is_initialised_once() {
    let mut cluster = Cluster::empty();
    assert_eq!(
        cluster.apply(join(1, None)),
        Response::Refused(Refusal::NotInitialised)
    );
    cluster.twice(initialise("c1"));
    let existing = Response::Initialised {
        cluster_id: "c1".into(),
    };
    assert_eq!(cluster.apply(initialise("c2")), existing);
    assert_eq!(cluster.map().coordinators, ["127.0.0.1:7401"]);
}

#[test]
fn p6_a_reign_has_one_epoch_and_a_later_reign_a_higher_one() {
    let mut cluster = Cluster::ready(1);
    let reign = |term, leader| Command::NewEpoch {
        reign: reign_of(term, leader),
    };
    let epoch = |e| Response::Epoch {
        epoch: LeaseEpoch(e),
    };
    assert_eq!(cluster.twice(reign(3, 1)), epoch(2));
    assert_eq!(cluster.twice(reign(3, 2)), epoch(3));
    assert!(matches!(cluster.apply(reign(2, 1)), Response::Refused(_)));
    // The leader restarted within its term.
    let again = Reign {
        start: 10,
        ..reign_of(3, 2)
    };
    assert_eq!(cluster.twice(Command::NewEpoch { reign: again }), epoch(4));
}

#[test]
fn a_known_id_with_another_disk_is_refused() {
    let mut cluster = Cluster::ready(2);
    let one = NodeId(1);
    assert_eq!(
        cluster.twice(join(0, Some(one))),
        Response::NodeJoined { node: one }
    );
    // The answer to the first join was lost: the disk is known, the id is not.
    assert_eq!(
        cluster.apply(join(0, None)),
        Response::NodeJoined { node: one }
    );
    for other in [join(9, Some(one)), join(1, Some(one))] {
        let refused = cluster.apply(other);
        assert!(
            matches!(refused, Response::Refused(Refusal::DiskMismatch { .. })),
            "{refused:?}"
        );
    }
    let unknown = Response::Refused(Refusal::UnknownNode { node: NodeId(77) });
    assert_eq!(cluster.apply(join(9, Some(NodeId(77)))), unknown);
    assert_eq!(
        cluster.twice(join(9, None)),
        Response::NodeJoined { node: NodeId(3) }
    );
}

#[test]
fn p5_a_source_has_one_consumer_and_its_token_rises_with_each_handover() {
    let mut cluster = Cluster::ready(1);
    cluster.apply(Command::JoinConsumer {
        process_uuid: "p2".into(),
        address: "".into(),
    });
    assert_eq!(
        cluster.twice(assign(2, 1)),
        Response::SourceAssigned {
            token: ConsumerEpoch(2)
        }
    );
    let late = cluster.apply(assign(1, 1));
    assert!(
        matches!(late, Response::Refused(Refusal::Fenced { .. })),
        "{late:?}"
    );
    for void in [cluster.create(1, 50, 1), cluster.create(3, 50, 1)] {
        let refused = cluster.apply(void);
        assert!(
            matches!(refused, Response::Refused(Refusal::Fenced { .. })),
            "{refused:?}"
        );
    }
    let held = Response::Refused(Refusal::Conflict {
        what: "consumer-2 holds a source".into(),
    });
    assert_eq!(
        cluster.apply(Command::ForgetConsumer {
            consumer: ConsumerId(2)
        }),
        held
    );
    cluster.twice(Command::ForgetConsumer {
        consumer: ConsumerId(1),
    });
}

#[test]
fn a_source_is_named_once_and_leaves_with_all_it_had() {
    let mut cluster = Cluster::ready(1);
    let add = |name: &str, dsn: &str| Command::AddSource {
        name: name.into(),
        dsn: dsn.into(),
    };
    assert_eq!(
        cluster.twice(add("main", "host=a")),
        Response::SourceAdded {
            source: SourceId(1)
        }
    );
    assert!(matches!(
        cluster.apply(add("main", "host=b")),
        Response::Refused(_)
    ));
    assert!(matches!(
        cluster.apply(add("other", "host=a")),
        Response::Refused(_)
    ));
    assert_eq!(
        cluster.map().sources[&SourceId(1)].slot_name,
        "ruvector_c1_1"
    );
    let create = cluster.create(1, 50, 1);
    cluster.apply(create);
    cluster.twice(Command::RemoveSource {
        source: SourceId(1),
    });
    assert!(cluster.map().collections.is_empty() && cluster.map().partitions.is_empty());
    assert_eq!(
        cluster.apply(add("main", "host=a")),
        Response::SourceAdded {
            source: SourceId(2)
        }
    );
}

#[test]
fn a_slots_identity_is_told_once() {
    let mut cluster = Cluster::ready(1);
    let report = |timeline, problem: &str| Command::ReportSource {
        source: SourceId(1),
        token: ConsumerEpoch(1),
        slot: Some(Slot {
            system_identifier: 5,
            database_oid: 6,
            timeline,
            consistent_point: Lsn(70),
            publication: None,
        }),
        server_start: None,
        problem: problem.into(),
        memberships: BTreeMap::new(),
    };
    assert_eq!(cluster.twice(report(1, "")), Response::Done);
    assert!(matches!(
        cluster.apply(report(2, "")),
        Response::Refused(Refusal::Conflict { .. })
    ));
    cluster.twice(report(1, "wal_level is not logical"));
    assert_eq!(
        cluster.map().sources[&SourceId(1)].problem,
        "wal_level is not logical"
    );
}

#[test]
fn p11_a_sources_own_slot_limit_is_data_and_older_logs_have_none() {
    let mut cluster = Cluster::ready(1);
    let set = |of, limit_bytes| Command::SetSlotHoldLimit {
        source: SourceId(of),
        limit_bytes,
    };
    let limit = |cluster: &Cluster| cluster.map().sources[&SourceId(1)].slot_hold_limit_bytes;
    assert_eq!(limit(&cluster), None);
    for wanted in [Some(5 << 30), Some(0), None] {
        assert_eq!(cluster.twice(set(1, wanted)), Response::Done);
        assert_eq!(limit(&cluster), wanted);
    }
    assert!(matches!(
        cluster.apply(set(7, Some(1))),
        Response::Refused(Refusal::UnknownSource { .. })
    ));
    // A snapshot of a version that knew of no such limit.
    let mut source = serde_json::to_value(&cluster.map().sources[&SourceId(1)]).unwrap();
    source
        .as_object_mut()
        .unwrap()
        .remove("slot_hold_limit_bytes")
        .unwrap();
    let source: Source = serde_json::from_value(source).unwrap();
    assert_eq!(source.slot_hold_limit_bytes, None);
}

#[test]
fn p9_the_start_of_the_server_that_is_streamed_is_the_last_one_told() {
    let mut cluster = Cluster::ready(1);
    let report = |server_start| Command::ReportSource {
        source: SourceId(1),
        token: ConsumerEpoch(1),
        slot: None,
        server_start,
        problem: String::new(),
        memberships: BTreeMap::new(),
    };
    let told = |cluster: &Cluster| cluster.map().sources[&SourceId(1)].server_start;
    assert_eq!(told(&cluster), None);
    cluster.twice(report(Some(ServerStart(7))));
    cluster.twice(report(None));
    assert_eq!(told(&cluster), Some(ServerStart(7)));
    cluster.twice(report(Some(ServerStart(8))));
    assert_eq!(told(&cluster), Some(ServerStart(8)));
}

#[test]
fn a_collection_waits_for_a_node() {
    let mut cluster = Cluster::ready(0);
    let create = cluster.create(1, 50, 1);
    assert_eq!(cluster.apply(create), Response::Refused(Refusal::NoNodes));
}

#[test]
fn a_collection_waits_while_every_node_drains() {
    let mut cluster = Cluster::ready(2);
    let drain = |node, is_draining| Command::SetDraining {
        node: NodeId(node),
        is_draining,
    };
    cluster.apply(drain(1, true));
    cluster.apply(drain(2, true));
    let create = cluster.create(1, 50, 1);
    let refused = Response::Refused(Refusal::AllDraining);
    assert_eq!(cluster.apply(create), refused);
    cluster.apply(drain(2, false));
    let create = cluster.create(1, 50, 1);
    let collection = CollectionId(1);
    assert_eq!(
        cluster.apply(create),
        Response::CollectionCreated { collection }
    );
    let partitions = cluster.map().partitions.values();
    assert!(
        partitions
            .flat_map(|p| &p.replicas)
            .all(|r| r.node == NodeId(2))
    );
}

#[test]
fn a_later_generation_replaces_the_earlier_once_it_is_ready() {
    let mut cluster = Cluster::ready(2);
    let first = cluster.create(1, 50, 1);
    assert_eq!(
        cluster.twice(first.clone()),
        Response::CollectionCreated {
            collection: CollectionId(1)
        }
    );
    cluster.apply(begin(1, 1));
    cluster.twice(finish(1, 1, 1));
    let second = cluster.create(1, 50, 2);
    cluster.twice(second.clone());
    cluster.apply(begin(1, 2));
    assert_eq!(
        cluster.map().collections.len(),
        2,
        "the old one answers until the new one can"
    );
    cluster.twice(finish(1, 2, 1));
    assert_eq!(
        cluster.map().collections.keys().collect::<Vec<_>>(),
        [&CollectionId(2)]
    );

    // A replayed stream makes the old one again; the later row removes it.
    cluster.apply(first);
    assert_eq!(cluster.map().collections.len(), 2);
    cluster.twice(second);
    assert_eq!(cluster.map().collections.len(), 1);
    cluster.twice(Command::DropCollection {
        token: ConsumerEpoch(1),
        source: SourceId(1),
        index_oid: 50,
        definition_generation: 2,
    });
    assert!(cluster.map().partitions.is_empty());
}

#[test]
fn a_backfill_voids_the_earlier_ones_and_ready_stays_ready() {
    let mut cluster = Cluster::ready(1);
    let create = cluster.create(1, 50, 1);
    cluster.apply(create);
    let void = |r: Response| matches!(r, Response::Refused(Refusal::BackfillVoid { .. }));
    assert!(void(cluster.apply(finish(1, 1, 0))), "none has begun");
    cluster.apply(begin(1, 1));
    assert_eq!(
        cluster.apply(begin(1, 1)),
        Response::BackfillBegun {
            backfill: BackfillId(2)
        }
    );
    assert!(void(cluster.apply(finish(1, 1, 1))));
    let failed = Command::FailCollection {
        token: ConsumerEpoch(1),
        collection: CollectionId(1),
        reason: "wrong dimension".into(),
    };
    cluster.twice(failed);
    assert!(
        void(cluster.apply(finish(1, 1, 2))),
        "it has failed meanwhile"
    );
    cluster.apply(begin(1, 1));
    cluster.twice(finish(1, 1, 3));
    assert!(matches!(
        cluster.apply(begin(1, 1)),
        Response::Refused(Refusal::Conflict { .. })
    ));
    let CollectionState::Ready { snapshot } = &cluster.map().collections[&CollectionId(1)].state
    else {
        panic!("not ready")
    };
    assert_eq!(
        snapshot.running,
        [80, 90],
        "searched by halves, hence sorted"
    );
}

#[test]
fn p7_a_placement_that_does_not_tile_or_names_strangers_is_refused() {
    let mut cluster = Cluster::ready(2);
    let good = place_collection(cluster.map(), PlacementPolicy::default(), 1);
    let mut gap = good.clone();
    gap.pop();
    let mut stranger = good.clone();
    stranger[0].nodes = vec![NodeId(99)];
    let mut twice = good.clone();
    twice[0].nodes = vec![NodeId(1), NodeId(1)];
    let mut nobody = good;
    nobody[0].nodes.clear();
    for placement in [gap, stranger, twice, nobody] {
        let refused = cluster.apply(Command::CreateCollection {
            token: ConsumerEpoch(1),
            spec: spec(50, 1),
            placement,
        });
        assert!(matches!(
            refused,
            Response::Refused(Refusal::PlacementOutdated { .. })
        ));
    }
}

/// A command drawn from small numbers, so that they meet.
#[derive(Clone, Debug)]
struct Draw {
    kind: u8,
    a: u64,
    b: u64,
    c: u64,
}

fn command(cluster: &Cluster, draw: &Draw) -> Command {
    let Draw { kind, a, b, c } = *draw;
    let token = ConsumerEpoch(b);
    match kind {
        0 => Command::NewEpoch {
            reign: reign_of(a, b),
        },
        1 => join(a, (b > 2).then_some(NodeId(c))),
        2 => Command::JoinConsumer {
            process_uuid: format!("p{a}"),
            address: String::new(),
        },
        3 => Command::ForgetConsumer {
            consumer: ConsumerId(a),
        },
        4 => Command::AddSource {
            name: format!("s{a}"),
            dsn: format!("host={b}"),
        },
        5 if c == 0 => Command::RemoveSource {
            source: SourceId(a),
        },
        5 | 6 => Command::AssignSource {
            source: SourceId(a),
            consumer: ConsumerId(c),
            expected: token,
        },
        7 | 8 => {
            let mut create = cluster.create(b, 50 + (a % 2) as u32, c);
            if let Command::CreateCollection { spec, .. } = &mut create {
                spec.source = SourceId(1 + a % 2);
            }
            create
        }
        9 => Command::DropCollection {
            token,
            source: SourceId(1 + a % 2),
            index_oid: 50,
            definition_generation: c,
        },
        10 => begin(b, a),
        11 => finish(b, a, c),
        12 => Command::FailCollection {
            token,
            collection: CollectionId(a),
            reason: format!("r{c}"),
        },
        13 => Command::StartMove {
            partition: PartitionId(a),
            to: NodeId(b),
            from: (c > 0).then_some(NodeId(c)),
            reason: MoveReason::Balance,
        },
        14 => Command::CancelMove {
            partition: PartitionId(a),
            generation: generation(cluster, a, c),
        },
        15 | 16 => Command::PromoteReplica {
            token,
            partition: PartitionId(a),
            node: NodeId(c),
            generation: generation(cluster, a, c),
            waits_out: true,
        },
        17 => Command::DemoteReplica {
            token,
            partition: PartitionId(a),
            node: NodeId(c),
            generation: generation(cluster, a, c),
            min_required: 1,
        },
        18 => Command::FinishRelease {
            partition: PartitionId(a),
            node: NodeId(c),
            generation: generation(cluster, a, c),
        },
        19 => Command::SetDraining {
            node: NodeId(a),
            is_draining: b == 0,
        },
        20 => Command::RemoveNode { node: NodeId(a) },
        22 | 23 => Command::StartSplit {
            partition: PartitionId(a),
            at: b << 62,
        },
        26 => {
            let mut ids = vec![a, b, c];
            ids.dedup();
            let member = |id: u64| CoordinatorMember {
                id,
                address: format!("127.0.0.1:{}", 7400 + id),
            };
            Command::SetMembers {
                members: ids.into_iter().map(member).collect(),
            }
        }
        25 if b == 1 => Command::MarkStale {
            token,
            partition: PartitionId(a),
            node: NodeId(c),
            generation: generation(cluster, a, c),
            reason: "passed".to_owned(),
        },
        24 if b == 0 => Command::CancelSplit {
            partition: PartitionId(a),
        },
        21 => Command::PlanMoves {
            moves: vec![PlannedMove {
                partition: PartitionId(a),
                to: NodeId(b),
                from: None,
                reason: MoveReason::Operator,
            }],
        },
        _ => initialise("other"),
    }
}

/// Of a partition's replica on a node, if there is one.
fn generation(cluster: &Cluster, partition: u64, node: u64) -> Generation {
    let partition = cluster.map().partitions.get(&PartitionId(partition));
    let replica = partition.and_then(|p| p.replica_on(NodeId(node)));
    replica.map_or(Generation(node), |r| r.generation)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// `Cluster::apply` asserts the invariants after each command.
    #[test]
    fn whatever_is_applied_versions_only_rise_ids_are_fresh_and_partitions_tile(
        draws in prop::collection::vec((0u8..27, 0u64..5, 0u64..4, 0u64..4), 1..200)
    ) {
        let mut cluster = Cluster::ready(2);
        for (kind, a, b, c) in draws {
            let command = command(&cluster, &Draw { kind, a, b, c });
            let begins = matches!(command, Command::BeginBackfill { .. });
            let first = cluster.apply(command.clone());
            if !begins && !matches!(first, Response::Refused(_)) {
                let state = cluster.state.clone();
                prop_assert_eq!(cluster.apply(command), first);
                prop_assert_eq!(&cluster.state, &state);
            }
        }
    }
}
