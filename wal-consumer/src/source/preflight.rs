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

use super::breaks::{self, Followed, NewSlot, Verdict};
use super::coordination::{self, wait_for_map};
use super::postgres::Postgres;
use super::{SourceContext, definitions, detachment, publication, rights, slot_trace, sql};
use crate::feed::progress::{Following, RunEnd};
use crate::replication::connection::Connection;
use crate::replication::slot::{self, SystemIdentity};
use anyhow::Context;
use cluster_core::checklist::server as checklist;
use cluster_core::collection::{Collection, CollectionSpec, CollectionState};
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::{Generation, NodeId, PartitionId, ServerStart, SourceId};
use cluster_core::map::{PartitionMap, ReplicaState, Slot};
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
    known.publication = found.as_ref().and_then(publication::Publication::id);
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
    asked: &Asked,
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
    coordination::mark_stale(context, &lost, "").await
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

/// What replicas that answered have made durable; learners apart.
pub(super) type Floors = BTreeMap<ReplicaKey, WalPosition>;

/// What the nodes that hold replicas said.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub floors: Floors,
    /// What nodes have applied or logged, of learners too.
    pub applied: Vec<WalPosition>,
    /// Those that did not answer.
    pub silent: BTreeSet<NodeId>,
}

impl Asked {
    /// The highest position, durable or not, that anybody has.
    pub fn highest(&self) -> Lsn {
        let positions = self.floors.values().chain(&self.applied);
        let highest = positions.max().copied();
        highest.map_or(Lsn(0), |at| at.commit_end)
    }

