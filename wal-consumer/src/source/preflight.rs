//! What must be so before a source is streamed, each failing by its own name;
//! and the slot, made or taken over.
//!
//! Takeover: the token goes to the nodes first, then the former walsender is
//! ended, then the slot is compared with the replicas. A history that broke is
//! recorded as such ([`super::breaks`]). Where the slot stands above the durable
//! watermarks of all of a complete partition's replicas, what lies between is lost:
//! they are marked stale, and their collection is reconciled. One of several that is
//! below is demoted once it is met, and comes back from a peer.
//!
//! What waiting or an operator can put right is a problem, and breaks nothing: a
//! standby, a server without logical WAL, a database without the extension or under
//! another name.

use super::answers::{Answers, install_token};
use super::breaks::{self, Followed, NewSlot, Verdict};
use super::coordination::{self, wait_for_map};
use super::postgres::Postgres;
use super::{SourceContext, definitions, detachment, publication, rights, slot_trace, sql};
use crate::feed::progress::{Following, RunEnd};
use crate::replication::connection::Connection;
use crate::replication::slot::{self, SystemIdentity};
use anyhow::Context;
use cluster_core::checklist::server as checklist;
use cluster_core::collection::{Collection, CollectionSpec};
use cluster_core::ids::{ServerStart, SourceId};
use cluster_core::map::{PartitionMap, Slot};
use cluster_core::publication::Publication;
use cluster_core::wal_position::{Lsn, WalPosition};
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
    /// Of the server that is streamed from.
    pub server_start: Option<ServerStart>,
    pub system: SystemIdentity,
}

pub(super) struct SlotRow {
    active_pid: Option<i32>,
    pub confirmed: Option<Lsn>,
    pub wal_status: Option<String>,
    pub is_ours: bool,
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
    let server = check_server(&sql, &postgres).await?;
    detachment::check(&sql, &source.slot_name).await?;
    let asked = install_token(context).await?;
    if source.slot.is_some() {
        let lowest = asked
            .floors
            .values()
            .map(|durable| durable.commit_end)
            .min();
        slot_trace::tell(context, &sql, &source.slot_name, lowest).await?;
    }
    let followed = Followed {
        context,
        postgres: &postgres,
        sql: &sql,
        source,
    };
    let (mut known, confirmed) = match &source.slot {
        None => make_first_slot(&followed, &server, &map).await?,
        Some(known) => match followed.judge(&server, known, &asked).await? {
            Verdict::Whole { confirmed } => (known.clone(), confirmed),
            Verdict::SwitchedTimeline => {
                let (from, to) = (known.timeline, server.system.timeline);
                coordination::follow_timeline(context, (from, to)).await?;
                let detail = format!("the slot goes on from timeline {from} to {to}");
                return Err(RunEnd::restart("timeline", detail));
            }
            Verdict::Broken(why) => {
                followed.record(&server, &why).await?;
                return Err(RunEnd::restart("break", why));
            }
        },
    };
    if known.publication.is_none() {
        note_publication(&followed, &mut known, &map).await?;
    }
    let is_mended = |c: &Collection| c.spec.source == source.id && c.reconcile.is_some();
    if publication::settle(context, &sql, source).await? || map.collections.values().any(is_mended)
    {
        write_behind_unseen_changes(&sql).await;
    }
    let following = Following {
        source: source.id,
        token: context.token,
        incarnation: source.incarnation,
        start: confirmed.max(known.consistent_point),
        flushed: breaks::flushed(&sql).await?,
    };
    if server.start != source.server_start && source.slot.is_some() {
        coordination::report(context, None, server.start, "").await?;
    }
    let at = following.end_of(confirmed);
    pass_what_is_below(&followed, &asked, at).await?;
    if !asked.has_witness(&map, source.id, at) {
        // A slot that nobody has followed up to where it stands may have been made anew,
        // and indexes may have come and gone before it.
        let specs = definitions::read_all(&sql, source.id).await?;
        bring_definitions(context, &context.client.map(), source.id, &specs).await?;
    }
    Ok(Prepared {
        slot_name: source.slot_name.clone(),
        publication: source.publication_name.clone(),
        postgres,
        sql,
        following,
        server_start: server.start,
        system: server.system,
    })
}

