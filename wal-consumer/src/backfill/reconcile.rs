//! What an attempt at a reconcile waits for beyond a backfill's: its stale replicas
//! must be attached to the stream before the first snapshot exists, and stay so. The
//! rule is `cluster_core::reconcile`'s.

use super::Shared;
use super::chunks::filled;
use crate::feed::progress::RunEnd;
use anyhow::{Context, bail};
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::{BackfillId, CollectionId};
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::WalPosition;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often it is looked whether all are attached.
const POLL: Duration = Duration::from_millis(50);
/// Another collection has its turn after that.
const FED_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Reconciling {
    collection: CollectionId,
    backfill: BackfillId,
    pub since: BackfillId,
    /// Those that are filled, as the attempt found them.
    replicas: BTreeSet<ReplicaKey>,
    stale: BTreeSet<ReplicaKey>,
}

impl Reconciling {
    pub fn of(
        map: &PartitionMap,
        collection: CollectionId,
        backfill: BackfillId,
    ) -> anyhow::Result<Self> {
        let record = map.collections.get(&collection);
        let since = record.and_then(|c| c.reconciles_since());
        Ok(Self {
            collection,
            backfill,
            since: since.context("the reconcile was wanted again")?,
            replicas: keys(map, collection, false),
            stale: keys(map, collection, true),
        })
    }

    /// Until the stream carries everything for the stale replicas from a position that
    /// no snapshot of the attempt is older than.
    pub async fn wait_until_fed(&self, shared: &Shared) -> anyhow::Result<()> {
        if self.stale.is_empty() {
            return Ok(());
        }
        let at = shared.barrier().await?;
        let give_up_at = Instant::now() + FED_WITHIN;
        while !self.are_fed_up_to(shared, at) {
            self.check_map(&shared.context.client.map())?;
            if Instant::now() >= give_up_at {
                bail!("a stale replica's node does not take the stream: trying again");
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Whether what was filled is still all that there is to fill, and has been fed
    /// without a hole: one that was attached anew meanwhile lacks what the snapshots
    /// before have seen.
    pub fn check(&self, shared: &Shared) -> Result<(), RunEnd> {
        self.check_map(&shared.context.client.map())?;
        match self.are_fed_up_to(shared, WalPosition::ZERO) {
            true => Ok(()),
            false => Err(RunEnd::restart(
                "reconcile",
                "a stale replica is fed no longer",
            )),
        }
    }

    fn are_fed_up_to(&self, shared: &Shared, at: WalPosition) -> bool {
        let mut stale = self.stale.iter();
        stale.all(|replica| shared.progress.is_fed_up_to(*replica, at))
    }

    fn check_map(&self, map: &PartitionMap) -> anyhow::Result<()> {
        let record = map.collections.get(&self.collection);
        let record = record.context("the collection is gone")?;
        let is_current =
            record.last_backfill == self.backfill && record.reconciles_since() == Some(self.since);
        if !is_current || keys(map, self.collection, false) != self.replicas {
            bail!("what is to be reconciled is no longer what it was: beginning again");
        }
        Ok(())
    }
}

fn keys(map: &PartitionMap, collection: CollectionId, only_stale: bool) -> BTreeSet<ReplicaKey> {
    let partitions = map.partitions_of(collection).into_iter();
    let replicas = partitions.flat_map(|p| filled(p, true).map(move |r| (p.id, r)));
    let wanted = replicas.filter(|(_, r)| !only_stale || r.state == ReplicaState::Stale);
    let key = |(partition, r): (_, &cluster_core::map::Replica)| ReplicaKey {
        partition,
        node: r.node,
        generation: r.generation,
    };
    wanted.map(key).collect()
}
