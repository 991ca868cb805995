//! Why a partition, or a whole scan, did not answer. A kind says who acts next.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// The replica is not what the map said: refetch the map, try another.
    Estale,
    /// The replica has not reached the position that the query asks for.
    Lagging,
    /// A limit is reached; back off.
    Throttled,
    /// The replica has dropped the cursor: start the partition again.
    CursorLost,
    /// No answer, or none that can be used.
    Unavailable,
    /// The replica cannot read its own data; ask another.
    Corrupt,
    /// Refused by an integrity gate.
    Gated,
    /// The request itself is at fault: no replica would answer it.
    Invalid,
    NotAuthorised,
}

impl FailureKind {
    /// Whether every replica would say the same.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Gated | Self::Invalid | Self::NotAuthorised)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Estale => "stale map",
            Self::Lagging => "lagging",
            Self::Throttled => "throttled",
            Self::CursorLost => "cursor lost",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Gated => "gated by integrity",
            Self::Invalid => "invalid request",
            Self::NotAuthorised => "not authorised",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.message)
    }
}