/// What the server says of itself.
pub(super) struct Server {
    pub database_oid: u32,
    /// `None` where the extension's library is not preloaded.
    pub start: Option<ServerStart>,
    pub system: SystemIdentity,
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

async fn check_server(sql: &Client, postgres: &Postgres) -> Result<Server, RunEnd> {
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
    let mut connection = Connection::connect(postgres, "").await?;
    Ok(Server {
        database_oid: row.try_get("database_oid").map_err(field)?,
        start: start.map(ServerStart),
        system: slot::identify_system(&mut connection).await?,
    })
}

/// The slot counts only once it was reported: one that a crash left behind is replaced.
async fn make_first_slot(
    followed: &Followed<'_>,
    server: &Server,
    map: &PartitionMap,
) -> Result<(Slot, Lsn), RunEnd> {
    let Followed {
        context,
        postgres,
        sql,
        source,
    } = followed;
    let published = publication::restore(sql, map, source).await?;
    if let Some(left_over) = read_slot(sql, &source.slot_name).await? {
        breaks::drop_slot(sql, &source.slot_name, left_over).await?;
    }
    let new = NewSlot::make(context, postgres, &source.slot_name, source).await?;
    bring_definitions(context, map, source.id, &new.specs).await?;
    let slot = new.identity(server, published);
    coordination::report(context, Some(&slot), server.start, "").await?;
    // The next run must not take the slot for one that was never used.
    let has_slot = |map: &PartitionMap| {
        let source = map.sources.get(&context.source);
        source.is_none_or(|s| s.slot.is_some())
    };
    wait_for_map(context, has_slot).await?;
    Ok((slot, new.consistent_point))
}

/// Unseen changes that their sessions did not wait for lie below this commit, which is
/// on disk: where the server's WAL ends is read behind it.
async fn write_behind_unseen_changes(sql: &Client) {
    let message = "SELECT pg_logical_emit_message(true, 'ruvector', '')";
    let written = sql
        .batch_execute(&format!(
            "BEGIN; SET LOCAL synchronous_commit = local; {message}; COMMIT"
        ))
        .await;
    if let Err(problem) = written {
        // A failed transaction may be open.
        let _ = sql.batch_execute("ROLLBACK").await;
        tracing::warn!(%problem, "cannot write behind unseen changes; those of synchronous_commit = off may not be on disk yet");
    }
}

/// A release that did not note what the slot is read through left it to be noted: the
/// present publication is taken for the one that it was made for.
async fn note_publication(
    followed: &Followed<'_>,
    known: &mut Slot,
    map: &PartitionMap,
) -> Result<(), RunEnd> {
    let (context, source) = (followed.context, followed.source);
    let found = publication::look(followed.sql, map, source).await?;
    known.publication = found.as_ref().and_then(Publication::id);
    coordination::report(context, Some(known), None, "").await
}

/// Has the coordinators hold exactly the collections that the table lists. One whose
/// definition is another under the same number is of another history.
pub(super) async fn bring_definitions(
    context: &SourceContext,
    map: &PartitionMap,
    source: SourceId,
    specs: &[CollectionSpec],
) -> Result<(), RunEnd> {
    let name_of = |spec: &CollectionSpec| (spec.index_oid, spec.definition_generation);
    for spec in specs {
        let known = map.collection_by_index(source, spec.index_oid, spec.definition_generation);
        if known.is_some_and(|known| !defines_the_same(&known.spec, spec)) {
            let (index_oid, generation) = name_of(spec);
            coordination::drop_collection(context, index_oid, generation).await?;
        }
        coordination::create_collection(context, spec).await?;
    }
    let of_source = map.collections.values().filter(|c| c.spec.source == source);
    for collection in of_source {
        let (index_oid, generation) = name_of(&collection.spec);
        if !specs.iter().any(|s| name_of(s) == (index_oid, generation)) {
            coordination::drop_collection(context, index_oid, generation).await?;
        }
    }
    for spec in specs {
        // A drop above takes every lower generation with it; a refused one is void.
        if let Some(id) = coordination::create_collection(context, spec).await? {
            wait_for_map(context, |map| map.collections.contains_key(&id)).await?;
        }
    }
    Ok(())
}

/// Whatever is called otherwise by now.
fn defines_the_same(a: &CollectionSpec, b: &CollectionSpec) -> bool {
    let renamed = CollectionSpec {
        schema_name: b.schema_name.clone(),
        table_name: b.table_name.clone(),
        index_name: b.index_name.clone(),
        column_name: b.column_name.clone(),
        ..a.clone()
    };
    renamed == *b
}

/// Replicas that the slot has passed are stale, and the indexes that came or went in
/// the gap are brought about. Nobody waits for a gap that a peer can fill.
async fn pass_what_is_below(
    followed: &Followed<'_>,
    asked: &Answers,
    confirmed: WalPosition,
) -> Result<(), RunEnd> {
    let (context, source) = (followed.context, followed.source);
    let map = context.client.map();
    let lost = asked.below_slot(&map, source.id, confirmed);
    if lost.is_empty() {
        return Ok(());
    }
    let specs = definitions::read_all(followed.sql, source.id).await?;
    bring_definitions(context, &map, source.id, &specs).await?;
    for replica in &lost {
        tracing::error!(source = %source.id, partition = %replica.partition, node = %replica.node, %confirmed, "the slot has passed every replica of a partition: it is reconciled with the table");
    }
    coordination::mark_stale(context, &lost, coordination::passed).await
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

pub(super) async fn read_slot(client: &Client, name: &str) -> anyhow::Result<Option<SlotRow>> {
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

/// Ends the walsender that holds the slot.
pub(super) async fn release(client: &Client, name: &str, mut slot: SlotRow) -> Result<(), RunEnd> {
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
