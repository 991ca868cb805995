//! Whether a server that bears a source's identifiers, and was started another time than
//! the one that is followed, is a *copy* of that one, or that very one, whose consumer has
//! not come back yet.
//!
//! The identifiers do not tell. Somebody who streams from another start, and was heard of
//! long enough after this one, does: then this server is a copy, and answers for itself.
//! While nobody is heard, an outage is assumed, which costs a copy some answers (`RV003`),
//! where the other error would let every search scan the primary's tables.

use crate::ids::ServerStart;

/// What was said before the server had run for so long may be of before its start.
const TOLD_AFTER_MS: u64 = 20_000;
/// A consumer that has been silent for longer streams from nothing, for all that is known.
const SILENT_MS_MAX: u64 = 10_000;

/// What one consumer said of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// `None`: never, as far as the present leader knows.
    pub silent_ms: Option<u64>,
    /// The start of the server that it streams from; `None`: from none.
    pub streams_from: Option<ServerStart>,
}

/// `up_for_ms`: how long the server has been running.
pub fn is_copy(own: ServerStart, up_for_ms: u64, heard: Heard) -> bool {
    let Some(silent_ms) = heard.silent_ms else {
        return false;
    };
    let is_of_now = silent_ms <= SILENT_MS_MAX && silent_ms + TOLD_AFTER_MS <= up_for_ms;
    is_of_now && heard.streams_from.is_some_and(|start| start != own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(silent_ms: Option<u64>, start: Option<u64>, up_for_s: u64) -> bool {
        let heard = Heard {
            silent_ms,
            streams_from: start.map(ServerStart),
        };
        is_copy(ServerStart(7), up_for_s * 1_000, heard)
    }

    #[test]
    fn p11_only_a_server_whose_source_is_heard_to_be_followed_elsewhere_is_a_copy() {
        assert!(said(Some(1_000), Some(8), 25));
        assert!(!said(Some(1_000), Some(7), 25), "followed here");
        assert!(!said(Some(1_000), None, 25), "streams from nobody");
        assert!(!said(None, Some(8), 25), "of another leader's time");
        assert!(!said(Some(11_000), Some(8), 60), "silent since");
        assert!(
            !said(Some(9_000), Some(8), 25),
            "may be of before the start"
        );
    }
}
