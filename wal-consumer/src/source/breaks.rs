//! Breaks in a source's history: found before the source is streamed, recorded by the
//! coordinators, and mended from there (docs/rfcs/2026-11-27-reconcile.md).
//!
//! A break first drops the former slot, then mends the publication, then makes a slot of
//! another name, and last of all is recorded. Wherever it is cut off, the slot that the
//! source is known by is gone, which the next run finds; a slot that was made and not
//! recorded has a name that counts for nothing, and is replaced. What the table of
//! definitions says at the new slot's snapshot is brought about before the break is
//! recorded, for nobody would ask again afterwards.
//!
//! A slot of another database or another plugin is nobody's to take: the new one gets
//! a name with the incarnation in it.

use super::answers::Answers;
use super::postgres::Postgres;
use super::preflight::{Server, bring_definitions, read_slot, release};
use super::{
    SourceContext, coordination, definitions, detachment, publication, slot_trace, slot_wait, sql,
};
use crate::feed::progress::RunEnd;
use crate::replication::connection::Connection;
use crate::replication::slot::{self, Lifetime};
use crate::source::preflight::begin_at_snapshot;
use anyhow::Context;
use cluster_core::collection::Collection;
use cluster_core::confirm::ReplicaKey;
use cluster_core::control::names_of_next_slot;
use cluster_core::history::{goes_on, parse_history};
use cluster_core::ids::{Incarnation, SourceId};
use cluster_core::map::{PartitionMap, PublicationId, Slot, Source};
use cluster_core::publication::gap;
use cluster_core::wal_position::{Lsn, WalPosition};
use tokio_postgres::Client;

/// What a source that was followed before is found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The slot goes on from here.
    Whole { confirmed: Lsn },
    /// On another timeline, and nothing that anybody holds was undone.
    SwitchedTimeline,
    /// Why the stream does not follow from what replicas hold.
    Broken(String),
}

/// The server and its slot.
pub(super) struct Followed<'a> {
    pub context: &'a SourceContext,
    pub postgres: &'a Postgres,
    pub sql: &'a Client,
    pub source: &'a Source,
}

