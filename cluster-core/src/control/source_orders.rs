//! What an operator orders of a source that is followed already: to stop for a
//! while, or to be reached by another connection string. Whoever holds the source
//! learns of both from the map.

use super::command::{Refusal, Response};
use super::state::*;
use crate::ids::SourceId;
use crate::map::Source;

impl ClusterState {
    pub(super) fn set_source_paused(&mut self, source: SourceId, is_paused: bool) -> Outcome {
        let record = self.known_source(source)?;
        let changed = record.is_paused != is_paused;
        record.is_paused = is_paused;
        Ok((Response::Done, MapChanged::from(changed)))
    }

    /// Whether it leads to the same database only the consumer can see; it refuses
    /// to follow another one.
    pub(super) fn set_source_dsn(&mut self, source: SourceId, dsn: String) -> Outcome {
        if dsn.is_empty() {
            let what = "a source needs a connection string".to_owned();
            return Err(Refusal::Invalid { what });
        }
        let mut others = self.dsns.iter().filter(|(id, _)| **id != source);
        if let Some((other, _)) = others.find(|(_, known)| **known == dsn) {
            let what = format!("this DSN is registered as {other}");
            return Err(Refusal::Conflict { what });
        }
        let is_known = self.dsn(source) == Some(dsn.as_str());
        let record = self.known_source(source)?;
        if is_known {
            return Ok((Response::Done, MapChanged::No));
        }
        record.dsn_version = record.dsn_version.next();
        self.dsns.insert(source, dsn);
        Ok((Response::Done, MapChanged::Yes))
    }

    fn known_source(&mut self, source: SourceId) -> Result<&mut Source, Refusal> {
        let known = self.map.sources.get_mut(&source);
        known.ok_or(Refusal::UnknownSource { of: source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Command;
    use crate::control::command::CoordinatorMember;
    use crate::ids::DsnVersion;

    const FIRST: SourceId = SourceId(1);

    fn two_sources() -> ClusterState {
        let mut state = ClusterState::default();
        let members = vec![CoordinatorMember {
            id: 1,
            address: "a:1".into(),
        }];
        state.apply(Command::Initialise {
            cluster_id: "c".into(),
            members,
        });
        for name in ["first", "second"] {
            state.apply(Command::AddSource {
                name: name.into(),
                dsn: format!("postgresql://{name}/db"),
            });
        }
        state
    }

    #[test]
    fn a_pause_changes_the_map_once_and_ends_with_the_order_to_go_on() {
        let mut state = two_sources();
        let mut order = |is_paused| {
            let source = FIRST;
            state.apply(Command::SetSourcePaused { source, is_paused });
            (state.map().version, state.map().sources[&FIRST].is_paused)
        };
        let (first, is_paused) = order(true);
        assert!(is_paused);
        assert_eq!(order(true), (first, true), "a repeated order is one");
        assert_eq!(order(false), (first.next(), false));
        let unknown = Command::SetSourcePaused {
            source: SourceId(9),
            is_paused: true,
        };
        let refused = state.apply(unknown);
        assert!(matches!(
            refused,
            Response::Refused(Refusal::UnknownSource { .. })
        ));
    }

    #[test]
    fn p9_another_connection_string_raises_its_version_and_is_never_another_sources() {
        let mut state = two_sources();
        let mut order = |dsn: &str| {
            let dsn = dsn.to_owned();
            let answer = state.apply(Command::SetSourceDsn { source: FIRST, dsn });
            (answer, state.map().sources[&FIRST].dsn_version)
        };
        let moved = "postgresql://moved/db";
        assert_eq!(order(moved), (Response::Done, DsnVersion(1)));
        assert_eq!(order(moved), (Response::Done, DsnVersion(1)));
        let (answer, version) = order("postgresql://second/db");
        assert!(matches!(
            answer,
            Response::Refused(Refusal::Conflict { .. })
        ));
        assert_eq!(version, DsnVersion(1));
        assert_eq!(state.dsn(FIRST), Some(moved));
    }

    #[test]
    fn a_map_of_an_older_release_is_read_as_not_paused() {
        let state = two_sources();
        let mut source = serde_json::to_value(&state.map().sources[&FIRST]).expect("JSON");
        let fields = source.as_object_mut().expect("an object");
        fields.remove("is_paused");
        fields.remove("dsn_version");
        let read: Source = serde_json::from_value(source).expect("an older source");
        assert_eq!(read, state.map().sources[&FIRST]);
    }
}
