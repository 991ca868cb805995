//! In whose name a request comes: which start of which server, and which of its
//! databases. A clone of a server's files has the same system identifier, timeline
//! and OIDs, a copy made from a template the same rows under another OID: neither may
//! read its original's rows through the cluster (P1, P9).
//!
//! This tells servers apart that belong together; it proves nothing against whoever
//! makes a number up. That is what authenticated transport is for.

use crate::ids::{MapStamp, ServerStart};
use crate::map::Source;

/// What a request says of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedBy {
    pub start: ServerStart,
    pub database_oid: u32,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// One of the two maps is older than what the server is now.
    #[error("the map was of another start of the server")]
    Outdated,
    #[error(
        "the request comes from database {asked}, the source is database {followed}: \
         give the database a source of its own"
    )]
    OtherDatabase { asked: u32, followed: u32 },
    #[error(
        "the cluster follows this source on another server, or on this one before it was \
         started: give a copy a source of its own"
    )]
    OtherServer,
    #[error(
        "the request does not say which server it comes from, as release 0.1.0 does not: \
         restart the server on the present release of the extension"
    )]
    Nameless,
}

/// Whether the holder of a map with this source answers a request that was made by
/// the map `known`. A mismatch is final only between holders of one map: otherwise the
/// server may have started between the two.
pub fn admit(
    source: &Source,
    asked: Option<AskedBy>,
    known: MapStamp,
    ours: MapStamp,
) -> Result<(), Stranger> {
    let Some(asked) = asked else {
        // A server that runs 0.1.0 draws no number, and its worker sends none.
        return match source.server_start {
            None => Ok(()),
            Some(_) => Err(Stranger::Nameless),
        };
    };
    let followed = source.slot.as_ref().map(|slot| slot.database_oid);
    if let Some(followed) = followed.filter(|followed| *followed != asked.database_oid) {
        let asked = asked.database_oid;
        return Err(Stranger::OtherDatabase { asked, followed });
    }
    if source.server_start == Some(asked.start) && followed.is_some() {
        return Ok(());
    }
    Err(match known == ours {
        true => Stranger::OtherServer,
        false => Stranger::Outdated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::*;
    use crate::map::Slot;
    use crate::wal_position::Lsn;

    const OURS: MapStamp = (LeaseEpoch(2), MapVersion(7));

    fn source(start: Option<u64>) -> Source {
        Source {
            id: SourceId(1),
            name: "s".into(),
            incarnation: Incarnation(1),
            slot: Some(Slot {
                system_identifier: 9,
                database_oid: 5,
                timeline: 1,
                consistent_point: Lsn(1),
                publication: None,
            }),
            server_start: start.map(ServerStart),
            slot_name: "slot".into(),
            publication_name: "p".into(),
            problem: String::new(),
            consumer: None,
            consumer_epoch: ConsumerEpoch(0),
            slot_hold_limit_bytes: None,
            is_paused: false,
            dsn_version: DsnVersion(0),
        }
    }

    fn asked(start: u64, database_oid: u32) -> Option<AskedBy> {
        let start = ServerStart(start);
        Some(AskedBy {
            start,
            database_oid,
        })
    }

    #[test]
    fn p9_only_the_start_and_database_that_are_followed_are_answered() {
        let source = source(Some(81));
        assert_eq!(admit(&source, asked(81, 5), OURS, OURS), Ok(()));
        let other = Stranger::OtherDatabase {
            asked: 6,
            followed: 5,
        };
        for known in [OURS, (LeaseEpoch(1), MapVersion(9))] {
            assert_eq!(admit(&source, asked(81, 6), known, OURS), Err(other));
        }
        assert_eq!(
            admit(&source, asked(82, 5), OURS, OURS),
            Err(Stranger::OtherServer)
        );
        assert_eq!(admit(&source, None, OURS, OURS), Err(Stranger::Nameless));
    }

    #[test]
    fn a_server_that_started_anew_is_a_stranger_for_good_only_by_the_same_map() {
        let source = source(Some(81));
        for known in [
            (LeaseEpoch(2), MapVersion(6)),
            (LeaseEpoch(2), MapVersion(8)),
            (LeaseEpoch(1), MapVersion(7)),
        ] {
            let refused = admit(&source, asked(82, 5), known, OURS);
            assert_eq!(refused, Err(Stranger::Outdated), "{known:?}");
            // What matches is answered, whichever map is newer.
            assert_eq!(admit(&source, asked(81, 5), known, OURS), Ok(()));
        }
    }

    #[test]
    fn a_server_of_0_1_0_is_answered_while_nothing_is_known_of_its_start() {
        let source = source(None);
        assert_eq!(admit(&source, None, OURS, OURS), Ok(()));
        // One that names itself is not, until the consumer has seen it.
        assert_eq!(
            admit(&source, asked(1, 5), OURS, OURS),
            Err(Stranger::OtherServer)
        );
    }
}
