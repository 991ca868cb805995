//! Any commands in any order: what holds after each of them.

use super::tests::{Cluster, begin, finish, initialise, join, reign_of};
use super::*;
use crate::ids::*;
use proptest::prelude::*;

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
