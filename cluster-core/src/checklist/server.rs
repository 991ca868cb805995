//! What the server must be, each by its name.

use super::{Check, ServerFacts};
use crate::ids::SourceId;
use crate::map::PartitionMap;

const MAJOR: u32 = 15;
/// Slots and walsenders that a source takes while indexes are built, beside its own:
/// the consumer's `backfills_max`.
const BUILDING: u32 = 2;

pub fn version(version_num: u32) -> Check {
    let (major, minor) = (version_num / 10_000, version_num % 10_000);
    let finding = format!("Postgres {major}.{minor}");
    match major {
        MAJOR => Check::ok("version", finding),
        _ => Check::failed(
            "version",
            finding,
            format!("this version follows Postgres {MAJOR} only"),
        ),
    }
}

pub fn primary(is_in_recovery: bool) -> Check {
    match is_in_recovery {
        false => Check::ok("primary", "the server takes writes"),
        true => Check::failed(
            "primary",
            "the server is a standby",
            "Postgres 15 cannot decode there; register the primary",
        ),
    }
}

pub fn wal_level(level: &str) -> Check {
    let finding = format!("wal_level is {level}");
    match level {
        "logical" => Check::ok("wal_level", finding),
        _ => Check::failed(
            "wal_level",
            finding,
            "set wal_level = logical and restart the server",
        ),
    }
}

pub fn library(is_preloaded: bool) -> Check {
    match is_preloaded {
        true => Check::ok("library", "ruvector is in shared_preload_libraries"),
        // It is followed without; searches are answered exactly.
        false => Check::warning(
            "library",
            "ruvector is not in shared_preload_libraries: searches do not reach the cluster",
            "set shared_preload_libraries = 'ruvector' and restart the server",
        ),
    }
}

pub fn extension(database: &str, version: Option<&str>) -> Check {
    match version {
        Some(version) => Check::ok("extension", format!("ruvector {version}")),
        None => Check::failed(
            "extension",
            format!("extension ruvector is not in database {database}"),
            "run CREATE EXTENSION ruvector",
        ),
    }
}

pub fn slots(facts: &ServerFacts) -> Check {
    let (used, max) = (facts.slots_used, facts.slots_max);
    places(
        "slots",
        "replication slots",
        "max_replication_slots",
        used,
        max,
        facts.has_slot,
    )
}

pub fn walsenders(facts: &ServerFacts) -> Check {
    let (used, max) = (facts.walsenders_used, facts.walsenders_max);
    places(
        "walsenders",
        "walsenders",
        "max_wal_senders",
        used,
        max,
        facts.has_slot,
    )
}

fn places(
    name: &'static str,
    what: &str,
    setting: &str,
    used: u32,
    max: u32,
    has_own: bool,
) -> Check {
    let free = max.saturating_sub(used);
    let own = u32::from(!has_own);
    let finding = format!("{free} of {max} {what} are free");
    let remedy = |least: u32| {
        format!(
            "set {setting} = {} or more and restart the server",
            used + least
        )
    };
    if free < own {
        Check::failed(name, finding, remedy(own + BUILDING))
    } else if free < own + BUILDING {
        let finding = format!("{finding}: indexes are built one after the other, or wait");
        Check::warning(name, finding, remedy(own + BUILDING))
    } else {
        Check::ok(name, finding)
    }
}

pub fn kept_wal(limit_bytes: Option<u64>) -> Check {
    match limit_bytes {
        Some(bytes) => {
            let gigabytes = bytes as f64 / f64::from(1 << 30);
            Check::ok(
                "kept WAL",
                format!(
                    "max_slot_wal_keep_size is {gigabytes:.1} GB: beyond, the server ends the slot and the indexes are reconciled with their tables; slot_hold_limit should be less"
                ),
            )
        }
        None => Check::warning(
            "kept WAL",
            "max_slot_wal_keep_size is unlimited: only slot_hold_limit, which the extension's worker enforces while nobody streams, bounds the slot",
            "set it to what the disk can spare, above the consumer's slot_hold_limit_bytes (64 GB unless set)",
        ),
    }
}

