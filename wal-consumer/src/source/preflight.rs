//! What must be so before a source is streamed, each failing by its own name;
//! and the slot, made or taken over.
//!
//! Takeover: the token goes to the nodes first, then the former walsender is
//! ended, then the slot is compared with the replicas. Where the slot stands above
//! the durable watermarks of all of a complete partition's replicas, what lies
//! between is lost: the collection fails, and the others go on. One of several
//! that is below is demoted once it is met, and comes back from a peer.

use super::coordination::{self, wait_for_map};
use super::postgres::Postgres;
use super::{SourceContext, definitions, detachment, rights, sql};
use crate::feed::progress::{Following, RunEnd};
use crate::replication::connection::Connection;
use crate::replication::slot::{self, Lifetime, SystemIdentity};
use anyhow::Context;
use cluster_core::checklist::server as checklist;
use cluster_core::collection::CollectionState;
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::{CollectionId, Generation, NodeId, PartitionId, ServerStart};
use cluster_core::map::{PartitionMap, ReplicaState, Slot, Source};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// How long an ended walsender may take to let go of the slot.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A source that can be streamed.
pub struct Prepared {
    pub postgres: Postgres,
    pub sql: Client,
    pub slot_name: String,
    pub publication: String,
    pub following: Following,
}

struct SlotRow {
    active_pid: Option<i32>,
    confirmed: Option<Lsn>,
    wal_status: Option<String>,
    is_ours: bool,
}

pub async fn prepare(context: &SourceContext) -> Result<Prepared, RunEnd> {
    // A map of before the assignment may lack collections of the former consumer.
    let is_ours = |map: &PartitionMap| {
        let source = map.sources.get(&context.source);
        let is_current = map.stamp() >= context.map_floor;
        is_current && source.is_some_and(|s| s.consumer_epoch >= context.token)
    };
    let map = wait_for_map(context, is_ours).await?;
    let source = &map.sources[&context.source];
    slot::check_name(&source.slot_name)?;
    slot::check_name(&source.publication_name)?;

    // The map names the file of its password.
    let postgres = coordination::server(context).await?;
    let sql = connect(&postgres).await?;
    let server = check_server(&sql).await?;
    detachment::check(&sql, &source.slot_name).await?;
    let mut connection = Connection::connect(&postgres, "").await?;
    let system = slot::identify_system(&mut connection).await?;
    drop(connection);
    check_identity(source, system, server.database_oid)?;
    ensure_publication(&sql, source).await?;

    let known = match &source.slot {
        Some(slot) => slot.clone(),
        None => {
            let consistent_point = make_slot(context, &postgres, &sql, source, &map).await?;
            let slot = Slot {
                system_identifier: system.system_identifier,
                database_oid: server.database_oid,
                timeline: system.timeline,
                consistent_point,
            };
            coordination::report(context, Some(&slot), server.start, "").await?;
            // The next run must not take the slot for one that was never used.
            let has_slot = |map: &PartitionMap| {
                let source = map.sources.get(&context.source);
                source.is_none_or(|s| s.slot.is_some())
            };
            wait_for_map(context, has_slot).await?;
            slot
        }
    };
    let floors = install_token(context).await?;
    let confirmed = take_over(&sql, source).await?;
    let following = Following {
        source: source.id,
        token: context.token,
        incarnation: source.incarnation,
        start: confirmed.max(known.consistent_point),
    };
    check_history(&floors, following.end_of(flushed(&sql).await?))?;
    if server.start != source.server_start && source.slot.is_some() {
        coordination::report(context, None, server.start, "").await?;
    }
    let lost = below_slot(&context.client.map(), &floors, following.end_of(confirmed));
    for (collection, reason) in lost {
        coordination::give_up(context, collection, &reason).await?;
    }
    Ok(Prepared {
        postgres,
        sql,
        slot_name: source.slot_name.clone(),
        publication: source.publication_name.clone(),
        following,
    })
}

/// What the server says of itself.
struct Server {
    database_oid: u32,
    /// `None` where the extension's library is not preloaded.
    start: Option<ServerStart>,
}

