//! Searches asked of one node, and whether all replicas hold the same rows.

use crate::wire::Wire;
use anyhow::{Context, Result, bail, ensure};
use cluster_core::ids::{CollectionId, NodeId, PartitionId, SourceId};
use cluster_core::map::{Partition, PartitionMap, Replica, ReplicaState};
use proto::v1;
use proto::v1::partition_error::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tonic::Status;

const EF_SEARCH: u32 = 100;
const DEADLINE_MS: u64 = 4_000;
/// Rows of a page when all of a replica are read.
const PAGE_ROWS: u32 = 2_000;
/// A node's `search.cursor_ttl_ms`, and some.
const CURSORS_LIVE: Duration = Duration::from_secs(75);

/// What one node said to one search.
#[derive(Debug)]
pub enum Answer {
    /// Pages of every partition that was asked for.
    Rows(v1::SearchResponse),
    /// ESTALE for every partition that was asked for.
    Estale(String),
    Other(String),
}

impl Answer {
    pub(crate) fn of(answer: Result<v1::SearchResponse, Status>) -> Self {
        let response = match answer {
            Ok(response) => response,
            Err(status) if proto::error::is_estale(&status) => {
                return Self::Estale(status.message().to_owned());
            }
            Err(status) => return Self::Other(format!("{status:?}")),
        };
        let errors = response.pages.iter().map(|page| page.error.as_ref());
        let is_estale = |e: &v1::PartitionError| e.kind() == Kind::Estale;
        if !response.pages.is_empty() && errors.clone().all(|e| e.is_some_and(is_estale)) {
            return Self::Estale(format!("{:?}", response.pages[0].error));
        }
        match errors.clone().all(|error| error.is_none()) {
            true => Self::Rows(response),
            false => Self::Other(format!("{:?}", errors.collect::<Vec<_>>())),
        }
    }

    pub fn rows(self) -> Result<v1::SearchResponse> {
        match self {
            Self::Rows(response) => Ok(response),
            other => bail!("no rows: {other:?}"),
        }
    }

    pub fn assert_estale(&self) -> Result<()> {
        match self {
            Self::Estale(_) => Ok(()),
            Self::Rows(response) => bail!(
                "answered with {} pages, not with ESTALE",
                response.pages.len()
            ),
            Self::Other(problem) => bail!("not ESTALE: {problem}"),
        }
    }
}

/// A search of one collection, by a map that the test keeps.
pub struct DirectSearch {
    map: PartitionMap,
    source: SourceId,
    partitions: Vec<Partition>,
    query: Vec<f32>,
}

impl DirectSearch {
    pub fn new(map: PartitionMap, index: &str, query: Vec<f32>) -> Result<Self> {
        let mut collections = map.collections.values();
        let collection = collections
            .find(|c| c.spec.index_name == index)
            .with_context(|| format!("the map has no collection of {index}"))?;
        let (id, source) = (collection.id, collection.spec.source);
        Ok(Self::of_collection(map, id, source, query))
    }

    /// By the index's OID: the newest generation, where there are several.
    pub fn of_index(map: PartitionMap, oid: u32, query: Vec<f32>) -> Result<Self> {
        let collections = map.collections.values();
        let newest = collections
            .filter(|c| c.spec.index_oid == oid)
            .max_by_key(|c| c.spec.definition_generation);
        let newest = newest.with_context(|| format!("the map has no collection of index {oid}"))?;
        let (id, source) = (newest.id, newest.spec.source);
        Ok(Self::of_collection(map, id, source, query))
    }

    /// Of a collection that the map has, whichever index names it.
    pub fn of_collection(
        map: PartitionMap,
        collection: CollectionId,
        source: SourceId,
        query: Vec<f32>,
    ) -> Self {
        let partitions = map.partitions_of(collection);
        Self {
            source,
            partitions: partitions.into_iter().cloned().collect(),
            query,
            map,
        }
    }

    pub fn map(&self) -> &PartitionMap {
        &self.map
    }

    pub fn source(&self) -> SourceId {
        self.source
    }

