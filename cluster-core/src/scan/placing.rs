//! Which partitions and replicas a scan knows, as maps come.
//!
//! A map with other partitions starts the scan over on them; one that only
//! moves replicas restarts the partitions whose cursor is cut off.

use super::failure::{Failure, FailureKind};
use super::partition::PartitionScan;
use super::protocol::*;
use super::state::DistributedScan;
use crate::ids::MapStamp;
use crate::map::{PartitionMap, tiles_whole_space};
use std::hash::Hash;

impl<K: Ord + Hash + Clone> DistributedScan<K> {
    pub(super) fn take_map(&mut self, map: &PartitionMap, now: Millis) {
        let stamp = map.stamp();
        if self.refreshing.is_some_and(|wanted| wanted <= stamp) {
            self.refreshing = None;
        }
        if stamp <= self.known {
            return;
        }
        self.known = stamp;
        let new = map.partitions_of(self.collection);
        let is_same = new.len() == self.partitions.len()
            && new
                .iter()
                .zip(&self.partitions)
                .all(|(new, old)| old.is_same_as(new));
        if !is_same || self.problem.is_some() {
            for index in 0..self.partitions.len() {
                self.close_cursor(index);
            }
            return self.place(map);
        }
        let drops_given = !self.given.is_empty();
        for (index, new) in new.iter().enumerate() {
            let replicas = super::replicas::askable(new);
            let partition = &mut self.partitions[index];
            let is_cut_off = partition.cursor.is_some_and(|c| !replicas.contains(&c.at));
            // What a replica that serves no longer may still answer is not waited
            // for: its cursor could not be followed.
            let attempts = &self.attempts;
            partition.waiting.retain(|attempt| {
                let at = attempts.get(attempt).and_then(|a| a.asks_of(new.id));
                at.is_some_and(|at| replicas.contains(&at))
            });
            partition.replicas = replicas;
            partition.is_left_behind = new.needs_reconcile();
            if partition
                .last_failure
                .as_ref()
                .is_some_and(|f| f.kind == FailureKind::Estale)
            {
                partition.not_before = now;
            }
            if is_cut_off {
                self.close_cursor(index);
                self.partitions[index].restart(drops_given);
            }
        }
    }

    /// Starts over on the partitions of a map, without the keys already given.
    pub(super) fn place(&mut self, map: &PartitionMap) {
        let partitions = map.partitions_of(self.collection);
        self.is_dropped = partitions.is_empty();
        self.problem = if self.is_dropped {
            let message = format!("the map knows no {}: it was dropped", self.collection);
            Some(Failure::new(FailureKind::Unavailable, message))
        } else if !tiles_whole_space(partitions.iter().map(|p| p.range)) {
            let message = format!("the partitions of {} leave a gap", self.collection);
            Some(Failure::new(FailureKind::Unavailable, message))
        } else {
            None
        };
        let drops_given = !self.given.is_empty();
        self.partitions = match self.problem {
            Some(_) => Vec::new(),
            None => partitions
                .iter()
                .map(|p| PartitionScan::new(p, drops_given))
                .collect(),
        };
    }

    pub(super) fn want_map(&mut self, at_least: MapStamp) {
        if at_least > self.known && self.refreshing.is_none_or(|wanted| wanted < at_least) {
            self.refreshing = Some(at_least);
            self.commands.push(Command::RefreshMap { at_least });
        }
    }

    pub(super) fn close_cursor(&mut self, index: usize) {
        if let Some(cursor) = self.partitions[index].cursor.take() {
            let resume_tokens = vec![cursor.resume_token];
            self.commands.push(Command::CloseCursors {
                node: cursor.at.node,
                resume_tokens,
            });
        }
    }
}
