//! What a Postgres database must have before the cluster can follow it, and what it
//! should have. One place decides: `ctl source add` and `ctl source check` print
//! the whole list, the consumer refuses to follow by the same words.
//!
//! In reading order: what was seen of a server ([`facts`]), what that means for the
//! server ([`server`]) and for the role that follows it ([`role`]).

pub mod facts;
pub mod role;
pub mod server;

pub use facts::{RoleFacts, ServerFacts};

use crate::ids::SourceId;
use crate::map::PartitionMap;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// It works, and will hurt one day.
    Warning,
    /// It cannot be followed like this.
    Failed,
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What is so.
    pub finding: String,
    /// What to do about it; empty when nothing is to be done.
    pub remedy: String,
}

impl Check {
    pub fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            finding: finding.into(),
            remedy: String::new(),
        }
    }

    pub fn warning(
        name: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Warning,
            remedy: remedy.into(),
            ..Self::ok(name, finding)
        }
    }

    pub fn failed(
        name: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Failed,
            ..Self::warning(name, finding, remedy)
        }
    }

    /// The sentence that stands for it where there is no list.
    pub fn sentence(&self) -> String {
        match self.remedy.as_str() {
            "" => self.finding.clone(),
            remedy => format!("{}: {remedy}", self.finding),
        }
    }

    pub fn is_failed(&self) -> bool {
        self.verdict == Verdict::Failed
    }
}

/// The whole list, for a server that was reached. `source` is the one that is
/// checked, if the cluster knows it already.
pub fn checklist(facts: &ServerFacts, map: &PartitionMap, source: Option<SourceId>) -> Vec<Check> {
    let mut checks = vec![
        server::version(facts.version_num),
        server::primary(facts.is_in_recovery),
        server::wal_level(&facts.wal_level),
        server::library(facts.is_preloaded),
        server::extension(&facts.database, facts.extension.as_deref()),
        server::slots(facts),
        server::walsenders(facts),
        server::kept_wal(facts.max_slot_wal_keep_bytes),
    ];
    checks.extend(role::checks(&facts.role, facts.extension.is_some()));
    checks.push(server::identity(facts, map, source));
    checks
}