/// A database that is gone, or has another name, does not come back by waiting.
async fn connect(postgres: &Postgres) -> Result<Client, RunEnd> {
    sql::connect(postgres).await.map_err(|error| {
        let state = error
            .downcast_ref::<tokio_postgres::Error>()
            .and_then(tokio_postgres::Error::code);
        if state == Some(&SqlState::INVALID_CATALOG_NAME) {
            let database = postgres.database();
            return RunEnd::Problem(format!(
                "there is no database {database}: it was dropped or renamed. Remove the source; \
                 add it again under the new name"
            ));
        }
        RunEnd::from(error)
    })
}

async fn check_server(sql: &Client) -> Result<Server, RunEnd> {
    let query = "SELECT current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS standby, \
                 (SELECT oid FROM pg_database WHERE datname = current_database()) AS database_oid, \
                 to_regclass('ruvector.collections') IS NOT NULL AS has_table, \
                 current_setting('ruvector.server_start', true) AS server_start, \
                 current_database()::text AS database";
    let row = sql
        .query_one(query, &[])
        .await
        .context("looking at the server")?;
    let field = |e: tokio_postgres::Error| RunEnd::from(anyhow::Error::new(e));
    let wal_level: String = row.try_get("wal_level").map_err(field)?;
    let database: String = row.try_get("database").map_err(field)?;
    let has_table: bool = row.try_get("has_table").map_err(field)?;
    let checks = [
        checklist::primary(row.try_get("standby").map_err(field)?),
        checklist::wal_level(&wal_level),
        checklist::extension(&database, has_table.then_some("")),
    ];
    if let Some(failed) = checks.iter().find(|check| check.is_failed()) {
        return Err(RunEnd::Problem(failed.sentence()));
    }
    let start: Option<String> = row.try_get("server_start").map_err(field)?;
    let start = start.and_then(|text| text.parse().ok()).filter(|n| *n > 0);
    Ok(Server {
        database_oid: row.try_get("database_oid").map_err(field)?,
        start: start.map(ServerStart),
    })
}

/// How far the server's WAL is on its disk: asked for once no former consumer feeds
/// replicas any more.
async fn flushed(sql: &Client) -> anyhow::Result<Lsn> {
    let row = sql
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await
        .context("reading the server's WAL position")?;
    Ok(row.try_get::<_, String>(0)?.parse()?)
}

/// A server whose WAL ends below what a replica has of it was put back: an older copy of
/// its files, which has the same identifiers, writes another history from there.
fn check_history(floors: &Floors, flushed: WalPosition) -> Result<(), RunEnd> {
    let highest = floors.iter().max_by_key(|(_, durable)| **durable);
    let Some((replica, durable)) = highest.filter(|(_, durable)| **durable > flushed) else {
        return Ok(());
    };
    Err(RunEnd::Problem(format!(
        "another history: the server's WAL ends at {flushed}, but {} on {} holds changes up to {durable}. \
         The server was restored, or is a copy; not followed, so that nothing wrong is served. \
         Remove the source and add it again",
        replica.partition, replica.node
    )))
}

fn check_identity(
    source: &Source,
    system: SystemIdentity,
    database_oid: u32,
) -> Result<(), RunEnd> {
    let Some(known) = &source.slot else {
        return Ok(());
    };
    let found = (system.system_identifier, database_oid, system.timeline);
    let expected = (known.system_identifier, known.database_oid, known.timeline);
    if found == expected {
        return Ok(());
    }
    Err(RunEnd::Problem(format!(
        "another history: system {}, database {}, timeline {} instead of system {}, database {}, \
         timeline {}; not followed, so that nothing wrong is served. Remove the source and add it again",
        found.0, found.1, found.2, expected.0, expected.1, expected.2
    )))
}

