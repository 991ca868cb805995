//! Collections: created and dropped in the source's commit order, filled by
//! backfills.

use super::command::{PlacedPartition, Refusal, Response};
use super::state::*;
use crate::collection::*;
use crate::ids::*;
use crate::map::*;

impl ClusterState {
    /// Named by `(source, index_oid, definition_generation)`. A replayed stream
    /// creates what exists, or what a later generation has replaced; the
    /// latter goes again as soon as the stream reaches the later one.
    pub(super) fn create_collection(
        &mut self,
        token: ConsumerEpoch,
        spec: CollectionSpec,
        placement: Vec<PlacedPartition>,
    ) -> Outcome {
        self.check_token(spec.source, token)?;
        if let Some(existing) =
            self.map
                .collection_by_index(spec.source, spec.index_oid, spec.definition_generation)
        {
            let (id, ready) = (existing.id, is_ready(existing));
            let renamed = self.rename_collection(id, &spec);
            let dropped = ready && self.drop_earlier_generations(id);
            let changed = if dropped || renamed {
                MapChanged::Yes
            } else {
                MapChanged::No
            };
            return Ok((Response::CollectionCreated { collection: id }, changed));
        }
        check_spec(&spec)?;
        self.check_placement(&placement)?;

        let id = self.last.collection.next();
        self.last.collection = id;
        for placed in placement {
            self.add_partition(id, placed);
        }
        let last_backfill = BackfillId(0);
        let state = CollectionState::Building {
            backfill: last_backfill,
        };
        self.map.collections.insert(
            id,
            Collection {
                id,
                spec,
                state,
                last_backfill,
                reconcile: None,
            },
        );
        Ok((
            Response::CollectionCreated { collection: id },
            MapChanged::Yes,
        ))
    }

    /// What the user calls an index, its table and schema, for those who read it. The
    /// column keeps the name of when the index was made: rows of before a renaming
    /// that are still in the stream are read by it.
    fn rename_collection(&mut self, id: CollectionId, now: &CollectionSpec) -> bool {
        let Some(collection) = self.map.collections.get_mut(&id) else {
            return false;
        };
        let spec = &mut collection.spec;
        let renamed = CollectionSpec {
            schema_name: now.schema_name.clone(),
            table_name: now.table_name.clone(),
            index_name: now.index_name.clone(),
            ..spec.clone()
        };
        let is_news = *spec != renamed;
        *spec = renamed;
        is_news
    }

    fn check_placement(&self, placement: &[PlacedPartition]) -> Result<(), Refusal> {
        if self.map.nodes.is_empty() {
            return Err(Refusal::NoNodes);
        }
        if self.map.nodes.values().all(|node| node.is_draining) {
            return Err(Refusal::AllDraining);
        }
        let outdated = |what: String| Err(Refusal::PlacementOutdated { what });
        if !tiles_whole_space(placement.iter().map(|p| p.range)) {
            return outdated("the ranges do not tile the hash space".to_owned());
        }
        for placed in placement {
            if placed.nodes.is_empty() {
                return outdated(format!("nobody holds {}", placed.range));
            }
            for (i, node) in placed.nodes.iter().enumerate() {
                if !self.map.nodes.contains_key(node) || placed.nodes[..i].contains(node) {
                    return outdated(format!("{node} is unknown or named twice"));
                }
            }
        }
        if self.map.collections.len() >= COLLECTIONS_MAX {
            return Err(Refusal::Full {
                of: "collections".to_owned(),
                limit: COLLECTIONS_MAX,
            });
        }
        if self.map.partitions.len() + placement.len() > PARTITIONS_MAX {
            return Err(Refusal::Full {
                of: "partitions".to_owned(),
                limit: PARTITIONS_MAX,
            });
        }
        Ok(())
    }

    /// The replicas of a new partition serve at once: they start with nothing,
    /// as the collection does, and get the stream from the beginning.
    fn add_partition(&mut self, collection: CollectionId, placed: PlacedPartition) {
        let id = self.last.partition.next();
        self.last.partition = id;
        let mut generation = self.last.generation;
        let replicas = placed
            .nodes
            .into_iter()
            .map(|node| {
                generation = generation.next();
                Replica {
                    node,
                    generation,
                    state: ReplicaState::Serving,
                }
            })
            .collect();
        self.last.generation = generation;
        let partition = Partition {
            id,
            collection,
            range: placed.range,
            replicas,
        };
        self.map.partitions.insert(id, partition);
    }

    pub(super) fn drop_collection(
        &mut self,
        token: ConsumerEpoch,
        source: SourceId,
        index_oid: u32,
        definition_generation: u64,
    ) -> Outcome {
        self.check_token(source, token)?;
        let dropped = self.remove_collections(|c| {
            c.spec.source == source
                && c.spec.index_oid == index_oid
                && c.spec.definition_generation <= definition_generation
        });
        Ok((
            Response::Done,
            if dropped {
                MapChanged::Yes
            } else {
                MapChanged::No
            },
        ))
    }

