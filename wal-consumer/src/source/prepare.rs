//! Understands rows while their transaction is still being received.
//!
//! A change has no position before the commit: it says where it ends. But what a row
//! change does to a collection does not depend on that, and decoding is most of the
//! work; done meanwhile, it costs no time after the commit. pgoutput sends committed
//! transactions only, so that nothing is understood in vain.
//!
//! Only the rows that a transaction begins with are prepared: what must not be done
//! before the commit (definitions, TRUNCATE, key changes, whatever cannot be told or
//! read) stays raw, and everything behind it, for it may decide what that means.

use super::commit::RowChange;
use super::definitions;
use super::run::Run;
use crate::feed::progress::RunEnd;
use crate::replication::pgoutput::{self, Message};
use crate::rows::RowOp;
use bytes::Bytes;
use cluster_core::wal_position::Lsn;

impl Run {
    /// Whether the message has been dealt with; one that has not waits for the commit.
    pub(super) async fn prepare(&mut self, at: Lsn, payload: &Bytes) -> Result<bool, RunEnd> {
        let can_be_prepared = matches!(
            payload.first(),
            Some(b'R' | b'I' | b'U' | b'D' | b'Y' | b'O' | b'M')
        );
        if !can_be_prepared || !self.assembler.takes_prepared() {
            return Ok(false);
        }
        // What is no message ends the source at the commit, with all before it routed.
        let Ok(message) = pgoutput::decode(at, payload.clone()) else {
            return Ok(false);
        };
        let (relation, change) = match &message {
            Message::Relation(relation) => {
                self.take_relation(relation.clone());
                return Ok(true);
            }
            Message::Insert { relation, new } => (*relation, RowChange::Insert(new)),
            Message::Update { relation, old, new } => {
                (*relation, RowChange::Update(old.as_ref(), new))
            }
            Message::Delete { relation, old } => (*relation, RowChange::Delete(old)),
            Message::Type | Message::Origin | Message::Logical => return Ok(true),
            Message::Begin { .. } | Message::Commit { .. } | Message::Truncate { .. } => {
                return Ok(false);
            }
        };
        let Ok(table) = self.tables.relation(relation) else {
            return Ok(false);
        };
        if definitions::is_definitions(table) {
            return Ok(false);
        }
        let mut ops = Vec::new();
        for id in self.router.collections_of_table(relation) {
            let columns = self.column_map(id, relation).await?;
            match columns.and_then(|columns| change.of(columns)) {
                Ok(op @ (RowOp::Upsert { .. } | RowOp::Delete { .. })) => ops.push((id, op)),
                Ok(RowOp::Move { .. }) | Err(_) => return Ok(false),
            }
        }
        self.assembler.push_prepared(at, ops)?;
        Ok(true)
    }
}
