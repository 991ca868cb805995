//! Coordinators come and go; their ids do not come back.

use super::coordinators::COORDINATORS_MAX;
use super::tests::Cluster;
use super::{ClusterState, Command, CoordinatorMember, Refusal, Response};

/// The first, as tests initialise a cluster.
const FIRST: (u64, &str) = (1, "127.0.0.1:7401");
const SECOND: (u64, &str) = (2, "127.0.0.1:7402");
const THIRD: (u64, &str) = (3, "127.0.0.1:7403");

fn members(of: &[(u64, &str)]) -> Command {
    let member = |(id, address): &(u64, &str)| CoordinatorMember {
        id: *id,
        address: (*address).to_owned(),
    };
    Command::SetMembers {
        members: of.iter().map(member).collect(),
    }
}

fn refusal(cluster: &mut Cluster, of: &[(u64, &str)]) -> Refusal {
    match cluster.apply(members(of)) {
        Response::Refused(refusal) => refusal,
        other => panic!("{of:?} was answered {other:?}"),
    }
}

fn ids(cluster: &Cluster) -> Vec<u64> {
    cluster.state.members().iter().map(|m| m.id).collect()
}

#[test]
fn coordinators_come_and_go_and_the_map_names_them() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    assert_eq!(
        cluster.twice(members(&[THIRD, FIRST, SECOND])),
        Response::Done
    );
    assert_eq!(ids(&cluster), [1, 2, 3]);
    assert_eq!(
        cluster.state.map().coordinators,
        [FIRST.1, SECOND.1, THIRD.1]
    );
    // The founder may leave like any other.
    assert_eq!(cluster.twice(members(&[SECOND, THIRD])), Response::Done);
    assert_eq!(cluster.state.map().coordinators, [SECOND.1, THIRD.1]);
    assert!(cluster.state.has_left(1) && !cluster.state.has_left(2));
    assert!(!cluster.state.has_left(4), "it has never been one");
}

#[test]
fn the_id_of_a_coordinator_that_left_is_not_given_again() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    cluster.apply(members(&[FIRST, SECOND, THIRD]));
    cluster.apply(members(&[FIRST, SECOND]));
    let refused = refusal(&mut cluster, &[FIRST, SECOND, THIRD]).to_string();
    assert!(refused.contains("4 or above"), "{refused}");
    // Nor at another address, nor an id that was passed over.
    let elsewhere = (3, "127.0.0.1:7409");
    assert!(matches!(
        refusal(&mut cluster, &[FIRST, SECOND, elsewhere]),
        Refusal::Conflict { .. }
    ));
    let ninth = (9, "127.0.0.1:7409");
    assert_eq!(
        cluster.apply(members(&[FIRST, SECOND, ninth])),
        Response::Done
    );
    cluster.apply(members(&[FIRST, SECOND]));
    assert!(matches!(
        refusal(&mut cluster, &[FIRST, (8, "127.0.0.1:7408")]),
        Refusal::Conflict { .. }
    ));
}

#[test]
fn a_member_does_not_move_to_another_address() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    let moved = refusal(&mut cluster, &[(1, "127.0.0.1:9999")]).to_string();
    assert!(moved.contains("as coordinator 2"), "{moved}");
}

#[test]
fn the_last_coordinator_stays_and_nonsense_is_refused() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    let many: Vec<(u64, String)> = (0..=COORDINATORS_MAX as u64)
        .map(|i| (i + 1, format!("h:{i}")))
        .collect();
    let many: Vec<_> = many.iter().map(|(id, a)| (*id, a.as_str())).collect();
    for (nonsense, why) in [
        (&[][..], "the last coordinator stays"),
        (&[FIRST, (0, "h:1")], "from 1"),
        (&[FIRST, (2, "")], "an address"),
        (&[FIRST, (2, FIRST.1)], "share"),
        (&[FIRST, SECOND, SECOND], "share"),
        (&many, "at most 9"),
    ] {
        let refused = refusal(&mut cluster, nonsense).to_string();
        assert!(refused.contains(why), "{nonsense:?}: {refused}");
    }
}

#[test]
fn a_state_of_an_earlier_version_knows_its_members_ids() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    cluster.apply(members(&[FIRST, SECOND, THIRD]));
    let mut stored = serde_json::to_value(&cluster.state).expect("encodes");
    let last = stored["last"].as_object_mut().expect("the last ids");
    assert!(last.remove("coordinator").is_some());
    cluster.state = serde_json::from_value::<ClusterState>(stored).expect("decodes");
    assert_eq!(cluster.state.highest_coordinator(), 3);
    cluster.apply(members(&[FIRST]));
    refusal(&mut cluster, &[FIRST, THIRD]);
}
