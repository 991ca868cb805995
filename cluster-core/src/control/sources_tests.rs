//! Sources: who follows one, and what is noted of it.
#![allow(clippy::unwrap_used)]

use super::tests::{Cluster, assign};
use super::*;
use crate::ids::*;
use crate::map::*;
use crate::wal_position::Lsn;
use std::collections::BTreeMap;

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