    /// The highest position that a serving replica of a complete collection has, if
    /// there are such, all have answered, and all are below the slot.
    pub fn all_are_below(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> Option<WalPosition> {
        let mut highest = None;
        for replica in serving_of_complete(map, source) {
            let durable = *self.floors.get(&replica)?;
            highest = highest.max(Some(durable));
        }
        highest.filter(|highest| *highest < confirmed)
    }

    /// A replica of a collection that is being filled which holds something, and not what
    /// leads up to the slot; nor has any other of its partition. The slot waits for such
    /// ones as soon as they have the stream, so that nobody of ours has moved it; what was
    /// copied would lack what lies between.
    pub fn filled_below(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> Option<(ReplicaKey, WalPosition)> {
        let filled = serving(map, source, |c| {
            matches!(c.state, CollectionState::Building { .. })
        });
        let mut highest = BTreeMap::new();
        for replica in filled {
            if let Some(durable) = self.floors.get(&replica) {
                let known = highest
                    .entry(replica.partition)
                    .or_insert((replica, *durable));
                if known.1 < *durable {
                    *known = (replica, *durable);
                }
            }
        }
        let is_below = |at: WalPosition| WalPosition::ZERO < at && at < confirmed;
        highest.into_values().find(|(_, at)| is_below(*at))
    }

    /// Whether some serving replica has everything up to the slot: it was followed until
    /// there.
    pub fn has_witness(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> bool {
        let mut all = serving(map, source, |_| true);
        all.any(|replica| self.floors.get(&replica).is_some_and(|at| *at >= confirmed))
    }

    /// The serving replicas of partitions of complete collections of which all lack what
    /// the slot no longer has. One that has not answered may have it.
    pub fn below_slot(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> Vec<ReplicaKey> {
        let mut by_partition: BTreeMap<PartitionId, Vec<ReplicaKey>> = BTreeMap::new();
        for replica in serving_of_complete(map, source) {
            by_partition
                .entry(replica.partition)
                .or_default()
                .push(replica);
        }
        let is_below = |replica: &ReplicaKey| {
            self.floors
                .get(replica)
                .is_some_and(|durable| *durable < confirmed)
        };
        let lost = by_partition.into_values();
        lost.filter(|replicas| replicas.iter().all(is_below))
            .flatten()
            .collect()
    }
}

fn serving_of_complete(
    map: &PartitionMap,
    source: SourceId,
) -> impl Iterator<Item = ReplicaKey> + '_ {
    serving(map, source, |c| {
        matches!(c.state, CollectionState::Ready { .. })
    })
}

/// The serving replicas of a source's collections that are such.
fn serving<'a>(
    map: &'a PartitionMap,
    source: SourceId,
    is_such: impl Fn(&Collection) -> bool + 'a,
) -> impl Iterator<Item = ReplicaKey> + 'a {
    let is_meant = move |p: &&cluster_core::map::Partition| {
        let collection = map.collections.get(&p.collection);
        collection.is_some_and(|c| c.spec.source == source && is_such(c))
    };
    let partitions = map.partitions.values().filter(is_meant);
    partitions.flat_map(|p| {
        p.in_state(ReplicaState::Serving).map(|r| ReplicaKey {
            partition: p.id,
            node: r.node,
            generation: r.generation,
        })
    })
}

/// Stores the token durably on every node that holds a replica. One that does
/// not answer is fenced when its stream is opened, which bears the token too;
/// until it answers it holds the slot.
async fn install_token(context: &SourceContext) -> Result<Asked, RunEnd> {
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
        .flat_map(|p| &p.replicas)
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
    let mut asked = Asked::default();
    for (node, answer) in futures::future::join_all(calls).await {
        match answer {
            Ok(Ok(answer)) => {
                for partition in answer.into_inner().partitions {
                    let known = [partition.applied, partition.durable];
                    let known = known.into_iter().flatten().map(WalPosition::from);
                    asked.applied.extend(known);
                    if partition.is_learning {
                        continue;
                    }
                    let replica = ReplicaKey {
                        partition: PartitionId(partition.partition_id),
                        node,
                        generation: Generation(partition.generation),
                    };
                    let durable = partition.durable.map_or(WalPosition::ZERO, Into::into);
                    asked.floors.insert(replica, durable);
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
                asked.silent.insert(node);
            }
            Err(_) => {
                tracing::warn!(%node, "node did not take the consumer's token in time");
                asked.silent.insert(node);
            }
        }
    }
    Ok(asked)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rows::tests::spec;
    use cluster_core::collection::BackfillSnapshot;
    use cluster_core::ids::{BackfillId, CollectionId, Incarnation};
    use cluster_core::map::{HashRange, Partition, Replica};

    pub fn end(lsn: u64) -> WalPosition {
        WalPosition::end_of(Incarnation(1), Lsn(lsn))
    }

    pub fn at(partition: u64, node: u64, lsn: u64) -> (ReplicaKey, WalPosition) {
        let replica = ReplicaKey {
            partition: PartitionId(partition),
            node: NodeId(node),
            generation: Generation(1),
        };
        (replica, end(lsn))
    }

    #[test]
    fn p2_p3_what_the_slot_has_passed_is_found_complete_or_being_filled() {
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
                reconcile: None,
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
        let floors = Floors::from([
            at(1, 1, 10),
            at(1, 2, 10),
            at(2, 1, 9),
            at(2, 2, 8),
            (at(3, 1, 0).0, WalPosition::ZERO),
            (at(3, 2, 0).0, WalPosition::ZERO),
            // A peer has it.
            at(4, 1, 9),
            at(4, 2, 10),
            // A peer may have it.
            at(5, 1, 9),
        ]);
        let source = spec().source;
        let mut asked = Asked {
            floors,
            ..Asked::default()
        };
        let lost = asked.below_slot(&map, source, end(10));
        assert_eq!(lost, [at(2, 1, 9).0, at(2, 2, 8).0]);
        assert!(asked.below_slot(&map, SourceId(99), end(10)).is_empty());

        let all = |asked: &Asked, confirmed| asked.all_are_below(&map, source, end(confirmed));
        assert_eq!(
            all(&asked, 10),
            None,
            "one has it, and one has not answered"
        );
        assert_eq!(all(&asked, 11), None, "one has not answered");
        asked.floors.extend([at(5, 2, 4)]);
        assert_eq!(all(&asked, 11), Some(end(10)));
        assert_eq!(all(&asked, 10), None, "one has it");

        // What is being filled holds nothing yet, or what leads up to the slot.
        let filled = |asked: &Asked, confirmed| asked.filled_below(&map, source, end(confirmed));
        assert_eq!(filled(&asked, 10), None, "nothing was copied");
        asked.floors.extend([at(3, 1, 7)]);
        assert_eq!(filled(&asked, 7), None);
        assert_eq!(filled(&asked, 8), Some(at(3, 1, 7)));
        asked.floors.extend([at(3, 2, 8)]);
        assert_eq!(filled(&asked, 8), None, "a peer has it");
        assert_eq!(filled(&asked, 9), Some(at(3, 2, 8)));
        assert!(asked.has_witness(&map, source, end(10)));
        assert!(!asked.has_witness(&map, source, end(11)));
    }
}
