//! How much WAL a source's server may retain for its slot.

use super::command::{Refusal, Response};
use super::state::*;
use crate::ids::SourceId;

impl ClusterState {
    pub(super) fn set_slot_hold_limit(
        &mut self,
        source: SourceId,
        limit_bytes: Option<u64>,
    ) -> Outcome {
        let record = self
            .map
            .sources
            .get_mut(&source)
            .ok_or(Refusal::UnknownSource { of: source })?;
        let changed = match record.slot_hold_limit_bytes == limit_bytes {
            true => MapChanged::No,
            false => MapChanged::Yes,
        };
        record.slot_hold_limit_bytes = limit_bytes;
        Ok((Response::Done, changed))
    }
}
