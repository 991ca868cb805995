//! The publication that a source is followed through, as it is read and put right. What
//! is found is judged in [`cluster_core::publication`].
//!
//! Of a complete collection the consumer puts nothing back that somebody took out: a table
//! that has left fails it.

use super::SourceContext;
use super::coordination;
use super::rights;
use crate::feed::progress::RunEnd;
use anyhow::Context;
use cluster_core::map::{PartitionMap, PublicationId, Source};
use cluster_core::publication::{Memberships, Publication, complete, gap, serving};
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

/// Has the publication there, and whole, before a slot is made for it. One of ours that
/// was altered is dropped: its tables come back one by one as they are filled. Before the
/// first slot nothing shows that it is ours.
pub async fn restore(
    client: &Client,
    map: &PartitionMap,
    source: &Source,
) -> Result<PublicationId, RunEnd> {
    let name = &source.publication_name;
    let mut found = look(client, map, source).await?;
    if let Some(flaw) = found.as_ref().and_then(Publication::flaw) {
        if source.slot.is_none() {
            return Err(RunEnd::Problem(format!(
                "there is a publication {name} already, which {flaw}: drop it, or rename it, if \
                 it is not the cluster's"
            )));
        }
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

const MEMBERSHIPS: &str = "
SELECT c.oid AS table_oid, r.oid AS membership
  FROM pg_class c
  LEFT JOIN (pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = $1)
    ON r.prrelid = c.oid
 WHERE c.oid = ANY ($2)";

const REASON: &str =
    "the table left the publication of its source: changes are missing; REINDEX builds it anew";

async fn memberships(
    client: &Client,
    map: &PartitionMap,
    source: &Source,
) -> anyhow::Result<Memberships> {
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
    Ok(Memberships { by_table })
}

/// Before the stream begins: collections whose table came back are compared with it, and
/// what is not noted yet is. Whether something was found that the stream does not tell.
pub async fn settle(
    context: &SourceContext,
    client: &Client,
    source: &Source,
) -> Result<bool, RunEnd> {
    let map = context.client.map();
    let published = memberships(client, &map, source).await?;
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
        coordination::mark_stale(context, &serving(&map, *id), |_| reason.clone()).await?;
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
    let published = memberships(client, &before, source).await?;
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