async fn ensure_publication(client: &Client, source: &Source) -> Result<(), RunEnd> {
    let name = sql::identifier(&source.publication_name);
    let exists = client
        .query_opt(
            "SELECT 1 FROM pg_publication WHERE pubname = $1",
            &[&source.publication_name],
        )
        .await
        .context("looking for the publication")?
        .is_some();
    if !exists {
        if source.slot.is_some() {
            return Err(RunEnd::Problem(format!(
                "publication {name} is gone, and what was published meanwhile is unknown; remove the source and add it again"
            )));
        }
        let create = rights::create_publication(client, &source.publication_name, false).await?;
        client
            .batch_execute(&create)
            .await
            .context("creating the publication")?;
        return Ok(());
    }
    let listed = client
        .query_opt(
            "SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
             WHERE p.pubname = $1 AND r.prrelid = 'ruvector.collections'::regclass",
            &[&source.publication_name],
        )
        .await
        .context("looking into the publication")?
        .is_some();
    match (listed, &source.slot) {
        (true, _) => Ok(()),
        (false, None) => {
            let add = rights::create_publication(client, &source.publication_name, true).await?;
            Ok(client
                .batch_execute(&add)
                .await
                .context("completing the publication")?)
        }
        (false, Some(_)) => Err(RunEnd::Problem(format!(
            "ruvector.collections left publication {name}: was the extension created again? Remove the source and add it again"
        ))),
    }
}

/// Creates the slot, and every collection that its snapshot lists. The slot
/// counts only once it was reported: one that a crash left behind is replaced.
async fn make_slot(
    context: &SourceContext,
    postgres: &Postgres,
    client: &Client,
    source: &Source,
    map: &PartitionMap,
) -> Result<Lsn, RunEnd> {
    if let Some(left_over) = read_slot(client, &source.slot_name).await? {
        release(client, &source.slot_name, left_over).await?;
        client
            .execute("SELECT pg_drop_replication_slot($1)", &[&source.slot_name])
            .await
            .context("dropping a slot that was never used")?;
    }
    let options = format!("-c lock_timeout={}", context.config.slot_lock_timeout_ms);
    let mut connection = Connection::connect(postgres, &options).await?;
    detachment::check_before_slot(&mut connection, &source.slot_name).await?;
    let created = slot::create(&mut connection, &source.slot_name, Lifetime::Permanent).await?;
    let reading = sql::connect(postgres).await?;
    begin_at_snapshot(&reading, &created.snapshot).await?;
    let specs = definitions::read_all(&reading, source.id).await?;
    drop(connection);
    for spec in &specs {
        coordination::create_collection(context, spec).await?;
    }
    for collection in map
        .collections
        .values()
        .filter(|c| c.spec.source == source.id)
    {
        let spec = &collection.spec;
        let is_listed = specs.iter().any(|s| {
            (s.index_oid, s.definition_generation) == (spec.index_oid, spec.definition_generation)
        });
        if !is_listed {
            let generation = spec.definition_generation;
            coordination::drop_collection(context, spec.index_oid, generation).await?;
        }
    }
    for spec in &specs {
        // A drop above takes every lower generation with it; a refused one is void.
        if let Some(id) = coordination::create_collection(context, spec).await? {
            wait_for_map(context, |map| map.collections.contains_key(&id)).await?;
        }
    }
    tracing::info!(source = %source.id, slot = source.slot_name, consistent_point = %created.consistent_point, collections = specs.len(), "slot created");
    Ok(created.consistent_point)
}

pub async fn begin_at_snapshot(client: &Client, snapshot: &str) -> anyhow::Result<()> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        sql::literal(snapshot)
    );
    client
        .batch_execute(&begin)
        .await
        .context("taking the slot's snapshot")
}

