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
    /// The node does not hold it now: nothing is sent for it.
    is_absent: bool,
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
            is_absent: false,
            applied: WalPosition::ZERO,
            durable: WalPosition::ZERO,
        });
    }

    /// Forgets a dropped partition and what waits for it.
    pub fn remove_partition(&mut self, id: PartitionId) {
        self.partitions.remove(&id);
        self.retain(|item| item.partition != Some(id));
        self.trim();
    }

    /// The node does not hold the partition, though it should: what is for it is
    /// left out until the source starts over.
    pub fn set_absent(&mut self, id: PartitionId) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.is_absent = true;
            self.retain(|item| item.partition != Some(id));
        }
    }

    pub fn is_absent(&self, id: PartitionId, generation: Generation) -> bool {
        let fed = self.partitions.get(&id);
        fed.is_some_and(|fed| fed.is_absent && fed.generation == generation)
    }

    fn retain(&mut self, mut stays: impl FnMut(&Item) -> bool) {
        let sent = self.sent;
        let mut index = 0;
        let mut sent_removed = 0;
        let mut bytes_removed = 0;
        self.items.retain(|item| {
            let stays = stays(item);
            if !stays {
                sent_removed += usize::from(index < sent);
                bytes_removed += item.bytes;
            }
            index += 1;
            stays
        });
        self.sent -= sent_removed;
        self.bytes -= bytes_removed;
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
        let Some(fed) = self.partitions.get_mut(&id).filter(|f| !f.is_absent) else {
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
        match self.items.back_mut() {
            // It covers the one before, sent or not: an idle source cannot fill
            // the queue of a node that no longer makes anything durable.
            Some(last) if last.partition.is_none() => {
                last.kind = item.kind;
                last.to = to;
                self.sent = self.sent.min(self.items.len() - 1);
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
        let mut kind = item.kind.clone();
        if let Kind::NothingElse(message) = &mut kind {
            // Should the node get hold of one after all, it must not take what it
            // was not sent for nothing.
            let absent = self.partitions.iter().filter(|(_, fed)| fed.is_absent);
            message.except_partition_ids = absent.map(|(id, _)| id.0).collect();
        }
        Some(v1::ApplyRequest { kind: Some(kind) })
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

    /// Drops what is durable wherever it concerns, also from behind what is not,
    /// and a "nothing else" that the next item covers: one partition that stands
    /// still does not fill the queue with the others' share.
    fn trim(&mut self) {
        let lowest = self.partitions.values().map(|fed| fed.durable).min();
        let mut is_covered = false;
        let mut stay = Vec::with_capacity(self.items.len());
        for (index, item) in self.items.iter().enumerate().rev() {
            let durable = match item.partition {
                Some(id) => self.partitions.get(&id).map(|fed| fed.durable),
                None => lowest,
            };
            let is_durable = durable.is_none_or(|durable| durable >= item.to);
            let is_nothing_else = item.partition.is_none();
            // Unsent messages go out even if a former stream covered them: the
            // positions in "nothing else" tell what may be forgotten.
            let is_needless = is_durable || (is_nothing_else && is_covered);
            let stays = index >= self.sent || !is_needless;
            if stays {
                is_covered = is_nothing_else;
            }
            stay.push(stays);
        }
        let mut stay = stay.into_iter().rev();
        self.retain(|_| stay.next().unwrap_or(true));
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
            Kind::Open(_) | Kind::Attach(_) => unreachable!(),
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
            // Sent, and never made durable.
            assert_eq!(send(&mut queue).1, end(lsn));
        }
        assert_eq!(queue.items.len(), 1);
    }

    #[test]
    fn p10_a_partition_that_stands_still_does_not_fill_the_queue_with_what_others_have() {
        let mut queue = queue();
        queue.report(Q, G, end(10), end(10));
        queue.push_batch(Q, end(11), vec![], 100);
        for lsn in 12..1000 {
            queue.push_batch(P, end(lsn), vec![], 100);
            queue.push_nothing_else(end(lsn), None, end(10));
            while queue.next_to_send().is_some() {}
            queue.report(P, G, end(lsn), end(lsn));
        }
        let batches = queue.items.iter().filter(|item| item.partition.is_some());
        assert_eq!(batches.count(), 1);
        assert_eq!(queue.items.len(), 2);
        queue.report(Q, G, end(999), end(999));
        assert_eq!((queue.items.len(), queue.sent, queue.bytes()), (0, 0, 0));
    }

    #[test]
    fn a_partition_that_the_node_does_not_hold_is_left_out_by_name() {
        let mut queue = queue();
        queue.push_batch(Q, end(20), vec![], 100);
        queue.set_absent(Q);
        queue.push_batch(Q, end(30), vec![], 100);
        queue.push_nothing_else(end(30), None, end(10));
        match queue.next_to_send().unwrap().kind.unwrap() {
            Kind::NothingElse(message) => assert_eq!(message.except_partition_ids, [Q.0]),
            other => panic!("{other:?}"),
        }
        assert!(queue.next_to_send().is_none());
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
