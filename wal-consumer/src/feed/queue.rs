//! What one node is to be told, in order, until it has made it durable.
//!
//! Messages stay after they were sent: a stream that broke is opened again and
//! fed from the queue, without troubling the source. `previous` of a batch is
//! the `to` of what was last sent for its partition; "nothing else" counts as
//! sent only for partitions that the node has reported, since others would not
//! move with it. Whoever must not move with it is excepted by name: a batch was
//! left out for it.
//!
//! A learner is attached anew on each stream, before its batches, at what it has
//! logged; what it has logged leaves the queue.

use cluster_core::ids::{Generation, PartitionId};
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use proto::v1;
use proto::v1::apply_request::Kind;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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

/// What the slot owes a replica that is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It waits for it.
    Required,
    /// Nothing yet: it logs the stream and copies what came before.
    Learner,
    /// From its attachment on: stale, and being reconciled.
    Reconciling,
    /// Nothing any more.
    Releasing,
}

impl Role {
    /// Whether the slot waits for the replica once it is fed.
    pub fn holds_the_slot(self) -> bool {
        matches!(self, Role::Required | Role::Reconciling)
    }

    /// Whether the stream begins for it where it is attached.
    fn is_attached(self) -> bool {
        matches!(self, Role::Learner | Role::Reconciling)
    }
}

/// Why nothing is queued for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// A learner that is still to be attached.
    Detached,
    /// Its node does not hold it, though it should.
    Absent,
    /// Too much waited for it.
    Overflow,
    /// It lacks what the slot no longer has.
    Below {
        durable: WalPosition,
        floor: WalPosition,
    },
}

/// Where the stream begins for a learner.
#[derive(Clone, Copy, Debug)]
struct Attached {
    from: WalPosition,
    /// On the present stream.
    is_sent: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Fed {
    pub generation: Generation,
    pub role: Role,
    pub left_out: Option<LeftOut>,
    /// Only while the map lists it as a learner, or as stale.
    attached: Option<Attached>,
    /// The `to` of what was last queued for the partition.
    last_to: WalPosition,
    /// The node has reported it, so that it moves with "nothing else".
    is_known: bool,
    /// Of its items in the queue.
    pub bytes: usize,
    pub applied: WalPosition,
    /// Of a learner: up to where it has logged the stream.
    pub durable: WalPosition,
    /// As it said last.
    pub is_learning: bool,
}

impl Fed {
    /// Something was queued that it has not made durable, or should have been.
    pub fn has_work(&self) -> bool {
        self.left_out.is_some() || self.last_to > self.durable
    }

    /// The map calls it a learner, counted or not.
    pub fn is_learner_in_map(&self) -> bool {
        self.attached.is_some()
    }

    /// Attached on a queue without a hole, where what it reports may count.
    pub fn is_attached_below(&self, durable: WalPosition) -> bool {
        self.left_out.is_none() && self.attached.is_some_and(|a| durable >= a.from)
    }

    /// Whether it may take "nothing else" for all there is.
    fn moves_with_the_rest(&self) -> bool {
        self.left_out.is_none() && self.attached.is_none_or(|a| a.is_sent)
    }

    /// From where the queue has everything for a learner.
    fn attach_from(&self) -> Option<WalPosition> {
        let attached = self.attached.filter(|_| self.left_out.is_none())?;
        Some(attached.from.max(self.durable))
    }
}

/// A replica's report.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub partition: PartitionId,
    pub generation: Generation,
    pub applied: WalPosition,
    pub durable: WalPosition,
    pub is_learning: bool,
}

#[derive(Debug, Default)]
pub struct NodeQueue {
    items: VecDeque<Item>,
    /// How many of `items` were sent on the present stream.
    sent: usize,
    bytes: usize,
    partitions: BTreeMap<PartitionId, Fed>,
    /// Fed no longer; the node may still hold them.
    former: BTreeSet<PartitionId>,
}

impl NodeQueue {
    /// `from` is the position after which everything will be queued.
    pub fn add_partition(
        &mut self,
        id: PartitionId,
        generation: Generation,
        role: Role,
        from: WalPosition,
    ) {
        let attached = role.is_attached().then_some(Attached {
            from,
            is_sent: false,
        });
        self.former.remove(&id);
        let fed = Fed {
            generation,
            role,
            left_out: None,
            attached,
            last_to: from,
            is_known: false,
            bytes: 0,
            applied: WalPosition::ZERO,
            durable: WalPosition::ZERO,
            is_learning: false,
        };
        if self.partitions.get(&id).map(|known| known.generation) != Some(generation) {
            self.drop_items_of(id);
            self.partitions.insert(id, fed);
        }
    }

