//! Why a replica answered ESTALE, told from what the asker and the node knew. It
//! says whose turn it is to learn something, which is what an operator counts.

use crate::ids::MapStamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StaleReason {
    /// The node's lease is over.
    Lease,
    /// The request bears an epoch that is over.
    Epoch,
    /// The asker's map is older than the node's.
    OlderMap,
    /// The node's map is older than the asker's.
    NodeBehind,
    /// Both know the same map, and the replica is not ready.
    NotReady,
}

impl StaleReason {
    pub const ALL: [Self; 5] = [
        Self::Lease,
        Self::Epoch,
        Self::OlderMap,
        Self::NodeBehind,
        Self::NotReady,
    ];

    /// A whole request was refused. `known`: what the node said with it.
    pub fn of_request(asked: MapStamp, known: Option<MapStamp>) -> Self {
        match known {
            Some(known) if known.0 > asked.0 => Self::Epoch,
            _ => Self::Lease,
        }
    }

    /// One partition of a request was refused.
    pub fn of_partition(asked: MapStamp, known: MapStamp) -> Self {
        match known.cmp(&asked) {
            std::cmp::Ordering::Greater => Self::OlderMap,
            std::cmp::Ordering::Less => Self::NodeBehind,
            std::cmp::Ordering::Equal => Self::NotReady,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Epoch => "epoch",
            Self::OlderMap => "older_map",
            Self::NodeBehind => "node_behind",
            Self::NotReady => "not_ready",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LeaseEpoch, MapVersion};

    #[test]
    fn a_refusal_says_whose_turn_it_is_to_learn() {
        let at = |epoch, version| (LeaseEpoch(epoch), MapVersion(version));
        let request = |known| StaleReason::of_request(at(2, 5), known);
        assert_eq!(request(Some(at(2, 9))), StaleReason::Lease);
        assert_eq!(request(None), StaleReason::Lease);
        assert_eq!(request(Some(at(3, 5))), StaleReason::Epoch);
        let partition = |known| StaleReason::of_partition(at(2, 5), known);
        assert_eq!(partition(at(2, 6)), StaleReason::OlderMap);
        assert_eq!(partition(at(2, 4)), StaleReason::NodeBehind);
        assert_eq!(partition(at(2, 5)), StaleReason::NotReady);
    }
}