async fn read_slot(client: &Client, name: &str) -> anyhow::Result<Option<SlotRow>> {
    let row = client
        .query_opt(
            "SELECT active_pid, confirmed_flush_lsn::text AS confirmed, wal_status, \
             plugin = 'pgoutput' AND database = current_database() AS is_ours \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await
        .context("looking for the slot")?;
    let Some(row) = row else { return Ok(None) };
    let confirmed: Option<String> = row.try_get("confirmed")?;
    Ok(Some(SlotRow {
        active_pid: row.try_get("active_pid")?,
        confirmed: confirmed.map(|text| text.parse()).transpose()?,
        wal_status: row.try_get("wal_status")?,
        is_ours: row.try_get::<_, Option<bool>>("is_ours")?.unwrap_or(false),
    }))
}

/// Ends the walsender that holds the slot, and answers what it had confirmed.
async fn take_over(client: &Client, source: &Source) -> Result<Lsn, RunEnd> {
    let name = &source.slot_name;
    let lost = |why: &str| {
        RunEnd::Problem(format!(
            "slot {name} {why}: changes may be missing, so nothing is followed. Remove the source and add it again"
        ))
    };
    let Some(found) = read_slot(client, name).await? else {
        return Err(lost("is gone"));
    };
    release(client, name, found).await?;
    let Some(slot) = read_slot(client, name).await? else {
        return Err(lost("is gone"));
    };
    if !slot.is_ours {
        return Err(lost("belongs to another database or plugin"));
    }
    if slot.wal_status.as_deref() == Some("lost") {
        return Err(lost("has lost its WAL (max_slot_wal_keep_size)"));
    }
    slot.confirmed
        .ok_or_else(|| lost("has no confirmed position"))
}

async fn release(client: &Client, name: &str, mut slot: SlotRow) -> Result<(), RunEnd> {
    let give_up_at = tokio::time::Instant::now() + RELEASE_TIMEOUT;
    while let Some(pid) = slot.active_pid {
        tracing::info!(slot = name, pid, "ending the slot's former walsender");
        let end = rights::end_walsender(client, name).await?;
        client
            .batch_execute(&end)
            .await
            .context("ending the former walsender")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if tokio::time::Instant::now() >= give_up_at {
            return Err(RunEnd::restart(
                "slot_busy",
                format!("process {pid} keeps slot {name}"),
            ));
        }
        match read_slot(client, name).await? {
            Some(now) => slot = now,
            None => return Ok(()),
        }
    }
    Ok(())
}

/// What replicas that answered have made durable; learners apart.
type Floors = BTreeMap<ReplicaKey, WalPosition>;

/// Stores the token durably on every node that holds a fed replica. One that does
/// not answer is fenced when its stream is opened, which bears the token too;
/// until it answers it holds the slot.
async fn install_token(context: &SourceContext) -> Result<Floors, RunEnd> {
    let map = context.client.map();
    let of_source = |p: &cluster_core::map::Partition| {
        map.collections
            .get(&p.collection)
            .is_some_and(|c| c.spec.source == context.source)
    };
    let nodes: BTreeSet<NodeId> = map
        .partitions
        .values()
        .filter(|p| of_source(p))
        .flat_map(|p| p.replicas.iter().filter(|r| r.state.is_fed()))
        .map(|r| r.node)
        .collect();
    let request = v1::InstallConsumerRequest {
        source_id: context.source.0,
        consumer_epoch: context.token.0,
    };
    let call_timeout = Duration::from_millis(context.config.call_timeout_ms);
    let calls = nodes.into_iter().map(|node| async move {
        let answer = match context.client.node(node) {
            Ok(mut client) => {
                tokio::time::timeout(call_timeout, client.install_consumer(request)).await
            }
            Err(problem) => Ok(Err(tonic::Status::unavailable(problem.to_string()))),
        };
        (node, answer)
    });
    let mut floors = Floors::new();
    for (node, answer) in futures::future::join_all(calls).await {
        match answer {
            Ok(Ok(answer)) => {
                for partition in answer.into_inner().partitions {
                    if partition.is_learning {
                        continue;
                    }
                    let replica = ReplicaKey {
                        partition: PartitionId(partition.partition_id),
                        node,
                        generation: Generation(partition.generation),
                    };
                    let durable = partition.durable.map_or(WalPosition::ZERO, Into::into);
                    floors.insert(replica, durable);
                }
            }
            Ok(Err(status)) if proto::error::is_estale(&status) => {
                let hint = proto::error::estale_hint(&status);
                if let Some(hint) = hint {
                    let _ = context.client.refresh_map(hint).await;
                }
                return Err(RunEnd::restart(
                    "fenced",
                    format!("{node}: {}", status.message()),
                ));
            }
            Ok(Err(status)) => {
                tracing::warn!(%node, problem = status.message(), "node did not take the consumer's token");
            }
            Err(_) => tracing::warn!(%node, "node did not take the consumer's token in time"),
        }
    }
    Ok(floors)
}

/// The complete collections with a partition whose replicas all lack what the
/// slot no longer has. One that has not answered may have it.
fn below_slot(
    map: &PartitionMap,
    floors: &Floors,
    confirmed: WalPosition,
) -> BTreeMap<CollectionId, String> {
    let mut lost = BTreeMap::new();
    for partition in map.partitions.values() {
        let collection = map.collections.get(&partition.collection);
        let is_complete =
            collection.is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }));
        let mut best = None;
        let mut is_below = is_complete;
        for replica in partition.in_state(ReplicaState::Serving) {
            let key = ReplicaKey {
                partition: partition.id,
                node: replica.node,
                generation: replica.generation,
            };
            match floors.get(&key) {
                Some(durable) if *durable < confirmed => {
                    best = best.max(Some((*durable, replica.node)));
                }
                _ => is_below = false,
            }
        }
        if let Some((durable, node)) = best.filter(|_| is_below) {
            let reason = rows_missing(partition.id, node, durable, confirmed);
            lost.entry(partition.collection).or_insert(reason);
        }
    }
    lost
}