impl Followed<'_> {
    /// Ends the walsender that holds the slot, and compares.
    pub async fn judge(
        &self,
        server: &Server,
        known: &Slot,
        asked: &Answers,
    ) -> Result<Verdict, RunEnd> {
        let broken = |why: String| Ok(Verdict::Broken(why));
        if let Some(why) = other_server(server, known) {
            return broken(why);
        }
        let map = self.context.client.map();
        let published = publication::look(self.sql, &map, self.source).await?;
        let publication = &self.source.publication_name;
        if let Some(why) = gap(publication, published.as_ref(), known.publication) {
            return broken(why);
        }
        let name = &self.source.slot_name;
        let Some(found) = read_slot(self.sql, name).await? else {
            return broken(gone(name, server, known));
        };
        if !found.is_ours {
            return broken(format!("slot {name} belongs to another database or plugin"));
        }
        release(self.sql, name, found).await?;
        let Some(slot) = read_slot(self.sql, name).await? else {
            return broken(gone(name, server, known));
        };
        if slot.wal_status.as_deref() == Some("lost") {
            return broken(format!(
                "slot {name} has lost its WAL (max_slot_wal_keep_size)"
            ));
        }
        let Some(confirmed) = slot.confirmed else {
            return broken(format!("slot {name} has no confirmed position"));
        };
        if let Some(why) = slot_trace::jump(self.sql, name, known.consistent_point).await? {
            return broken(why);
        }
        if server.system.timeline != known.timeline {
            return self.judge_switch(server, known, confirmed, asked).await;
        }
        let end_of = |lsn| WalPosition::end_of(self.source.incarnation, lsn);
        let flushed = end_of(flushed(self.sql).await?);
        if let Some(why) = put_back(asked, flushed).or_else(|| is_ahead(asked, flushed)) {
            return broken(why);
        }
        let moved = "it was made anew, or moved: by the server at slot_hold_limit, if \
                     ruvector.slot_advances says so, otherwise by somebody else";
        let at = end_of(confirmed);
        if let Some(highest) = asked.all_are_below(&map, self.source.id, at) {
            return broken(format!(
                "slot {name} stands at {confirmed}, and no replica has anything beyond {highest}: \
                 {moved}"
            ));
        }
        if let Some((replica, durable)) = asked.filled_below(&map, self.source.id, at) {
            let ReplicaKey {
                partition, node, ..
            } = replica;
            return broken(format!(
                "slot {name} stands at {confirmed}, and {partition} on {node}, which is being \
                 filled, has nothing beyond {durable}: {moved}"
            ));
        }
        Ok(Verdict::Whole { confirmed })
    }

    /// A slot that survived a switch of timelines goes on only if everybody has
    /// answered, and nobody holds anything from beyond the switch. Rows of a backfill
    /// may stand above what was applied.
    async fn judge_switch(
        &self,
        server: &Server,
        known: &Slot,
        confirmed: Lsn,
        asked: &Answers,
    ) -> Result<Verdict, RunEnd> {
        let (from, to) = (known.timeline, server.system.timeline);
        let map = self.context.client.map();
        let switched = format!("the server went from timeline {from} to {to}");
        if !asked.silent.is_empty() || is_being_filled(&map, self.source.id) {
            return Ok(Verdict::Broken(format!(
                "{switched}, and it is not known that nothing from beyond the switch was copied"
            )));
        }
        let mut connection = Connection::connect(self.postgres, "").await?;
        let history = slot::timeline_history(&mut connection, to).await?;
        let highest = asked.highest().max(confirmed);
        match parse_history(&history) {
            Some(history) if goes_on(&history, from, highest) => Ok(Verdict::SwitchedTimeline),
            _ => Ok(Verdict::Broken(format!(
                "{switched}, where what replicas hold up to {highest} is not in its history"
            ))),
        }
    }

    /// Makes the new slot, and has the break recorded with it.
    pub async fn record(&self, server: &Server, why: &str) -> Result<(), RunEnd> {
        let (context, source) = (self.context, self.source);
        let reason = format!(
            "{why}: changes may be missing. The index answers old data, flagged, until it is \
             reconciled with its table"
        );
        tracing::error!(source = %source.id, reason, incarnation = source.incarnation.0, "the source's history broke");
        let slot_name = self.free_slot_name().await?;
        let published = publication::restore(self.sql, &context.client.map(), source).await?;
        let new = NewSlot::make(context, self.postgres, &slot_name, source).await?;
        let map = context.client.map();
        bring_definitions(context, &map, source.id, &new.specs).await?;
        let slot = new.identity(server, published);
        let expected = source.incarnation;
        coordination::break_history(context, expected, &slot, &slot_name, server.start, &reason)
            .await?;
        coordination::wait_for_map(context, |map| {
            let known = map.sources.get(&context.source);
            known.is_none_or(|s| s.incarnation > expected)
        })
        .await?;
        Ok(())
    }

    /// Drops what is left of our former slots, which would keep WAL for nobody, and
    /// answers a name that nobody has.
    async fn free_slot_name(&self) -> Result<String, RunEnd> {
        let known = &self.source.slot_name;
        let next = Incarnation(self.source.incarnation.0 + 1);
        let names = names_of_next_slot(known, next);
        let mut taken = Vec::new();
        for name in [known].into_iter().chain(&names) {
            match read_slot(self.sql, name).await? {
                Some(slot) if slot.is_ours => drop_slot(self.sql, name, slot).await?,
                Some(_) => {
                    tracing::warn!(slot = %name, "the slot of this name belongs to somebody else, and stays");
                    taken.push(name);
                }
                None => {}
            }
        }
        let free = names.iter().find(|name| !taken.contains(name));
        free.cloned().ok_or_else(|| {
            RunEnd::Problem(format!(
                "slot {} belongs to another database or plugin: drop it",
                names.join(" or ")
            ))
        })
    }
}

/// A slot just made, and what its snapshot says.
pub(super) struct NewSlot {
    pub consistent_point: Lsn,
    pub specs: Vec<cluster_core::collection::CollectionSpec>,
}

impl NewSlot {
    pub async fn make(
        context: &SourceContext,
        postgres: &Postgres,
        name: &str,
        source: &Source,
    ) -> Result<Self, RunEnd> {
        let options = format!("-c lock_timeout={}", context.config.slot_lock_timeout_ms);
        let mut connection = Connection::connect(postgres, &options).await?;
        detachment::check_before_slot(&mut connection, &source.slot_name).await?;
        let tell = |waits_for| context.standing.update(|s| s.slot_waits_for = waits_for);
        let created =
            slot_wait::create(postgres, &mut connection, (name, Lifetime::Permanent), tell).await?;
        let reading = sql::connect(postgres).await?;
        begin_at_snapshot(&reading, &created.snapshot).await?;
        let specs = definitions::read_all(&reading, source.id).await?;
        tracing::info!(source = %source.id, slot = name, consistent_point = %created.consistent_point, collections = specs.len(), "slot created");
        Ok(Self {
            consistent_point: created.consistent_point,
            specs,
        })
    }

