//! The databases that the cluster follows, and who follows them.

use super::command::{Refusal, Response};
use super::state::*;
use crate::collection::CollectionState;
use crate::ids::*;
use crate::map::{Slot, Source};
use std::collections::BTreeMap;

/// One publication per database; whole tables only.
const PUBLICATION_NAME: &str = "ruvector";
/// Postgres keeps no more of a name.
const SLOT_NAME_BYTES_MAX: usize = 63;
/// Stands before the incarnation in the name of a slot whose first name was taken.
const SLOT_INCARNATION_INFIX: &str = "_i";
/// Keeps the slot's name within Postgres's 63 bytes.
const SLOT_CLUSTER_PREFIX_LEN: usize = 12;

/// Slot names take lower-case letters, digits and underscores.
fn slot_name(cluster_id: &str, source: SourceId) -> String {
    let prefix: String = cluster_id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .take(SLOT_CLUSTER_PREFIX_LEN)
        .collect();
    format!("ruvector_{prefix}_{}", source.0)
}

/// A break gives the slot another name: its first one, or that with the incarnation behind it.
pub(super) fn check_slot_name(known: &str, new: &str) -> Result<(), Refusal> {
    let base = base_of_slot_name(known);
    let is_ours = new == base || base_of_slot_name(new) == base;
    if is_ours && new.len() <= SLOT_NAME_BYTES_MAX {
        return Ok(());
    }
    let what = format!("{new:?} is no name for the slot that follows {known:?}");
    Err(Refusal::Invalid { what })
}

/// The name that the source's first slot was given.
pub fn base_of_slot_name(name: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match name.rsplit_once(SLOT_INCARNATION_INFIX) {
        Some((base, incarnation)) if is_number(incarnation) => base,
        _ => name,
    }
}

/// What the slot may be called that a break makes, the best name first. Never as the
/// former one: a slot that a crash left unrecorded would be taken for it, and what lies
/// between the two would be missing.
pub fn names_of_next_slot(known: &str, next: Incarnation) -> Vec<String> {
    let base = base_of_slot_name(known);
    let mut names = vec![base.to_owned(), slot_name_of_incarnation(base, next)];
    names.retain(|name| name != known);
    names
}

/// What a slot is called that cannot have the first name.
pub fn slot_name_of_incarnation(base: &str, incarnation: Incarnation) -> String {
    format!("{base}{SLOT_INCARNATION_INFIX}{}", incarnation.0)
}

impl ClusterState {
    pub(super) fn add_source(&mut self, name: String, dsn: String) -> Outcome {
        if name.is_empty() || dsn.is_empty() {
            let what = "a source needs a name and a connection string".to_owned();
            return Err(Refusal::Invalid { what });
        }
        if let Some(source) = self.map.sources.values().find(|s| s.name == name) {
            if self.dsn(source.id) == Some(dsn.as_str()) {
                return Ok((Response::SourceAdded { source: source.id }, MapChanged::No));
            }
            let what = format!(
                "the name {name:?} belongs to {} with another DSN: ruvector ctl source set-dsn gives it this one",
                source.id
            );
            return Err(Refusal::Conflict { what });
        }
        if let Some((id, _)) = self.dsns.iter().find(|(_, known)| **known == dsn) {
            let what = format!("this DSN is registered as {id} under another name");
            return Err(Refusal::Conflict { what });
        }
        if self.map.sources.len() >= SOURCES_MAX {
            return Err(Refusal::Full {
                of: "sources".to_owned(),
                limit: SOURCES_MAX,
            });
        }
        let id = self.last.source.next();
        self.last.source = id;
        self.dsns.insert(id, dsn);
        let source = Source {
            id,
            name,
            incarnation: Incarnation(1),
            slot: None,
            server_start: None,
            slot_hold_limit_bytes: None,
            slot_name: slot_name(&self.map.cluster_id, id),
            publication_name: PUBLICATION_NAME.to_owned(),
            problem: String::new(),
            consumer: None,
            consumer_epoch: ConsumerEpoch(0),
            is_paused: false,
            dsn_version: DsnVersion(0),
        };
        self.map.sources.insert(id, source);
        Ok((Response::SourceAdded { source: id }, MapChanged::Yes))
    }

