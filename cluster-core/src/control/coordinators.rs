//! Which coordinators the cluster has, and had.
//!
//! Raft's own membership decides who votes; what is kept here follows it, for
//! those who read the map, and remembers what Raft forgets: an id that has once
//! voted is never given to another disk, for one that was emptied would vote a
//! second time in a term in which it has voted.

use super::command::{CoordinatorMember, Refusal, Response};
use super::state::*;
use std::collections::BTreeSet;

/// More voters than this make every commit slower and none safer.
pub const COORDINATORS_MAX: usize = 9;

impl ClusterState {
    /// The highest id that a coordinator has had. States of earlier versions did
    /// not note it.
    pub fn highest_coordinator(&self) -> u64 {
        let members = self.members.iter().map(|m| m.id);
        members.chain([self.last.coordinator]).max().unwrap_or(0)
    }

    pub fn is_member(&self, coordinator: u64) -> bool {
        self.members.iter().any(|m| m.id == coordinator)
    }

    /// Whether this id has voted and votes no longer.
    pub fn has_left(&self, coordinator: u64) -> bool {
        coordinator <= self.highest_coordinator() && !self.is_member(coordinator)
    }

    pub(super) fn set_members(&mut self, members: Vec<CoordinatorMember>) -> Outcome {
        check_members(&members)?;
        for member in &members {
            self.check_identity(member)?;
        }
        let before = self.map.coordinators.clone();
        self.take_members(members);
        let changed = self.map.coordinators != before;
        Ok((Response::Done, MapChanged::from(changed)))
    }

    /// The members from now on, ascending, and their addresses in the map.
    pub(super) fn take_members(&mut self, mut members: Vec<CoordinatorMember>) {
        members.sort_by_key(|member| member.id);
        self.last.coordinator = self.highest_coordinator();
        self.map.coordinators = members.iter().map(|m| m.address.clone()).collect();
        self.members = members;
        self.last.coordinator = self.highest_coordinator();
    }

    /// A member keeps its address; anybody else's id is a fresh one.
    fn check_identity(&self, member: &CoordinatorMember) -> Result<(), Refusal> {
        let CoordinatorMember { id, address } = member;
        let highest = self.highest_coordinator();
        let what = match self.members.iter().find(|known| known.id == *id) {
            Some(known) if known.address == *address => return Ok(()),
            Some(known) => format!(
                "coordinator {id} is at {}, not at {address}: remove it, and add the other \
                 with an empty data_dir as coordinator {}",
                known.address,
                highest + 1
            ),
            None if *id > highest => return Ok(()),
            None => format!(
                "coordinator id {id} is not above the highest ever given, {highest}, and none is \
                 given twice: start it with an empty data_dir and a new id, {} or above",
                highest + 1
            ),
        };
        Err(Refusal::Conflict { what })
    }

    /// Ids are known to have been given; the map names the members.
    pub(super) fn coordinators_violation(&self) -> Option<String> {
        let addresses = self.members.iter().map(|m| &m.address);
        if !addresses.eq(&self.map.coordinators) {
            let (map, members) = (&self.map.coordinators, &self.members);
            return Some(format!("the map names {map:?} for {members:?}"));
        }
        let ids: BTreeSet<u64> = self.members.iter().map(|m| m.id).collect();
        (ids.len() != self.members.len())
            .then(|| format!("a coordinator counts twice: {:?}", self.members))
    }
}

fn check_members(members: &[CoordinatorMember]) -> Result<(), Refusal> {
    let invalid = |what: &str| {
        Err(Refusal::Invalid {
            what: what.to_owned(),
        })
    };
    if members.is_empty() {
        return invalid("the last coordinator stays: without one there is no cluster");
    }
    if members.len() > COORDINATORS_MAX {
        return Err(Refusal::Full {
            of: "coordinators".to_owned(),
            limit: COORDINATORS_MAX,
        });
    }
    if members.iter().any(|m| m.id == 0 || m.address.is_empty()) {
        return invalid("a coordinator needs an id, from 1, and an address");
    }
    let ids: BTreeSet<_> = members.iter().map(|m| m.id).collect();
    let addresses: BTreeSet<_> = members.iter().map(|m| &m.address).collect();
    if ids.len().min(addresses.len()) < members.len() {
        return invalid("two coordinators share an id or an address");
    }
    Ok(())
}
