//! What one node is to be told, in order, until it has made it durable.
//!
//! Messages stay after they were sent: a stream that broke is opened again and
//! fed from the queue, without troubling the source. `previous` of a batch is
//! the `to` of what was last sent for its partition; "nothing else" counts as
//! sent only for partitions that the node has reported, since others would not
//! move with it.

use cluster_core::ids::{Generation, PartitionId};
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use proto::v1;
use proto::v1::apply_request::Kind;
use std::collections::{BTreeMap, VecDeque};

/// What a message costs beyond its changes.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

#[derive(Clone, Debug)]
struct Item {
    kind: Kind,
    /// `None`: "nothing else".
    partition: Option<PartitionId>,
    to: WalPosition,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Fed {
    pub generation: Generation,
    /// The `to` of what was last queued for the partition.
    last_to: WalPosition,
    /// The node has reported it, so that it moves with "nothing else".
    is_known: bool,
    pub applied: WalPosition,
    pub durable: WalPosition,
}

#[derive(Debug, Default)]
pub struct NodeQueue {
    items: VecDeque<Item>,
    /// How many of `items` were sent on the present stream.
    sent: usize,
    bytes: usize,
    partitions: BTreeMap<PartitionId, Fed>,
}

impl NodeQueue {
    /// `from` is the position after which everything will be queued.
    pub fn add_partition(&mut self, id: PartitionId, generation: Generation, from: WalPosition) {
        self.partitions.entry(id).or_insert(Fed {
            generation,
            last_to: from,
            is_known: false,
            applied: WalPosition::ZERO,
            durable: WalPosition::ZERO,
        });
    }

    /// Forgets a dropped partition and what waits for it.
    pub fn remove_partition(&mut self, id: PartitionId) {
        self.partitions.remove(&id);
        let sent = self.sent;
        let mut index = 0;
        let mut sent_removed = 0;
        self.items.retain(|item| {
            let stays = item.partition != Some(id);
            sent_removed += usize::from(!stays && index < sent);
            index += 1;
            stays
        });
        self.sent -= sent_removed;
        self.bytes = self.items.iter().map(|item| item.bytes).sum();
        self.trim();
    }

    pub fn partition(&self, id: PartitionId) -> Option<&Fed> {
        self.partitions.get(&id)
    }

    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.partitions.keys().copied()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push_batch(
        &mut self,
        id: PartitionId,
        to: WalPosition,
        changes: Vec<v1::RowChange>,
        bytes: usize,
    ) {
        let Some(fed) = self.partitions.get_mut(&id) else {
            return;
        };
        assert!(
            to > fed.last_to,
            "{id}: batch up to {to} after {}",
            fed.last_to
        );
        let batch = v1::ApplyBatch {
            partition_id: id.0,
            generation: fed.generation.0,
            previous: Some(fed.last_to.into()),
            to: Some(to.into()),
            changes,
        };
        fed.last_to = to;
        self.push(Item {
            kind: Kind::Batch(batch),
            partition: Some(id),
            to,
            bytes,
        });
    }

    pub fn push_nothing_else(
        &mut self,
        to: WalPosition,
        oldest_xmin: Option<FullXid>,
        confirmed: WalPosition,
    ) {
        for fed in self.partitions.values_mut().filter(|fed| fed.is_known) {
            fed.last_to = fed.last_to.max(to);
        }
        let message = v1::NothingElse {
            to: Some(to.into()),
            except_partition_ids: Vec::new(),
            oldest_xmin: oldest_xmin.unwrap_or(0),
            confirmed: Some(confirmed.into()),
        };
        let item = Item {
            kind: Kind::NothingElse(message),
            partition: None,
            to,
            bytes: 0,
        };
        let has_unsent = self.sent < self.items.len();
        match self.items.back_mut() {
            Some(last) if last.partition.is_none() && has_unsent => {
                last.kind = item.kind;
                last.to = to;
            }
            _ => self.push(item),
        }
    }

    fn push(&mut self, mut item: Item) {
        item.bytes += MESSAGE_OVERHEAD_BYTES;
        self.bytes += item.bytes;
        self.items.push_back(item);
    }

    /// The next message to send on the present stream.
    pub fn next_to_send(&mut self) -> Option<v1::ApplyRequest> {
        let item = self.items.get(self.sent)?;
        self.sent += 1;
        Some(v1::ApplyRequest {
            kind: Some(item.kind.clone()),
        })
    }