/// Why a collection fails of which no replica has what was confirmed.
pub fn rows_missing(
    partition: PartitionId,
    node: NodeId,
    durable: WalPosition,
    confirmed: WalPosition,
) -> String {
    format!(
        "the replica of {partition} on {node} holds everything up to {durable} only, but Postgres keeps no changes up to {confirmed}: rows are missing there; REINDEX builds it anew"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::spec;
    use cluster_core::collection::{BackfillSnapshot, Collection};
    use cluster_core::ids::{BackfillId, Incarnation};
    use cluster_core::map::{HashRange, Partition, Replica};

    #[test]
    fn p3_a_server_whose_wal_ends_below_a_replica_is_not_followed() {
        let replica = ReplicaKey {
            partition: PartitionId(3),
            node: NodeId(2),
            generation: Generation(1),
        };
        let end = |lsn| WalPosition::end_of(Incarnation(1), Lsn(lsn));
        let floors = Floors::from([(replica, end(10))]);
        assert!(check_history(&Floors::new(), end(1)).is_ok());
        assert!(check_history(&floors, end(10)).is_ok());
        let Err(RunEnd::Problem(problem)) = check_history(&floors, end(9)) else {
            panic!("followed");
        };
        assert!(problem.contains("partition-3 on node-2"), "{problem}");
    }

    #[test]
    fn p3_a_partition_below_the_slot_on_all_its_replicas_fails_its_collection_alone() {
        let mut map = PartitionMap::default();
        let ready = CollectionState::Ready {
            snapshot: BackfillSnapshot::default(),
        };
        let building = CollectionState::Building {
            backfill: BackfillId(1),
        };
        let states = [ready.clone(), ready.clone(), building, ready.clone(), ready];
        for (id, state) in (1..).zip(states) {
            let collection = Collection {
                id: CollectionId(id),
                spec: spec(),
                state,
                last_backfill: BackfillId(1),
            };
            map.collections.insert(collection.id, collection);
            let replica = |node| Replica {
                node: NodeId(node),
                generation: Generation(1),
                state: ReplicaState::Serving,
            };
            let partition = Partition {
                id: PartitionId(id),
                collection: CollectionId(id),
                range: HashRange::WHOLE,
                replicas: vec![replica(1), replica(2)],
            };
            map.partitions.insert(partition.id, partition);
        }
        let end = |lsn| WalPosition::end_of(Incarnation(1), Lsn(lsn));
        let at = |partition, node, lsn| {
            let replica = ReplicaKey {
                partition: PartitionId(partition),
                node: NodeId(node),
                generation: Generation(1),
            };
            (replica, end(lsn))
        };
        let floors = Floors::from([
            at(1, 1, 10),
            at(1, 2, 10),
            at(2, 1, 9),
            at(2, 2, 8),
            at(3, 1, 0),
            at(3, 2, 0),
            // A peer has it.
            at(4, 1, 9),
            at(4, 2, 10),
            // A peer may have it.
            at(5, 1, 9),
        ]);
        let lost = below_slot(&map, &floors, end(10));
        assert_eq!(lost.keys().collect::<Vec<_>>(), [&CollectionId(2)]);
        assert!(lost[&CollectionId(2)].contains("node-1"), "{lost:?}");
    }
}