    pub fn node_at(&self, address: &str) -> Result<NodeId> {
        let mut nodes = self.map.nodes.values();
        let node = nodes.find(|node| node.address == address);
        Ok(node.with_context(|| format!("no node is at {address}"))?.id)
    }

    /// Asks for the first page of everything that a node serves; with `min_lsn`
    /// only for an answer that includes this position.
    pub fn of_node(&self, node: NodeId, min_lsn: Option<u64>) -> Result<v1::SearchRequest> {
        let mut cursors = Vec::new();
        for partition in &self.partitions {
            let mut serving = partition.in_state(ReplicaState::Serving);
            cursors.extend(
                serving
                    .find(|replica| replica.node == node)
                    .map(|replica| cursor(partition.id, replica, 0)),
            );
        }
        ensure!(!cursors.is_empty(), "{node} serves nothing of it");
        Ok(self.request(cursors, min_lsn))
    }

    /// Asks one replica for its first page, under the generation that the kept map
    /// gives it.
    pub fn of_replica(&self, id: PartitionId, node: NodeId) -> Result<v1::SearchRequest> {
        let partition = self.map.partitions.get(&id);
        let replica = partition.and_then(|partition| partition.replica_on(node));
        let replica = replica.with_context(|| format!("{node} holds no {id}"))?;
        Ok(self.request(vec![cursor(id, replica, 0)], None))
    }

    /// As the bridge's worker of the server that is followed.
    fn asked_by(&self) -> Option<v1::AskedBy> {
        let source = self.map.sources.get(&self.source)?;
        Some(v1::AskedBy {
            server_start: source.server_start?.0,
            database_oid: source.slot.as_ref()?.database_oid,
        })
    }

    fn request(
        &self,
        partitions: Vec<v1::PartitionCursor>,
        min_lsn: Option<u64>,
    ) -> v1::SearchRequest {
        let consistency = match min_lsn {
            None => v1::Consistency::Eventual,
            Some(_) => v1::Consistency::Position,
        };
        v1::SearchRequest {
            epoch: self.map.epoch.0,
            map_version: self.map.version.0,
            source_id: self.source.0,
            collection_id: self.partitions[0].collection.0,
            query: proto::convert::vector_to_bytes(&self.query),
            ef_search: EF_SEARCH,
            page_rows: 10,
            consistency: consistency.into(),
            min_lsn: min_lsn.unwrap_or_default(),
            // Current versions only.
            snapshot_xmin: u64::MAX,
            deadline_ms: DEADLINE_MS,
            partitions,
            asked_by: self.asked_by(),
            ..Default::default()
        }
    }
}

