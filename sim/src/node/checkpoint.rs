//! A page of a replica's records for a learner on another node. The copy is
//! fuzzy: pages are read at different times, and the learner's log mends that.

use super::disk::ReplicaData;
use cluster_core::apply::{FormerVersion, StoredRow};
use cluster_core::ids::BackfillId;
use cluster_core::map::HashRange;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use std::collections::BTreeSet;

const PAGE_KEYS: usize = 5;

#[derive(Clone, Debug)]
pub struct CheckpointPage {
    /// What had been applied when the page was read.
    pub watermark: WalPosition,
    pub truncated: WalPosition,
    pub stamp_high: WalPosition,
    pub last_backfill: BackfillId,
    /// A key's row and former versions travel together.
    pub rows: Vec<(RowKey, StoredRow)>,
    pub formers: Vec<(RowKey, FormerVersion)>,
    pub first_key: Option<RowKey>,
    pub last_key: Option<RowKey>,
    pub is_last: bool,
}

/// What follows `after`, of the keys in `range` alone for a half of a split.
pub fn page(
    data: &ReplicaData,
    watermark: WalPosition,
    (after, range): (Option<&RowKey>, Option<HashRange>),
) -> CheckpointPage {
    let row_keys = data.rows.keys();
    let former_keys = data.formers.keys().map(|(key, _)| key);
    let is_next = |key: &&RowKey| {
        after.is_none_or(|after| *key > after)
            && range.is_none_or(|range| range.contains(key.placement_hash()))
    };
    let keys: BTreeSet<&RowKey> = row_keys.chain(former_keys).filter(is_next).collect();
    let page: BTreeSet<&RowKey> = keys.iter().copied().take(PAGE_KEYS).collect();
    let rows = data.rows.iter().filter(|(key, _)| page.contains(key));
    let formers = data
        .formers
        .iter()
        .filter(|((key, _), _)| page.contains(key));
    CheckpointPage {
        watermark,
        truncated: data.truncated,
        stamp_high: data.stamp_high,
        last_backfill: data.last_backfill,
        rows: rows.map(|(key, row)| (key.clone(), row.clone())).collect(),
        formers: formers
            .map(|((key, ended), (ended_xid, vector))| {
                let former = FormerVersion {
                    ended: *ended,
                    ended_xid: *ended_xid,
                    vector: vector.clone(),
                };
                (key.clone(), former)
            })
            .collect(),
        first_key: page.first().copied().cloned(),
        last_key: page.last().copied().cloned(),
        is_last: keys.len() <= PAGE_KEYS,
    }
}
