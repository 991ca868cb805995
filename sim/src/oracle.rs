//! What is true: every version of every row, with the positions where it began
//! and ended. It is written by Postgres's commits and read by the checks alone.

use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct Version {
    pub began: WalPosition,
    pub ended: Option<Ended>,
    pub vector: Box<[f32]>,
}

#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub at: WalPosition,
    pub xid: FullXid,
    pub by_truncate: bool,
}

impl Version {
    pub fn is_current_at(&self, at: WalPosition) -> bool {
        self.began <= at && self.ended.is_none_or(|e| e.at > at)
    }
}

#[derive(Default)]
pub struct Oracle {
    versions: BTreeMap<RowKey, Vec<Version>>,
}

impl Oracle {
    pub fn begin(&mut self, key: RowKey, at: WalPosition, vector: Box<[f32]>) {
        let version = Version {
            began: at,
            ended: None,
            vector,
        };
        self.versions.entry(key).or_default().push(version);
    }

    pub fn end(&mut self, key: &RowKey, ended: Ended) {
        let versions = self.versions.get_mut(key);
        let last = versions.and_then(|v| v.last_mut());
        if let Some(last) = last.filter(|v| v.ended.is_none()) {
            last.ended = Some(ended);
        }
    }

    pub fn truncate(&mut self, at: WalPosition, xid: FullXid) {
        for versions in self.versions.values_mut() {
            for version in versions.iter_mut().filter(|v| v.ended.is_none()) {
                version.ended = Some(Ended {
                    at,
                    xid,
                    by_truncate: true,
                });
            }
        }
    }

    pub fn versions(&self, key: &RowKey) -> &[Version] {
        self.versions.get(key).map_or(&[], Vec::as_slice)
    }

    /// The rows with a vector, as a snapshot at `at` sees them.
    pub fn rows_at(&self, at: WalPosition) -> impl Iterator<Item = (&RowKey, &Version)> {
        self.versions.iter().filter_map(move |(key, versions)| {
            let current = versions.iter().rev().find(|v| v.is_current_at(at));
            current.map(|version| (key, version))
        })
    }
}
