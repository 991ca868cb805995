//! A small cluster for scripts and models.

use cluster_core::collection::*;
use cluster_core::control::*;
use cluster_core::ids::*;
use cluster_core::map::HashRange;

/// In the first reign: nodes, consumers, one source that the first consumer holds
/// under token 1, one ready collection of one partition on the first nodes.
pub fn cluster(nodes: u64, replicas: u64, consumers: u64) -> ClusterState {
    let mut state = ClusterState::default();
    let mut apply = |command| match state.apply(command) {
        Response::Refused(refusal) => panic!("{refusal}"),
        response => response,
    };
    let token = ConsumerEpoch(1);
    apply(Command::Initialise {
        cluster_id: "c".to_owned(),
        members: vec![CoordinatorMember {
            id: 1,
            address: "a".to_owned(),
        }],
    });
    let reign = Reign {
        term: 1,
        leader: 0,
        start: 1,
    };
    apply(Command::NewEpoch { reign });
    for node in 1..=nodes {
        apply(Command::JoinNode {
            disk_uuid: node.to_string(),
            known_as: None,
            address: "a".to_owned(),
            zone: String::new(),
        });
    }
    apply(Command::AddSource {
        name: "s".to_owned(),
        dsn: "d".to_owned(),
    });
    for consumer in 1..=consumers {
        apply(Command::JoinConsumer {
            process_uuid: consumer.to_string(),
            address: String::new(),
        });
    }
    apply(Command::AssignSource {
        source: SourceId(1),
        consumer: ConsumerId(1),
        expected: ConsumerEpoch(0),
    });
    apply(Command::CreateCollection {
        token,
        spec: spec(),
        placement: vec![PlacedPartition {
            range: HashRange::WHOLE,
            nodes: (1..=replicas).map(NodeId).collect(),
        }],
    });
    let collection = CollectionId(1);
    apply(Command::BeginBackfill { token, collection });
    apply(Command::FinishBackfill {
        token,
        collection,
        backfill: BackfillId(1),
        snapshot: BackfillSnapshot::default(),
    });
    state
}

fn spec() -> CollectionSpec {
    CollectionSpec {
        source: SourceId(1),
        index_oid: 1,
        definition_generation: 1,
        table_oid: 1,
        schema_name: "public".to_owned(),
        table_name: "t".to_owned(),
        index_name: "i".to_owned(),
        column_name: "c".to_owned(),
        column_attnum: 2,
        key_attnums: vec![1],
        metric: Metric::L2,
        dimensions: 2,
        m: 16,
        ef_construction: 64,
    }
}
