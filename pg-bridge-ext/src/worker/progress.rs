//! How far the cluster has followed one database of this server: what its map
//! says, and the positions that consumer and nodes last reported.

use super::codec::{Garbled, Reader, Writer};
use super::status;
use super::view::COLLECTIONS_MAX;
use cluster_client::ClusterClient;
use cluster_core::collection::{Collection, CollectionState};
use cluster_core::map::{PartitionMap, Source};
use proto::v1::GetStatusResponse;
use std::time::Duration;
use tokio::time::timeout;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceProgress {
    pub source: u64,
    pub name: String,
    pub slot_name: String,
    /// Why the source is not followed; empty when it is.
    pub problem: String,
    /// Why there are no positions; empty when there are.
    pub silence: String,
    /// What the consumer has reported.
    pub reported: Option<Reported>,
    pub collections: Vec<CollectionProgress>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    pub ms_ago: u64,
    pub received_lsn: u64,
    pub applied_lsn: u64,
    pub confirmed_lsn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectionStanding {
    Building,
    Ready,
    /// Ready, but of some partitions no replica has everything.
    Stale,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionProgress {
    pub index_oid: u32,
    pub standing: CollectionStanding,
    /// Why it is failed or stale; empty otherwise.
    pub reason: String,
    /// Lowest over all replicas, and the age of the oldest report of them.
    pub positions: Option<Positions>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    pub ms_ago: u64,
    pub applied_lsn: u64,
    pub durable_lsn: u64,
}

/// `None`: no source follows the database. No more collections than shared memory
/// has room for.
pub async fn of_database(
    client: &ClusterClient,
    system_identifier: u64,
    database_oid: u32,
    limit: Duration,
) -> Option<SourceProgress> {
    let map = client.map();
    let is_ours = |source: &&Source| {
        source.slot.as_ref().is_some_and(|slot| {
            (slot.system_identifier, slot.database_oid) == (system_identifier, database_oid)
        })
    };
    let source = map.sources.values().find(is_ours)?;
    let (status, silence) = match timeout(limit, status::fetch(client)).await {
        Ok(Ok(status)) => (Some(status), String::new()),
        Ok(Err(problem)) => (None, problem.to_string()),
        Err(_) => (None, "no coordinator answered in time".to_owned()),
    };
    let collections = map.collections.values();
    let collections = collections
        .filter(|collection| collection.spec.source == source.id)
        .take(COLLECTIONS_MAX)
        .map(|collection| {
            let (standing, reason) = standing(&map, collection);
            let positions = status.as_ref().and_then(|status| {
                let progress = status::of_collection(client, collection.id, status);
                Some(Positions {
                    ms_ago: oldest_report_ms(&map, collection.id, status)?,
                    applied_lsn: progress.applied_lsn,
                    durable_lsn: progress.durable_lsn,
                })
            });
            CollectionProgress {
                index_oid: collection.spec.index_oid,
                standing,
                reason,
                positions,
            }
        });
    Some(SourceProgress {
        source: source.id.0,
        name: source.name.clone(),
        slot_name: source.slot_name.clone(),
        problem: source.problem.clone(),
        silence,
        reported: status.as_ref().and_then(|status| reported(source, status)),
        collections: collections.collect(),
    })
}

fn standing(map: &PartitionMap, collection: &Collection) -> (CollectionStanding, String) {
    match (&collection.state, map.stale_partitions(collection.id)) {
        (CollectionState::Building { .. }, _) => {
            let why = collection.reconcile.as_ref().map(|r| r.reason.clone());
            (CollectionStanding::Building, why.unwrap_or_default())
        }
        (CollectionState::Failed { reason }, _) => (CollectionStanding::Failed, reason.clone()),
        (CollectionState::Ready { .. }, 0) => (CollectionStanding::Ready, String::new()),
        (CollectionState::Ready { .. }, stale) => {
            let why = collection.reconcile.as_ref().map(|r| r.reason.as_str());
            let why = why.unwrap_or("no replica has everything");
            let reason = format!("{stale} partitions answer old data only: {why}");
            (CollectionStanding::Stale, reason)
        }
    }
}

fn reported(source: &Source, status: &GetStatusResponse) -> Option<Reported> {
    let consumers = status.consumers.iter().filter_map(|consumer| {
        let ms_ago = consumer.renewed_ms_ago?;
        let progress = consumer
            .sources
            .iter()
            .find(|progress| progress.source_id == source.id.0)?;
        Some(Reported {
            ms_ago,
            received_lsn: progress.received_lsn,
            applied_lsn: progress.applied_lsn,
            confirmed_lsn: progress.confirmed_lsn,
        })
    });
    // A consumer that had the source before may still be listed.
    consumers.min_by_key(|reported| reported.ms_ago)
}

/// `None`: a replica's node has not reported at all.
fn oldest_report_ms(
    map: &PartitionMap,
    collection: cluster_core::ids::CollectionId,
    status: &GetStatusResponse,
) -> Option<u64> {
    let mut oldest = None;
    for partition in map.partitions_of(collection) {
        for replica in &partition.replicas {
            let node = status.nodes.iter().find(|n| n.node_id == replica.node.0)?;
            oldest = oldest.max(Some(node.renewed_ms_ago?));
        }
    }
    oldest
}

impl SourceProgress {
    pub(super) fn write(&self, out: &mut Writer) {
        out.u64(self.source);
        for text in [&self.name, &self.slot_name, &self.problem, &self.silence] {
            out.text(text);
        }
        out.u8(self.reported.is_some().into());
        let reported = self.reported.unwrap_or_default();
        out.u64(reported.ms_ago);
        out.u64(reported.received_lsn);
        out.u64(reported.applied_lsn);
        out.u64(reported.confirmed_lsn);
        out.u32(self.collections.len() as u32);
        for collection in &self.collections {
            out.u32(collection.index_oid);
            out.u8(match collection.standing {
                CollectionStanding::Building => 1,
                CollectionStanding::Ready => 2,
                CollectionStanding::Stale => 3,
                CollectionStanding::Failed => 4,
            });
            out.text(&collection.reason);
            out.u8(collection.positions.is_some().into());
            if let Some(positions) = collection.positions {
                out.u64(positions.ms_ago);
                out.u64(positions.applied_lsn);
                out.u64(positions.durable_lsn);
            }
        }
    }

    pub(super) fn read(bytes: &mut Reader<'_>) -> Result<Self, Garbled> {
        let source = bytes.u64()?;
        let [name, slot_name, problem, silence] =
            [bytes.text()?, bytes.text()?, bytes.text()?, bytes.text()?];
        let is_reported = bytes.u8()? != 0;
        let reported = Reported {
            ms_ago: bytes.u64()?,
            received_lsn: bytes.u64()?,
            applied_lsn: bytes.u64()?,
            confirmed_lsn: bytes.u64()?,
        };
        let count = bytes.u32()? as usize;
        let mut collections = Vec::with_capacity(count.min(COLLECTIONS_MAX));
        for _ in 0..count {
            collections.push(CollectionProgress {
                index_oid: bytes.u32()?,
                standing: match bytes.u8()? {
                    1 => CollectionStanding::Building,
                    2 => CollectionStanding::Ready,
                    3 => CollectionStanding::Stale,
                    4 => CollectionStanding::Failed,
                    _ => return Err(Garbled),
                },
                reason: bytes.text()?,
                positions: match bytes.u8()? {
                    0 => None,
                    _ => Some(Positions {
                        ms_ago: bytes.u64()?,
                        applied_lsn: bytes.u64()?,
                        durable_lsn: bytes.u64()?,
                    }),
                },
            });
        }
        Ok(Self {
            source,
            name,
            slot_name,
            problem,
            silence,
            reported: is_reported.then_some(reported),
            collections,
        })
    }
}