/// Whether another source is the same database, by another name or address.
pub fn identity(facts: &ServerFacts, map: &PartitionMap, source: Option<SourceId>) -> Check {
    let Some(system) = facts.system_identifier else {
        let role = &facts.role.name;
        return Check::failed(
            "identity",
            format!("no replication connection: {}", facts.replication_problem),
            format!(
                "let {role} log in from here to database {} (pg_hba.conf, LOGIN, REPLICATION)",
                facts.database
            ),
        );
    };
    let here = (system, facts.database_oid);
    let is_same = |slot: &crate::map::Slot| (slot.system_identifier, slot.database_oid) == here;
    let known = source.and_then(|id| map.sources.get(&id)?.slot.as_ref());
    if let Some(known) = known.filter(|slot| !is_same(slot)) {
        return Check::failed(
            "identity",
            format!(
                "system {system}, database {}: not the database that the source is (system {}, database {})",
                facts.database_oid, known.system_identifier, known.database_oid
            ),
            "give the connection string of the same database, or add this one as a source of its own",
        );
    }
    let mut sources = map.sources.values();
    let other = sources.find(|s| Some(s.id) != source && s.slot.as_ref().is_some_and(is_same));
    if let Some(other) = other {
        return Check::failed(
            "identity",
            format!(
                "this database is followed already, as {} ({})",
                other.name, other.id
            ),
            "nothing needs to be added; another address is set by ruvector ctl source set-dsn",
        );
    }
    Check::ok(
        "identity",
        format!(
            "system {system}, database {} ({})",
            facts.database_oid, facts.database
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::control::{ClusterState, Command, CoordinatorMember};
    use crate::map::Slot;
    use crate::wal_position::Lsn;

    fn facts() -> ServerFacts {
        ServerFacts {
            version_num: 150_020,
            slots_max: 10,
            walsenders_max: 10,
            system_identifier: Some(77),
            database_oid: 5,
            database: "shop".into(),
            ..ServerFacts::default()
        }
    }

    #[test]
    fn what_cannot_be_followed_fails_and_says_what_to_do() {
        for check in [
            version(160_001),
            primary(true),
            wal_level("replica"),
            extension("shop", None),
        ] {
            assert_eq!(check.verdict, Verdict::Failed, "{check:?}");
            assert!(!check.remedy.is_empty(), "{check:?}");
        }
        assert_eq!(
            wal_level("replica").sentence(),
            "wal_level is replica: set wal_level = logical and restart the server"
        );
        assert_eq!(version(150_020).verdict, Verdict::Ok);
        assert_eq!(kept_wal(None).verdict, Verdict::Warning);
        assert_eq!(kept_wal(Some(1 << 33)).verdict, Verdict::Ok);
    }

    #[test]
    fn a_source_needs_a_slot_of_its_own_and_should_have_some_for_building() {
        let verdict = |used, has_slot| {
            let facts = ServerFacts {
                slots_used: used,
                has_slot,
                ..facts()
            };
            slots(&facts).verdict
        };
        assert_eq!(verdict(7, false), Verdict::Ok);
        assert_eq!(verdict(8, false), Verdict::Warning);
        assert_eq!(verdict(10, false), Verdict::Failed);
        assert_eq!(verdict(10, true), Verdict::Warning, "it has its own");
    }

    #[test]
    fn p9_one_database_is_one_source_and_a_source_stays_the_same_database() {
        let mut state = ClusterState::default();
        let members = vec![CoordinatorMember {
            id: 1,
            address: "a:1".into(),
        }];
        state.apply(Command::Initialise {
            cluster_id: "c".into(),
            members,
        });
        state.apply(Command::AddSource {
            name: "shop".into(),
            dsn: "d".into(),
        });
        let mut map = state.map().clone();
        let slot = Slot {
            system_identifier: 77,
            database_oid: 5,
            timeline: 1,
            consistent_point: Lsn(1),
            publication: None,
        };
        let known = SourceId(1);
        map.sources.get_mut(&known).expect("added").slot = Some(slot);
        let (same, mut other) = (facts(), facts());
        other.database_oid = 6;
        let verdict = |facts, source| identity(facts, &map, source).verdict;
        assert_eq!(verdict(&same, None), Verdict::Failed);
        assert!(identity(&same, &map, None).finding.contains("shop"));
        assert_eq!(verdict(&same, Some(known)), Verdict::Ok);
        assert_eq!(verdict(&other, Some(known)), Verdict::Failed);
        assert_eq!(verdict(&other, None), Verdict::Ok);
    }
}