    /// Each call voids the earlier backfills. A collection that is ready stays
    /// so: a late repetition of an old call must not take it away, and one that is
    /// reconciled goes on answering.
    pub(super) fn begin_backfill(
        &mut self,
        token: ConsumerEpoch,
        collection: CollectionId,
    ) -> Outcome {
        let mut partitions = self.map.partitions.values();
        let has_stale = partitions.any(|p| {
            p.collection == collection && p.in_state(ReplicaState::Stale).next().is_some()
        });
        let record = self.fenced_collection(token, collection)?;
        let backfill = record.last_backfill.next();
        let is_ready = is_ready(record);
        match &mut record.reconcile {
            Some(reconcile) => {
                reconcile.since.get_or_insert(backfill);
            }
            None if is_ready => {
                let what = format!("{collection} is ready: nothing to fill");
                return Err(Refusal::Conflict { what });
            }
            // It had failed: what is stale is fed by a reconcile only.
            None if has_stale => {
                record.reconcile = Some(Reconcile {
                    reason: "it had failed with replicas that lack changes".to_owned(),
                    since: Some(backfill),
                });
            }
            None => {}
        }
        if !is_ready {
            record.state = CollectionState::Building { backfill };
        }
        record.last_backfill = backfill;
        Ok((Response::BackfillBegun { backfill }, MapChanged::Yes))
    }

    pub(super) fn finish_backfill(
        &mut self,
        token: ConsumerEpoch,
        collection: CollectionId,
        backfill: BackfillId,
        mut snapshot: BackfillSnapshot,
    ) -> Outcome {
        // `BackfillSnapshot::covers` searches by halves.
        snapshot.running.sort_unstable();
        snapshot.running.dedup();
        let record = self.fenced_collection(token, collection)?;
        let last = record.last_backfill;
        let void = Refusal::BackfillVoid {
            collection,
            given: backfill,
            last,
        };
        match (&record.state, &record.reconcile) {
            // One that was wanted again since has not seen what it is wanted for.
            (_, Some(Reconcile { since: None, .. })) => return Err(void),
            (CollectionState::Building { backfill: running }, _)
                if *running == backfill && backfill != BackfillId(0) => {}
            (CollectionState::Ready { .. }, Some(Reconcile { since: Some(_), .. }))
                if last == backfill => {}
            (CollectionState::Ready { snapshot: known }, None)
                if last == backfill && *known == snapshot =>
            {
                return Ok((Response::Done, MapChanged::No));
            }
            _ => return Err(void),
        }
        record.state = CollectionState::Ready { snapshot };
        if record.reconcile.take().is_some() {
            self.serve_reconciled(collection);
        }
        self.drop_earlier_generations(collection);
        Ok((Response::Done, MapChanged::Yes))
    }

    /// Nobody copies a failed collection: its next backfill finds no learner.
    pub(super) fn fail_collection(
        &mut self,
        token: ConsumerEpoch,
        collection: CollectionId,
        reason: String,
    ) -> Outcome {
        let record = self.fenced_collection(token, collection)?;
        let failed = CollectionState::Failed { reason };
        if record.state == failed {
            return Ok((Response::Done, MapChanged::No));
        }
        record.state = failed;
        record.reconcile = None;
        self.give_up_learners(collection);
        Ok((Response::Done, MapChanged::Yes))
    }

    fn fenced_collection(
        &mut self,
        token: ConsumerEpoch,
        collection: CollectionId,
    ) -> Result<&mut Collection, Refusal> {
        let unknown = Refusal::UnknownCollection { collection };
        let source = self
            .map
            .collections
            .get(&collection)
            .ok_or(unknown.clone())?
            .spec
            .source;
        self.check_token(source, token)?;
        self.map.collections.get_mut(&collection).ok_or(unknown)
    }

    /// Drops what `kept` replaces; whether there was any.
    fn drop_earlier_generations(&mut self, kept: CollectionId) -> bool {
        let spec = self.map.collections[&kept].spec.clone();
        self.remove_collections(|c| {
            c.spec.source == spec.source
                && c.spec.index_oid == spec.index_oid
                && c.spec.definition_generation < spec.definition_generation
        })
    }

    /// Removes collections with their partitions; whether there was any.
    pub(super) fn remove_collections(&mut self, goes: impl Fn(&Collection) -> bool) -> bool {
        let before = self.map.collections.len();
        self.map
            .collections
            .retain(|_, collection| !goes(collection));
        let collections = &self.map.collections;
        self.map
            .partitions
            .retain(|_, p| collections.contains_key(&p.collection));
        self.forget_changes_of_gone_partitions();
        self.map.collections.len() != before
    }
}

pub(super) fn is_ready(collection: &Collection) -> bool {
    matches!(collection.state, CollectionState::Ready { .. })
}

fn check_spec(spec: &CollectionSpec) -> Result<(), Refusal> {
    let invalid = |what: String| Err(Refusal::Invalid { what });
    if !(1..=DIMENSIONS_MAX).contains(&spec.dimensions) {
        return invalid(format!(
            "{} dimensions: want 1 to {DIMENSIONS_MAX}",
            spec.dimensions
        ));
    }
    if spec.key_attnums.is_empty() {
        return invalid("a collection's table needs a replica identity".to_owned());
    }
    if spec.key_attnums.iter().any(|attnum| *attnum < 1) || spec.column_attnum < 1 {
        return invalid("attribute numbers count from 1".to_owned());
    }
    Ok(())
}