/// Waits until the node at an address answers for everything that it is to serve,
/// asked by the newest map and without a position.
pub fn wait_until_served(
    wire: &Wire,
    index: &str,
    query: &[f32],
    address: &str,
    limit: Duration,
) -> Result<()> {
    let ask = || {
        let search = DirectSearch::new(wire.map()?, index, query.to_vec())?;
        let node = search.node_at(address)?;
        wire.search(address, search.of_node(node, None)?)?.rows()
    };
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{address} does not serve within {limit:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn cursor(partition: PartitionId, replica: &Replica, resume_token: u64) -> v1::PartitionCursor {
    v1::PartitionCursor {
        partition_id: partition.0,
        generation: replica.generation.0,
        resume_token,
    }
}

/// Reads every serving replica to its end, at or after a position at which the
/// table rests: all replicas of a partition hold the same keys, and together the
/// partitions hold `rows`.
pub fn assert_replicas_agree(
    wire: &Wire,
    search: &DirectSearch,
    min_lsn: u64,
    rows: usize,
) -> Result<()> {
    let mut total = 0;
    for partition in &search.partitions {
        let mut first: Option<BTreeSet<Vec<u8>>> = None;
        for replica in partition.in_state(ReplicaState::Serving) {
            let keys = keys_of(wire, search, partition.id, replica, min_lsn)
                .with_context(|| format!("{} on {}", partition.id, replica.node))?;
            let expected = first.get_or_insert_with(|| keys.clone());
            ensure!(
                *expected == keys,
                "{} has {} rows on {} and {} on another node, or others",
                partition.id,
                keys.len(),
                replica.node,
                expected.len()
            );
        }
        total += first.map_or(0, |keys| keys.len());
    }
    ensure!(total == rows, "the replicas hold {total} rows of {rows}");
    Ok(())
}

fn keys_of(
    wire: &Wire,
    search: &DirectSearch,
    partition: PartitionId,
    replica: &Replica,
    min_lsn: u64,
) -> Result<BTreeSet<Vec<u8>>> {
    let rows = rows_of(wire, search, partition, replica, min_lsn)?;
    Ok(rows.into_keys().collect())
}

/// Asserts that every serving replica holds the rows of `heap`, at their distances
/// from the search's query, and no others.
pub fn assert_replicas_hold(
    wire: &Wire,
    search: &DirectSearch,
    min_lsn: u64,
    heap: &BTreeMap<Vec<u8>, f64>,
) -> Result<()> {
    let mut total = 0;
    for partition in &search.partitions {
        let id = partition.id;
        let mut first: Option<BTreeSet<Vec<u8>>> = None;
        for replica in partition.in_state(ReplicaState::Serving) {
            let node = replica.node;
            let rows = rows_of(wire, search, id, replica, min_lsn)
                .with_context(|| format!("{id} on {node}"))?;
            for (key, distance) in &rows {
                let want = heap.get(key);
                let want = want.with_context(|| format!("zombie {key:02x?} in {id} on {node}"))?;
                ensure!(
                    (distance - want).abs() <= 1e-4 * want.abs().max(1.0),
                    "{key:02x?} lies at {distance} in {id} on {node}, at {want} in the heap"
                );
            }
            let keys: BTreeSet<_> = rows.into_keys().collect();
            match &first {
                None => first = Some(keys),
                Some(other) => ensure!(
                    *other == keys,
                    "{id} on {node} has other keys than its peer: {:02x?}",
                    other.symmetric_difference(&keys).collect::<Vec<_>>()
                ),
            }
        }
        total += first.map_or(0, |keys| keys.len());
    }
    ensure!(
        total == heap.len(),
        "the replicas hold {total} rows of {}",
        heap.len()
    );
    Ok(())
}

/// Keys and distances of one replica. A version that was replaced stays while a cursor is
/// open that was there before: of a session that was killed, until its time is up.
fn rows_of(
    wire: &Wire,
    search: &DirectSearch,
    partition: PartitionId,
    replica: &Replica,
    min_lsn: u64,
) -> Result<BTreeMap<Vec<u8>, f64>> {
    let began = Instant::now();
    loop {
        if let Some(rows) = rows_once(wire, search, partition, replica, min_lsn)? {
            return Ok(rows);
        }
        ensure!(began.elapsed() < CURSORS_LIVE, "a key comes twice");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// `None`: a key came twice.
fn rows_once(
    wire: &Wire,
    search: &DirectSearch,
    partition: PartitionId,
    replica: &Replica,
    min_lsn: u64,
) -> Result<Option<BTreeMap<Vec<u8>, f64>>> {
    let node = search.map.nodes.get(&replica.node);
    let address = &node.context("the map lacks the node")?.address;
    let mut rows = BTreeMap::new();
    let mut twice = false;
    let mut resume_token = 0;
    loop {
        let cursors = vec![cursor(partition, replica, resume_token)];
        let request = v1::SearchRequest {
            exact: true,
            page_rows: PAGE_ROWS,
            ..search.request(cursors, Some(min_lsn))
        };
        let response = wire.search(address, request)?.rows()?;
        let page = response.pages.into_iter().next().context("no page")?;
        for hit in page.hits {
            let former = rows.insert(hit.key.to_vec(), hit.distance);
            twice |= former.is_some();
        }
        if page.exhausted {
            return Ok((!twice).then_some(rows));
        }
        resume_token = page.resume_token;
    }
}
