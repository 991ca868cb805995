//! Newtypes for every number that crosses a boundary. Ids are allocated by the
//! coordinators and never reused.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number that follows. Panics at the end of the 64-bit space,
            /// which no allocation reaches.
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect(concat!(stringify!($name), " space exhausted")))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

/// How new a map is: pairs only rise at every observer (P6).
pub type MapStamp = (LeaseEpoch, MapVersion);

number!(
    /// One Postgres database that the cluster follows.
    SourceId, "source-");
number!(
    /// One indexed column of one table of one source.
    CollectionId, "collection-");
number!(
    /// A range of the hash space of one collection.
    PartitionId, "partition-");
number!(
    /// A cluster node. An empty disk never takes a known id.
    NodeId, "node-");
number!(
    /// A WAL consumer process.
    ConsumerId, "consumer-");
number!(
    /// Fencing token of a source's consumer; stored by every node.
    ConsumerEpoch, "");
number!(
    /// The reigning coordinator leader's number; rises on every leader change.
    LeaseEpoch, "");
number!(
    /// Rises by one on every change of the partition map.
    MapVersion, "");
number!(
    /// Numbers the assignments of a partition to a node: a replica that went
    /// away and came back has another one.
    Generation, "");
number!(
    /// A random number that a Postgres server draws when it starts. A copy of its files
    /// has the same system identifier, timeline and OIDs, but never the same start.
    ServerStart, "");
number!(
    /// Counts the connection strings that a source has had; who streams connects
    /// anew when it rises.
    DsnVersion, "");
number!(
    /// Counts the breaks in a source's history.
    Incarnation, "");
number!(
    /// Numbers the backfills of a collection; a later one voids an earlier.
    BackfillId, "");
