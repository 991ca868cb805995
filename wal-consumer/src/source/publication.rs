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
//! history ([`super::breaks`]). A table that came back has its collections compared with
//! it. One that is out fails them: the consumer puts nothing back that somebody took out.

use super::SourceContext;
use super::coordination;
use super::rights;
use crate::feed::progress::RunEnd;
use anyhow::Context;
use cluster_core::collection::{Collection, CollectionState};
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::{CollectionId, SourceId};
use cluster_core::map::{PartitionMap, PublicationId, ReplicaState, Source};
use std::collections::BTreeMap;
use tokio_postgres::Client;

const LOOK: &str = "
SELECT p.oid, p.pubviaroot,
       array_remove(ARRAY[CASE WHEN NOT p.pubinsert THEN 'INSERT' END,
                          CASE WHEN NOT p.pubupdate THEN 'UPDATE' END,
                          CASE WHEN NOT p.pubdelete THEN 'DELETE' END,
                          CASE WHEN NOT p.pubtruncate THEN 'TRUNCATE' END], NULL) AS silenced,
       (SELECT r.oid FROM pg_publication_rel r
         WHERE r.prpubid = p.oid
           AND r.prrelid = to_regclass('ruvector.collections')) AS definitions,
       ARRAY(SELECT r.prrelid::regclass::text FROM pg_publication_rel r
              WHERE r.prpubid = p.oid AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)
                AND (r.prrelid = ANY ($2) OR r.prrelid = to_regclass('ruvector.collections'))
              ORDER BY 1) AS narrowed
  FROM pg_publication p WHERE p.pubname = $1";

/// What the server says of the publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    oid: u32,
    /// Of `ruvector.collections` in it.
    definitions: Option<u32>,
    /// Statements that it does not publish.
    silenced: Vec<String>,
    via_root: bool,
    /// Tables of ours with a row filter or a column list.
    narrowed: Vec<String>,
}