    pub(super) fn remove_source(&mut self, source: SourceId) -> Outcome {
        if self.map.sources.remove(&source).is_none() {
            return Ok((Response::Done, MapChanged::No));
        }
        self.dsns.remove(&source);
        self.remove_collections(|collection| collection.spec.source == source);
        Ok((Response::Done, MapChanged::Yes))
    }

    /// `expected` makes a repeated command one assignment: the token rises once.
    pub(super) fn assign_source(
        &mut self,
        source: SourceId,
        consumer: ConsumerId,
        expected: ConsumerEpoch,
    ) -> Outcome {
        if !self.consumers.contains_key(&consumer) {
            return Err(Refusal::UnknownConsumer { consumer });
        }
        let record = self
            .map
            .sources
            .get_mut(&source)
            .ok_or(Refusal::UnknownSource { of: source })?;
        let token = expected.next();
        if record.consumer == Some(consumer) && record.consumer_epoch == token {
            return Ok((Response::SourceAssigned { token }, MapChanged::No));
        }
        if record.consumer_epoch != expected {
            let current = record.consumer_epoch;
            return Err(Refusal::Fenced {
                of: source,
                given: expected,
                current,
            });
        }
        record.consumer = Some(consumer);
        record.consumer_epoch = token;
        Ok((Response::SourceAssigned { token }, MapChanged::Yes))
    }

    /// The slot's identity is told once. Another one means a [break](super::breaks)
    /// in the source's history, which is not what a report may decide. The server's start is
    /// told again whenever the consumer finds another.
    pub(super) fn report_source(
        &mut self,
        source: SourceId,
        token: ConsumerEpoch,
        slot: Option<Slot>,
        server_start: Option<ServerStart>,
        problem: String,
    ) -> Outcome {
        self.check_token(source, token)?;
        let record = self
            .map
            .sources
            .get_mut(&source)
            .expect("the token was checked");
        if let (Some(told), Some(known)) = (&slot, &record.slot)
            && !known.is_told_by(told)
        {
            let what = format!(
                "{source} is known with the slot {known:?}; {told:?} is another history, \
                 which needs a new incarnation"
            );
            return Err(Refusal::Conflict { what });
        }
        let slot = slot.or_else(|| record.slot.clone());
        let server_start = server_start.or(record.server_start);
        let changed =
            record.slot != slot || record.server_start != server_start || record.problem != problem;
        record.slot = slot;
        record.server_start = server_start;
        record.problem = problem;
        Ok((
            Response::Done,
            if changed {
                MapChanged::Yes
            } else {
                MapChanged::No
            },
        ))
    }

    /// What collections were filled under that a release filled which did not note it;
    /// what is noted stays. Whether there was any.
    pub(super) fn note_memberships(
        &mut self,
        source: SourceId,
        memberships: &BTreeMap<CollectionId, u32>,
    ) -> bool {
        let mut is_news = false;
        for (id, membership) in memberships {
            let record = self.map.collections.get_mut(id);
            let record = record.filter(|c| c.spec.source == source);
            if let Some(CollectionState::Ready { snapshot }) = record.map(|c| &mut c.state)
                && snapshot.membership.is_none()
            {
                snapshot.membership = Some(*membership);
                is_news = true;
            }
        }
        is_news
    }

    /// Only the holder of the current token speaks for a source (P5).
    pub(super) fn check_token(
        &self,
        source: SourceId,
        given: ConsumerEpoch,
    ) -> Result<(), Refusal> {
        let record = self
            .map
            .sources
            .get(&source)
            .ok_or(Refusal::UnknownSource { of: source })?;
        let current = record.consumer_epoch;
        if record.consumer.is_none() || given != current {
            return Err(Refusal::Fenced {
                of: source,
                given,
                current,
            });
        }
        Ok(())
    }
}
