//! Whether the tables that are followed are still published: once one has left
//! the publication, its changes go by unseen, and nothing in the stream says so.

use super::SourceContext;
use crate::feed::progress::RunEnd;
use anyhow::Context;
use cluster_core::collection::CollectionState;
use cluster_core::ids::{CollectionId, SourceId};
use cluster_core::map::{PartitionMap, ReplicaState};
use std::collections::BTreeMap;
use tokio_postgres::Client;

/// Not those that are gone: the stream tells of their end. Nor any if the whole
/// publication is gone, which the next run finds.
const UNPUBLISHED: &str = "
SELECT c.oid FROM pg_publication p, pg_class c
 WHERE p.pubname = $1 AND c.oid = ANY ($2)
   AND NOT EXISTS (SELECT 1 FROM pg_publication_rel r
                    WHERE r.prpubid = p.oid AND r.prrelid = c.oid)";

/// The extension may have been dropped and created again between two looks.
const DEFINITIONS: &str = "
SELECT 1 FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
 WHERE p.pubname = $1 AND r.prrelid = to_regclass('ruvector.collections')";

const REASON: &str =
    "the table left the publication of its source: changes are missing; REINDEX builds it anew";

/// A complete collection was published before it became complete. One whose replicas
/// are all stale is published by its reconcile, and compared from there.
fn complete(map: &PartitionMap, source: SourceId) -> BTreeMap<CollectionId, u32> {
    let of_source = map.collections.values().filter(|c| c.spec.source == source);
    of_source
        .filter(|c| c.can_be_copied() || serves(map, c.id))
        .map(|c| (c.id, c.spec.table_oid))
        .collect()
}

fn serves(map: &PartitionMap, id: CollectionId) -> bool {
    let is_complete = map
        .collections
        .get(&id)
        .is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }));
    let mut partitions = map.partitions.values().filter(|p| p.collection == id);
    is_complete && partitions.any(|p| p.in_state(ReplicaState::Serving).next().is_some())
}

/// Fails with the collection whose table has left the publication.
pub async fn check(
    context: &SourceContext,
    client: &Client,
    publication: &str,
) -> anyhow::Result<()> {
    let followed = complete(&context.client.map(), context.source);
    let tables: Vec<u32> = followed.values().copied().collect();
    let unpublished = client
        .query(UNPUBLISHED, &[&publication, &tables])
        .await
        .context("looking into the publication")?;
    let listed = client
        .query_opt(DEFINITIONS, &[&publication])
        .await
        .context("looking for ruvector.collections in the publication")?;
    // The next run names what is wrong.
    anyhow::ensure!(
        listed.is_some(),
        "ruvector.collections is not in the publication: indexes come and go unseen"
    );
    // A table is taken out once no collection needs it: only one that is complete
    // before and after has lost something.
    let still = complete(&context.client.map(), context.source);
    for row in unpublished {
        let table: u32 = row.try_get("oid")?;
        let lost = followed
            .iter()
            .find(|(id, of)| **of == table && still.contains_key(id));
        if let Some((collection, _)) = lost {
            return Err(anyhow::Error::new(RunEnd::Lost {
                collection: *collection,
                reason: REASON.to_owned(),
            }));
        }
    }
    Ok(())
}