pub async fn look(
    client: &Client,
    map: &PartitionMap,
    source: &Source,
) -> anyhow::Result<Option<Publication>> {
    let of_source = map.collections.values();
    let of_source = of_source.filter(|c| c.spec.source == source.id);
    let tables: Vec<u32> = of_source.map(|c| c.spec.table_oid).collect();
    let row = client
        .query_opt(LOOK, &[&source.publication_name, &tables])
        .await
        .context("looking at the publication")?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Publication {
        oid: row.try_get("oid")?,
        definitions: row.try_get("definitions")?,
        silenced: row.try_get("silenced")?,
        via_root: row.try_get("pubviaroot")?,
        narrowed: row.try_get("narrowed")?,
    }))
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
    fn flaw(&self) -> Option<String> {
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

/// Has the publication there, and whole, before a slot is made for it. One that was
/// altered is dropped: its tables come back one by one as they are filled.
pub async fn restore(
    client: &Client,
    map: &PartitionMap,
    source: &Source,
) -> Result<PublicationId, RunEnd> {
    let name = &source.publication_name;
    let mut found = look(client, map, source).await?;
    if found.as_ref().is_some_and(|found| found.flaw().is_some()) {
        let statement = rights::drop_publication(client, name).await?;
        client
            .batch_execute(&statement)
            .await
            .context("dropping the publication that was altered")?;
        found = look(client, map, source).await?;
    }
    if found.as_ref().and_then(Publication::id).is_none() {
        let statement = rights::create_publication(client, name, found.is_some()).await?;
        client
            .batch_execute(&statement)
            .await
            .context("making the publication")?;
        found = look(client, map, source).await?;
    }
    let whole = found.filter(|found| found.flaw().is_none());
    whole.as_ref().and_then(Publication::id).ok_or_else(|| {
        RunEnd::Problem(format!(
            "publication {name} is not as the cluster makes it, and could not be made anew: \
             drop it"
        ))
    })
}

/// By table: the OID of its membership.
pub type Memberships = BTreeMap<u32, u32>;

const MEMBERSHIPS: &str = "
SELECT c.oid AS table_oid, r.oid AS membership
  FROM pg_class c
  LEFT JOIN (pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = $1)
    ON r.prrelid = c.oid
 WHERE c.oid = ANY ($2)";

const REASON: &str =
    "the table left the publication of its source: changes are missing; REINDEX builds it anew";

/// A complete collection was published before it became complete. One whose replicas
/// are all stale is published by its reconcile, and compared from there.
fn complete(map: &PartitionMap, source: SourceId) -> BTreeMap<CollectionId, &Collection> {
    let of_source = map.collections.values().filter(|c| c.spec.source == source);
    of_source
        .filter(|c| c.can_be_copied() || !serving(map, c.id).is_empty())
        .map(|c| (c.id, c))
        .collect()
}

/// The replicas of a complete collection that serve.
fn serving(map: &PartitionMap, id: CollectionId) -> Vec<ReplicaKey> {
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
pub struct Published {
    /// `None`: the table is not in it.
    by_table: BTreeMap<u32, Option<u32>>,
}

impl Published {
    pub async fn read(
        client: &Client,
        map: &PartitionMap,
        source: &Source,
    ) -> anyhow::Result<Self> {
        let followed = complete(map, source.id).into_values();
        let tables: Vec<u32> = followed.map(|c| c.spec.table_oid).collect();
        let rows = client
            .query(MEMBERSHIPS, &[&source.publication_name, &tables])
            .await
            .context("looking into the publication")?;
        let mut by_table = BTreeMap::new();
        for row in rows {
            by_table.insert(row.try_get("table_oid")?, row.try_get("membership")?);
        }
        Ok(Self { by_table })
    }

    fn of(&self, collection: &Collection) -> Option<Option<u32>> {
        self.by_table.get(&collection.spec.table_oid).copied()
    }

    /// Complete collections whose table is out, by both maps: a table is taken out once no
    /// collection needs it.
    fn lost(&self, maps: [&PartitionMap; 2], source: SourceId) -> Option<CollectionId> {
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
    fn unnoted(&self, map: &PartitionMap, source: SourceId) -> BTreeMap<CollectionId, u32> {
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

/// Before the stream begins: collections whose table came back are compared with it, and
/// what is not noted yet is. Whether something was found that the stream does not tell.
pub async fn settle(
    context: &SourceContext,
    client: &Client,
    source: &Source,
) -> Result<bool, RunEnd> {
    let map = context.client.map();
    let published = Published::read(client, &map, source).await?;
    let unnoted = published.unnoted(&map, source.id);
    if !unnoted.is_empty() {
        coordination::note_memberships(context, unnoted).await?;
    }
    let returned = published.returned([&map, &map], source.id);
    for id in &returned {
        let spec = &map.collections[id].spec;
        let reason = format!(
            "table {}.{} left publication {} and came back: changes may be missing. The index \
             answers old data, flagged, until it is reconciled with its table",
            spec.schema_name, spec.table_name, source.publication_name
        );
        tracing::error!(source = %source.id, collection = %id, reason, "a table was not published for a while");
        coordination::mark_stale(context, &serving(&map, *id), &reason).await?;
    }
    Ok(!returned.is_empty())
}

/// While it streams: fails with what the next run puts right, or with the collection whose
/// table has left the publication.
pub async fn check(context: &SourceContext, client: &Client) -> anyhow::Result<()> {
    let before = context.client.map();
    // One that was removed has nothing to lose.
    let Some(source) = before.sources.get(&context.source) else {
        return Ok(());
    };
    let found = look(client, &before, source).await?;
    let known = source.slot.as_ref().and_then(|slot| slot.publication);
    if let Some(why) = gap(&source.publication_name, found.as_ref(), known) {
        return Err(RunEnd::restart("publication", why).into());
    }
    let published = Published::read(client, &before, source).await?;
    let after = context.client.map();
    let maps = [&*before, &*after];
    if let Some(collection) = published.lost(maps, source.id) {
        let reason = REASON.to_owned();
        return Err(RunEnd::Lost { collection, reason }.into());
    }
    if let Some(collection) = published.returned(maps, source.id).first() {
        let why = format!("the table of {collection} left the publication and came back");
        return Err(RunEnd::restart("publication", why).into());
    }
    Ok(())
}

#[cfg(test)]
#[path = "publication_tests.rs"]
mod tests;