    /// What the source is known by from now on.
    pub fn identity(&self, server: &Server, publication: PublicationId) -> Slot {
        Slot {
            system_identifier: server.system.system_identifier,
            database_oid: server.database_oid,
            timeline: server.system.timeline,
            consistent_point: self.consistent_point,
            publication: Some(publication),
        }
    }
}

/// Ends whoever holds a slot of ours, and drops it.
pub(super) async fn drop_slot(
    client: &Client,
    name: &str,
    found: super::preflight::SlotRow,
) -> Result<(), RunEnd> {
    release(client, name, found).await?;
    client
        .execute("SELECT pg_drop_replication_slot($1)", &[&name])
        .await
        .context("dropping a slot that is used no longer")?;
    Ok(())
}

/// How far the server's WAL is on its disk: asked for once no former consumer feeds
/// replicas any more.
pub(super) async fn flushed(sql: &Client) -> anyhow::Result<Lsn> {
    let row = sql
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await
        .context("reading the server's WAL position")?;
    Ok(row.try_get::<_, String>(0)?.parse()?)
}

/// Another system or another database has another history, whatever its positions.
fn other_server(server: &Server, known: &Slot) -> Option<String> {
    let found = (server.system.system_identifier, server.database_oid);
    let expected = (known.system_identifier, known.database_oid);
    (found != expected).then(|| {
        format!(
            "another server: system {}, database {} instead of system {}, database {}",
            found.0, found.1, expected.0, expected.1
        )
    })
}

/// A promoted standby and a backup of before the slot have none of its name.
fn gone(slot_name: &str, server: &Server, known: &Slot) -> String {
    let (from, to) = (known.timeline, server.system.timeline);
    match from == to {
        true => format!("slot {slot_name} is gone"),
        false => {
            format!("slot {slot_name} is gone: the server went from timeline {from} to {to}")
        }
    }
}

/// A server whose WAL ends below what a replica has of it was put back: an older copy of
/// its files, which has the same identifiers, writes another history from there.
fn put_back(asked: &Answers, flushed: WalPosition) -> Option<String> {
    let highest = asked.floors.iter().max_by_key(|(_, durable)| **durable);
    let (replica, durable) = highest.filter(|(_, durable)| **durable > flushed)?;
    Some(format!(
        "the server was restored, or is a copy: its WAL ends at {flushed}, but {} on {} holds \
         changes up to {durable}",
        replica.partition, replica.node
    ))
}

/// The same of learners, and of what is applied and not on disk yet.
fn is_ahead(asked: &Answers, flushed: WalPosition) -> Option<String> {
    let highest = asked.applied.iter().max().filter(|at| **at > flushed)?;
    Some(format!(
        "the server was restored, or is a copy: its WAL ends at {flushed}, but a replica has \
         changes up to {highest}"
    ))
}

/// A backfill or a reconcile of the source has begun and is not complete.
fn is_being_filled(map: &PartitionMap, source: SourceId) -> bool {
    let mut of_source = map.collections.values().filter(|c| c.spec.source == source);
    of_source.any(Collection::wants_backfill)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::slot::SystemIdentity;
    use crate::source::answers::tests::{at, end};

    #[test]
    fn p3_a_server_whose_wal_ends_below_a_replica_is_another_history() {
        let asked = |floors: &[_]| Answers {
            floors: floors.iter().copied().collect(),
            ..Answers::default()
        };
        assert_eq!(put_back(&asked(&[]), end(1)), None);
        assert_eq!(put_back(&asked(&[at(3, 2, 10)]), end(10)), None);
        let ahead = |lsn| Answers {
            applied: vec![end(lsn)],
            ..Answers::default()
        };
        assert_eq!(is_ahead(&ahead(10), end(10)), None);
        assert!(is_ahead(&ahead(11), end(10)).is_some());
        let told = put_back(&asked(&[at(3, 2, 10)]), end(9)).unwrap_or_default();
        assert!(told.contains("partition-3 on node-2"), "{told}");
    }

    #[test]
    fn p3_another_system_or_database_is_another_history() {
        let known = Slot {
            system_identifier: 7,
            database_oid: 5,
            timeline: 1,
            consistent_point: Lsn(1),
            publication: None,
        };
        let server = |system_identifier, database_oid| Server {
            database_oid,
            start: None,
            system: SystemIdentity {
                system_identifier,
                timeline: 2,
            },
        };
        assert_eq!(other_server(&server(7, 5), &known), None);
        assert!(other_server(&server(8, 5), &known).is_some());
        assert!(other_server(&server(7, 6), &known).is_some());
    }
}