    /// A new stream was opened: everything not durable is sent again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Gives up what waits; the node must be fed from the slot again.
    pub fn clear(&mut self) {
        self.items.clear();
        self.sent = 0;
        self.bytes = 0;
    }

    /// Takes a node's report; whether it says something new.
    pub fn report(
        &mut self,
        id: PartitionId,
        generation: Generation,
        applied: WalPosition,
        durable: WalPosition,
    ) -> bool {
        let Some(fed) = self
            .partitions
            .get_mut(&id)
            .filter(|f| f.generation == generation)
        else {
            return false;
        };
        let is_new = applied > fed.applied || durable > fed.durable || !fed.is_known;
        fed.is_known = true;
        fed.applied = fed.applied.max(applied);
        fed.durable = fed.durable.max(durable);
        if is_new {
            self.trim();
        }
        is_new
    }

    /// Drops from the front what is durable wherever it concerns.
    fn trim(&mut self) {
        let lowest = self.partitions.values().map(|fed| fed.durable).min();
        while let Some(item) = self.items.front() {
            let durable = match item.partition {
                Some(id) => self.partitions.get(&id).map(|fed| fed.durable),
                None => lowest,
            };
            // Unsent messages go out even if a former stream covered them: the
            // positions in "nothing else" tell what may be forgotten.
            if self.sent == 0 || durable.is_some_and(|durable| durable < item.to) {
                break;
            }
            self.bytes -= item.bytes;
            self.items.pop_front();
            self.sent -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cluster_core::ids::Incarnation;
    use cluster_core::wal_position::Lsn;

    fn end(lsn: u64) -> WalPosition {
        WalPosition::end_of(Incarnation(1), Lsn(lsn))
    }

    const P: PartitionId = PartitionId(1);
    const Q: PartitionId = PartitionId(2);
    const G: Generation = Generation(1);

    fn queue() -> NodeQueue {
        let mut queue = NodeQueue::default();
        queue.add_partition(P, G, end(10));
        queue.add_partition(Q, G, WalPosition::ZERO);
        queue.report(P, G, end(10), end(10));
        queue
    }

    fn send(queue: &mut NodeQueue) -> (WalPosition, WalPosition) {
        match queue.next_to_send().unwrap().kind.unwrap() {
            Kind::Batch(b) => (b.previous.unwrap().into(), b.to.unwrap().into()),
            Kind::NothingElse(n) => (WalPosition::ZERO, n.to.unwrap().into()),
            Kind::Open(_) => unreachable!(),
        }
    }

    #[test]
    fn p4_previous_is_what_was_last_sent_for_the_partition() {
        let mut queue = queue();
        queue.push_batch(P, end(20), vec![], 0);
        queue.push_nothing_else(end(30), None, end(10));
        queue.push_batch(P, end(40), vec![], 0);
        queue.push_batch(Q, end(40), vec![], 0);
        assert_eq!(send(&mut queue), (end(10), end(20)));
        assert_eq!(send(&mut queue), (WalPosition::ZERO, end(30)));
        assert_eq!(send(&mut queue), (end(30), end(40)));
        // The node had not reported Q: "nothing else" may not have moved it.
        assert_eq!(send(&mut queue), (WalPosition::ZERO, end(40)));
        assert!(queue.next_to_send().is_none());
    }

    #[test]
    fn what_is_not_durable_is_sent_again_on_a_new_stream() {
        let mut queue = queue();
        queue.report(Q, G, end(10), end(10));
        queue.push_batch(P, end(20), vec![], 100);
        queue.push_batch(Q, end(30), vec![], 100);
        send(&mut queue);
        send(&mut queue);
        queue.report(P, G, end(20), end(20));
        queue.report(Q, G, end(30), end(10));
        queue.rewind();
        assert_eq!(send(&mut queue).1, end(30));
        queue.report(Q, G, end(30), end(30));
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn p10_an_idle_source_does_not_fill_the_queue_of_a_dead_node() {
        let mut queue = queue();
        for lsn in 11..1000 {
            queue.push_nothing_else(end(lsn), None, end(10));
        }
        assert_eq!(queue.items.len(), 1);
    }

    #[test]
    fn a_dropped_partition_takes_its_messages_with_it() {
        let mut queue = queue();
        queue.push_batch(P, end(20), vec![], 100);
        queue.push_batch(Q, end(20), vec![], 100);
        send(&mut queue);
        queue.remove_partition(P);
        assert_eq!(send(&mut queue).1, end(20));
        queue.report(Q, G, end(20), end(20));
        assert_eq!((queue.items.len(), queue.bytes()), (0, 0));
    }
}