    /// A replica for which nothing is queued until it is attached.
    pub fn add_detached(&mut self, id: PartitionId, generation: Generation, role: Role) {
        self.add_partition(id, generation, role, WalPosition::ZERO);
        self.leave_out(id, LeftOut::Detached);
    }

    /// Forgets a partition that is gone and what waits for it.
    pub fn remove_partition(&mut self, id: PartitionId) {
        self.drop_items_of(id);
        self.partitions.remove(&id);
        self.former.remove(&id);
        self.trim();
    }

    /// Ends feeding a replica that the node may still hold: it must not take
    /// "nothing else" for all there is.
    pub fn retire(&mut self, id: PartitionId, generation: Option<Generation>) {
        let known = self.partitions.get(&id).map(|fed| fed.generation);
        if known.is_none() || known == generation {
            self.remove_partition(id);
            self.former.insert(id);
        }
    }

    /// From now on nothing is queued for the partition.
    pub fn leave_out(&mut self, id: PartitionId, why: LeftOut) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.left_out = Some(why);
            fed.is_known = false;
            self.drop_items_of(id);
            self.trim();
        }
    }

    /// Leaves out every replica but learners for which something waits; answers
    /// how many.
    pub fn give_up(&mut self) -> usize {
        let waiting = self.partitions.iter();
        let waiting = waiting.filter(|(_, fed)| fed.role != Role::Learner && fed.bytes > 0);
        let waiting: Vec<PartitionId> = waiting.map(|(id, _)| *id).collect();
        for id in &waiting {
            self.leave_out(*id, LeftOut::Overflow);
        }
        waiting.len()
    }

    pub fn has_detached(&self) -> bool {
        let mut fed = self.partitions.values();
        fed.any(|fed| fed.left_out == Some(LeftOut::Detached))
    }

    /// Begins the stream of detached learners at `from`, up to where everything
    /// has been queued for the others; answers which.
    pub fn attach_detached(&mut self, from: WalPosition) -> Vec<(PartitionId, Generation)> {
        let mut begun = Vec::new();
        for (id, fed) in &mut self.partitions {
            if fed.left_out == Some(LeftOut::Detached) {
                fed.left_out = None;
                fed.last_to = from;
                fed.attached = Some(Attached {
                    from,
                    is_sent: false,
                });
                begun.push((*id, fed.generation));
            }
        }
        for (id, generation) in &begun {
            self.push(attach_item(*id, *generation, from));
        }
        begun
    }

    /// The slot waits for a learner from now on; the map does not say so yet.
    pub fn count(&mut self, id: PartitionId) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.role = Role::Required;
        }
    }

    /// A counted learner is one no longer, or never was.
    pub fn uncount(&mut self, id: PartitionId) {
        if let Some(fed) = self.partitions.get_mut(&id)
            && fed.attached.is_some()
        {
            fed.role = Role::Learner;
            if fed.left_out.is_some() {
                fed.left_out = Some(LeftOut::Detached);
            }
        }
    }

    /// The map lists it so; needs no attaching any more.
    pub fn set_role(&mut self, id: PartitionId, role: Role) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.role = role;
            fed.attached = None;
            self.retain(|item| item.partition != Some(id) || !matches!(item.kind, Kind::Attach(_)));
        }
    }

    fn drop_items_of(&mut self, id: PartitionId) {
        self.retain(|item| item.partition != Some(id));
    }

    fn retain(&mut self, mut stays: impl FnMut(&Item) -> bool) {
        let sent = self.sent;
        let mut index = 0;
        let mut sent_removed = 0;
        let mut bytes_removed = 0;
        let partitions = &mut self.partitions;
        self.items.retain(|item| {
            let stays = stays(item);
            if !stays {
                sent_removed += usize::from(index < sent);
                bytes_removed += item.bytes;
                if let Some(fed) = item.partition.and_then(|id| partitions.get_mut(&id)) {
                    fed.bytes -= item.bytes;
                }
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

    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Fed)> {
        self.partitions.iter().map(|(id, fed)| (*id, fed))
    }

    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Of everything but what waits for learners.
    pub fn bytes(&self) -> usize {
        self.bytes - self.learner_bytes()
    }

    pub fn learner_bytes(&self) -> usize {
        let learners = self.partitions.values();
        let learners = learners.filter(|fed| fed.role == Role::Learner);
        learners.map(|fed| fed.bytes).sum()
    }

    pub fn push_batch(
        &mut self,
        id: PartitionId,
        to: WalPosition,
        changes: Vec<v1::RowChange>,
        bytes: usize,
    ) {
        let fed = self.partitions.get_mut(&id);
        let Some(fed) = fed.filter(|fed| fed.left_out.is_none()) else {
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
            bytes: bytes + MESSAGE_OVERHEAD_BYTES,
        });
    }

    pub fn push_nothing_else(
        &mut self,
        to: WalPosition,
        oldest_xmin: Option<FullXid>,
        confirmed: WalPosition,
    ) {
        let fed = self.partitions.values_mut();
        for fed in fed.filter(|fed| fed.is_known && fed.left_out.is_none()) {
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
            bytes: MESSAGE_OVERHEAD_BYTES,
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

    fn push(&mut self, item: Item) {
        self.account(&item);
        self.items.push_back(item);
    }

    fn account(&mut self, item: &Item) {
        self.bytes += item.bytes;
        if let Some(fed) = item.partition.and_then(|id| self.partitions.get_mut(&id)) {
            fed.bytes += item.bytes;
        }
    }

    /// The next message to send on the present stream.
    pub fn next_to_send(&mut self) -> Option<v1::ApplyRequest> {
        let item = self.items.get(self.sent)?;
        self.sent += 1;
        let mut kind = item.kind.clone();
        match &mut kind {
            Kind::NothingElse(message) => {
                // Decided now: the node must not take what it was not sent for
                // nothing, whenever it was left out.
                let held_back = self.partitions.iter();
                let held_back = held_back.filter(|(_, fed)| !fed.moves_with_the_rest());
                let held_back = held_back.map(|(id, _)| id.0);
                message.except_partition_ids =
                    held_back.chain(self.former.iter().map(|id| id.0)).collect();
            }
            Kind::Attach(attach) => {
                let fed = self.partitions.get_mut(&PartitionId(attach.partition_id));
                if let Some(attached) = fed.and_then(|fed| fed.attached.as_mut()) {
                    attached.is_sent = true;
                }
            }
            Kind::Open(_) | Kind::Batch(_) => {}
        }
        Some(v1::ApplyRequest { kind: Some(kind) })
    }

    /// A new stream was opened: everything not durable is sent again, learners
    /// being attached first.
    pub fn rewind(&mut self) {
        self.retain(|item| !matches!(item.kind, Kind::Attach(_)));
        self.sent = 0;
        let mut attaches = Vec::new();
        for (id, fed) in &mut self.partitions {
            if let Some(attached) = &mut fed.attached {
                attached.is_sent = false;
            }
            if let Some(from) = fed.attach_from() {
                attaches.push(attach_item(*id, fed.generation, from));
            }
        }
        for item in attaches {
            self.account(&item);
            self.items.push_front(item);
        }
    }

    /// Takes a node's report; whether it says something new.
    pub fn report(&mut self, report: Report) -> bool {
        let fed = self.partitions.get_mut(&report.partition);
        let Some(fed) = fed.filter(|fed| fed.generation == report.generation) else {
            return false;
        };
        let is_new = report.applied > fed.applied
            || report.durable > fed.durable
            || report.is_learning != fed.is_learning
            || !fed.is_known;
        fed.is_known = fed.left_out.is_none();
        fed.applied = fed.applied.max(report.applied);
        fed.durable = fed.durable.max(report.durable);
        fed.is_learning = report.is_learning;
        if is_new {
            self.trim();
        }
        is_new
    }

    /// Drops what is durable wherever it concerns, also from behind what is not,
    /// and a "nothing else" that the next item covers: one partition that stands
    /// still does not fill the queue with the others' share.
    fn trim(&mut self) {
        let fed = self.partitions.values();
        let fed = fed.filter(|fed| fed.left_out.is_none());
        let lowest = fed.map(|fed| fed.durable).min();
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

fn attach_item(id: PartitionId, generation: Generation, from: WalPosition) -> Item {
    let attach = v1::AttachLearner {
        partition_id: id.0,
        generation: generation.0,
        from: Some(from.into()),
    };
    Item {
        kind: Kind::Attach(attach),
        partition: Some(id),
        to: from,
        bytes: MESSAGE_OVERHEAD_BYTES,
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
