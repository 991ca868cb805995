//! The publication that a source is followed through: whether it is the one that the
//! cluster made, whole, and whether the tables that are followed have been in it all
//! the while. What is not published goes by unseen, and nothing in the stream says so.
//!
//! Names say nothing here: a publication that was dropped and made again, and a table
//! that was taken out and put back, are there whenever somebody looks. Both are known by
//! OIDs: of the publication and of `ruvector.collections` in it with the slot
//! ([`PublicationId`]), of each table's membership with the snapshot that its
//! collection was filled under.
//!
//! A publication that is another one, or publishes less than all, breaks the source's
//! history. A table that came back has its collections compared with it. One that is out
//! fails them.

use crate::collection::{Collection, CollectionState};
use crate::confirm::ReplicaKey;
use crate::ids::{CollectionId, SourceId};
use crate::map::{PartitionMap, PublicationId, ReplicaState};
use std::collections::BTreeMap;

/// What the server says of the publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    pub oid: u32,
    /// Of `ruvector.collections` in it.
    pub definitions: Option<u32>,
    /// Statements that it does not publish.
    pub silenced: Vec<String>,
    pub via_root: bool,
    /// Tables of ours with a row filter or a column list.
    pub narrowed: Vec<String>,
}

impl Publication {
    pub fn id(&self) -> Option<PublicationId> {
        let publication = self.oid;
        self.definitions.map(|definitions| PublicationId {
            publication,
            definitions,
        })
    }

    /// Why it publishes less than all, or otherwise than the consumer reads it.
    pub fn flaw(&self) -> Option<String> {
        if !self.silenced.is_empty() {
            return Some(format!("does not publish {}", self.silenced.join(", ")));
        }
        if self.via_root {
            return Some("publishes partitions under their root's name".to_owned());
        }
        if !self.narrowed.is_empty() {
            let tables = self.narrowed.join(", ");
            return Some(format!("has a row filter or column list for {tables}"));
        }
        None
    }
}

/// What was not published went by unseen. `known`: as noted with the slot.
pub fn gap(
    name: &str,
    found: Option<&Publication>,
    known: Option<PublicationId>,
) -> Option<String> {
    let Some(found) = found else {
        return Some(format!("publication {name} is gone"));
    };
    let Some(id) = found.id() else {
        return Some(format!(
            "ruvector.collections left publication {name}: the extension was created again, or \
             somebody took it out"
        ));
    };
    if let Some(known) = known.filter(|known| *known != id) {
        let what = match known.publication == id.publication {
            true => "ruvector.collections left it, and was put back",
            false => "it was dropped, and made again",
        };
        return Some(format!(
            "publication {name} is not the one that the slot was made for: {what}"
        ));
    }
    let flaw = found.flaw()?;
    Some(format!(
        "publication {name} {flaw}: somebody has altered it, and it is made anew"
    ))
}

/// A complete collection was published before it became complete. One whose replicas
/// are all stale is published by its reconcile, and compared from there.
pub fn complete(map: &PartitionMap, source: SourceId) -> BTreeMap<CollectionId, &Collection> {
    let of_source = map.collections.values().filter(|c| c.spec.source == source);
    of_source
        .filter(|c| c.can_be_copied() || !serving(map, c.id).is_empty())
        .map(|c| (c.id, c))
        .collect()
}

/// The replicas of a complete collection that serve.
pub fn serving(map: &PartitionMap, id: CollectionId) -> Vec<ReplicaKey> {
    let is_complete = map
        .collections
        .get(&id)
        .is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }));
    let partitions = map.partitions.values();
    let partitions = partitions.filter(|p| is_complete && p.collection == id);
    let serving = partitions.flat_map(|p| {
        p.in_state(ReplicaState::Serving).map(|r| ReplicaKey {
            partition: p.id,
            node: r.node,
            generation: r.generation,
        })
    });
    serving.collect()
}

/// What the publication has of the tables of complete collections; tables that are gone
/// apart: the stream tells of their end.
pub struct Memberships {
    /// `None`: the table is not in it.
    pub by_table: BTreeMap<u32, Option<u32>>,
}

impl Memberships {
    fn of(&self, collection: &Collection) -> Option<Option<u32>> {
        self.by_table.get(&collection.spec.table_oid).copied()
    }

    /// Complete collections whose table is out, by both maps: a table is taken out once no
    /// collection needs it.
    pub fn lost(&self, maps: [&PartitionMap; 2], source: SourceId) -> Option<CollectionId> {
        let [before, after] = maps.map(|map| complete(map, source));
        let mut both = before.into_iter().filter(|(id, _)| after.contains_key(id));
        both.find(|(_, c)| self.of(c) == Some(None))
            .map(|(id, _)| id)
    }

    /// Complete collections whose table was out for a while since they were filled, by
    /// both maps: one that was filled meanwhile is noted with a newer membership.
    pub fn returned(&self, maps: [&PartitionMap; 2], source: SourceId) -> Vec<CollectionId> {
        let [before, after] = maps.map(|map| complete(map, source));
        let is_other = |collection: &Collection| {
            let noted = noted(collection);
            let found = self.of(collection).flatten();
            noted.is_some() && found.is_some() && noted != found
        };
        let [_, map] = maps;
        let both = before.into_iter().filter(|(id, collection)| {
            let same = after.get(id).filter(|c| noted(c) == noted(collection));
            same.is_some() && is_other(collection) && !serving(map, *id).is_empty()
        });
        both.map(|(id, _)| id).collect()
    }

    /// Those that were filled by a release that did not note it.
    pub fn unnoted(&self, map: &PartitionMap, source: SourceId) -> BTreeMap<CollectionId, u32> {
        let complete = complete(map, source).into_iter();
        let unnoted = complete.filter(|(_, c)| noted(c).is_none());
        unnoted
            .filter_map(|(id, c)| Some((id, self.of(c).flatten()?)))
            .collect()
    }
}

/// The membership that a complete collection was filled under.
fn noted(collection: &Collection) -> Option<u32> {
    match &collection.state {
        CollectionState::Ready { snapshot } => snapshot.membership,
        _ => None,
    }
}

#[cfg(test)]
#[path = "publication_tests.rs"]
mod tests;
