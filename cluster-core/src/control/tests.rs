//! A state machine that checks itself after every command, for the tests of all commands,
//! and how a cluster begins.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::collection::*;
use crate::ids::*;
use crate::invariants::check_successor;
use crate::map::*;
use crate::placement::{PlacementPolicy, place_collection};
use std::collections::BTreeSet;

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
    pub(super) fn ready(nodes: u64) -> Self {
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

    pub(super) fn map(&self) -> &PartitionMap {
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

    pub(super) fn create(&self, token: u64, index_oid: u32, generation: u64) -> Command {
        Command::CreateCollection {
            token: ConsumerEpoch(token),
            spec: spec(index_oid, generation),
            placement: place_collection(self.map(), PlacementPolicy::default(), 1),
        }
    }
}

pub(super) fn reign_of(term: u64, leader: u64) -> Reign {
    Reign {
        term,
        leader,
        start: 9,
    }
}

pub(super) fn initialise(id: &str) -> Command {
    let members = vec![CoordinatorMember {
        id: 1,
        address: "127.0.0.1:7401".into(),
    }];
    Command::Initialise {
        cluster_id: id.into(),
        members,
    }
}

pub(super) fn join(disk: u64, known_as: Option<NodeId>) -> Command {
    Command::JoinNode {
        disk_uuid: format!("disk-{disk}"),
        known_as,
        address: format!("10.0.0.{disk}:7501"),
        zone: "z".into(),
    }
}

pub(super) fn assign(consumer: u64, expected: u64) -> Command {
    Command::AssignSource {
        source: SourceId(1),
        consumer: ConsumerId(consumer),
        expected: ConsumerEpoch(expected),
    }
}

pub(super) fn spec(index_oid: u32, definition_generation: u64) -> CollectionSpec {
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

pub(super) fn finish(token: u64, collection: u64, backfill: u64) -> Command {
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

pub(super) fn begin(token: u64, collection: u64) -> Command {
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
