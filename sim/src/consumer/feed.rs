//! What one node is to be told, in order, until it has made it durable; as the
//! consumer's shell keeps it, with learners.
//!
//! A learner's feed begins where everything earlier had been routed. On a new
//! stream it is attached again, at the end of what was durable there and dropped
//! here, before anything else is sent.

use crate::message::{Message, Report};
use crate::process::{Effects, Proc, Ticket};
use cluster_core::change::{Batch, PositionedChange};
use cluster_core::ids::*;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use std::collections::{BTreeMap, VecDeque};

/// Items for a node that does not answer; beyond, it is given up (P10).
const ITEMS_MAX: usize = 300;
const OPEN_TIMEOUT_MS: u64 = 1_500;
const SILENCE_MS: u64 = 2_000;
const RETRY_MS: u64 = 300;
const ATTACH_AGAIN_MS: u64 = 700;

#[derive(Clone)]
enum Kind {
    Batch {
        partition: PartitionId,
        previous: WalPosition,
        changes: Vec<PositionedChange>,
    },
    NothingElse,
}

#[derive(Clone)]
struct Item {
    kind: Kind,
    to: WalPosition,
}

impl Item {
    fn partition(&self) -> Option<PartitionId> {
        match self.kind {
            Kind::Batch { partition, .. } => Some(partition),
            Kind::NothingElse => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Fed {
    pub generation: Generation,
    last_to: WalPosition,
    /// Everything for the partition above this is still here.
    kept_from: WalPosition,
    is_known: bool,
    is_absent: bool,
    pub is_learner: bool,
    /// Must be found at or above the start of the stream.
    is_complete: bool,
    /// The slot waits for it.
    pub is_required: bool,
    pub is_learning: bool,
    pub applied: WalPosition,
    pub durable: WalPosition,
    attach_at: u64,
}

impl Fed {
    /// Something was queued that it has not made durable, or should have been.
    pub fn has_work(&self) -> bool {
        self.is_absent || self.last_to > self.durable
    }
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Down { retry_at: u64 },
    Opening { stream: Ticket, since: u64 },
    Up { stream: Ticket, heard_at: u64 },
}

/// What the run has to know of a node's message.
pub enum News {
    Moved(PartitionId),
    /// A learner's feed has ended: it is to be attached anew.
    Detached,
    /// Begin again at the confirmed position.
    Restart(&'static str),
    /// A complete replica lacks what the slot no longer has.
    RowsMissing(PartitionId),
}

/// What "nothing else" tells beside its position.
#[derive(Clone, Copy)]
pub struct Retention {
    pub oldest_xmin: FullXid,
    pub confirmed: WalPosition,
}

pub struct Feed {
    to: Proc,
    token: ConsumerEpoch,
    start: WalPosition,
    items: VecDeque<Item>,
    sent: usize,
    pub partitions: BTreeMap<PartitionId, Fed>,
    link: Link,
    is_given_up: bool,
    /// The last "nothing else" that was queued.
    told: WalPosition,
    pub retention: Retention,
}

impl Feed {
    pub fn new(to: Proc, token: ConsumerEpoch, start: WalPosition) -> Self {
        Self {
            to,
            token,
            start,
            items: VecDeque::new(),
            sent: 0,
            partitions: BTreeMap::new(),
            link: Link::Down { retry_at: 0 },
            is_given_up: false,
            told: WalPosition::ZERO,
            retention: Retention {
                oldest_xmin: 0,
                confirmed: WalPosition::ZERO,
            },
        }
    }

    pub fn process(&self) -> Proc {
        self.to
    }

    /// For who wants to know why nothing moves.
    pub fn describe(&self) -> String {
        let (link, items, sent) = (&self.link, self.items.len(), self.sent);
        let partitions = &self.partitions;
        format!(
            "{} {link:?}, {sent} of {items} sent, {partitions:?}",
            self.to
        )
    }

    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    pub fn add(
        &mut self,
        id: PartitionId,
        generation: Generation,
        from: WalPosition,
        is_complete: bool,
    ) {
        self.partitions.entry(id).or_insert(Fed {
            generation,
            last_to: from,
            kept_from: from,
            is_known: false,
            is_absent: false,
            is_learner: false,
            is_complete,
            is_required: true,
            is_learning: false,
            applied: WalPosition::ZERO,
            durable: WalPosition::ZERO,
            attach_at: 0,
        });
    }

    /// Everything up to `from` has been routed.
    pub fn attach(
        &mut self,
        id: PartitionId,
        generation: Generation,
        from: WalPosition,
        effects: &mut Effects<'_>,
    ) {
        self.remove(id);
        self.add(id, generation, from, false);
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.is_learner = true;
            fed.is_learning = true;
            fed.is_required = false;
        }
        if let Link::Up { stream, .. } = self.link {
            self.send_attach(id, stream, effects);
        }
    }

    fn send_attach(&mut self, id: PartitionId, stream: Ticket, effects: &mut Effects<'_>) {
        let Some(fed) = self.partitions.get_mut(&id) else {
            return;
        };
        fed.attach_at = effects.now + ATTACH_AGAIN_MS;
        let attach = Message::Attach {
            stream,
            partition: id,
            generation: fed.generation,
            from: fed.kept_from,
        };
        effects.stream(self.to, stream, attach);
    }

    /// The slot waits for a learner from now on; the map does not say so yet.
    pub fn counted(&mut self, id: PartitionId) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.is_complete = true;
            fed.is_required = true;
        }
    }

    pub fn promoted(&mut self, id: PartitionId) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.is_learner = false;
            fed.is_complete = true;
            fed.is_required = true;
        }
    }

    /// It goes: it is fed as long as that is easy.
    pub fn releasing(&mut self, id: PartitionId) {
        if let Some(fed) = self.partitions.get_mut(&id) {
            fed.is_complete = false;
            fed.is_required = false;
        }
    }

    pub fn remove(&mut self, id: PartitionId) {
        if self.partitions.remove(&id).is_some() {
            self.retain(|item| item.partition() != Some(id));
            self.trim();
        }
    }

    fn retain(&mut self, mut stays: impl FnMut(&Item) -> bool) {
        let (sent, mut index, mut gone) = (self.sent, 0, 0);
        self.items.retain(|item| {
            let stays = stays(item);
            gone += usize::from(!stays && index < sent);
            index += 1;
            stays
        });
        self.sent -= gone;
    }

    pub fn push_batch(
        &mut self,
        id: PartitionId,
        to: WalPosition,
        changes: &[PositionedChange],
        effects: &mut Effects<'_>,
    ) {
        let fed = self.partitions.get_mut(&id);
        let Some(fed) = fed.filter(|f| !f.is_absent) else {
            return;
        };
        if self.is_given_up {
            return;
        }
        assert!(to > fed.last_to, "{id}: {to} after {}", fed.last_to);
        let kind = Kind::Batch {
            partition: id,
            previous: fed.last_to,
            changes: changes.to_vec(),
        };
        fed.last_to = to;
        self.items.push_back(Item { kind, to });
        self.give_up_if_full();
        self.send(effects);
    }

    pub fn push_nothing_else(&mut self, to: WalPosition, effects: &mut Effects<'_>) {
        if self.is_given_up {
            return;
        }
        self.told = to;
        for fed in self.partitions.values_mut().filter(|fed| fed.is_known) {
            fed.last_to = to.max(fed.last_to);
        }
        let kind = Kind::NothingElse;
        match self.items.back_mut() {
            // It covers the one before, sent or not.
            Some(last) if last.partition().is_none() => {
                last.to = to;
                self.sent = self.sent.min(self.items.len() - 1);
            }
            _ => self.items.push_back(Item { kind, to }),
        }
        self.send(effects);
    }

    fn give_up_if_full(&mut self) {
        if self.items.len() > ITEMS_MAX && !self.is_up() {
            self.is_given_up = true;
            self.items.clear();
            self.sent = 0;
        }
    }

    fn send(&mut self, effects: &mut Effects<'_>) {
        let Link::Up { stream, .. } = self.link else {
            return;
        };
        while let Some(item) = self.items.get(self.sent).cloned() {
            self.sent += 1;
            self.send_item(item, stream, effects);
        }
    }

    fn send_item(&self, item: Item, stream: Ticket, effects: &mut Effects<'_>) {
        let message = match item.kind {
            Kind::Batch {
                partition,
                previous,
                changes,
            } => {
                let Some(fed) = self.partitions.get(&partition) else {
                    return;
                };
                let batch = Batch {
                    partition,
                    generation: fed.generation,
                    previous,
                    to: item.to,
                    changes,
                };
                Message::Apply { stream, batch }
            }
            Kind::NothingElse => {
                let fed = self.partitions.iter().filter(|(_, fed)| !fed.is_absent);
                Message::NothingElse {
                    stream,
                    to: item.to,
                    fed: fed.map(|(id, fed)| (*id, fed.generation)).collect(),
                    oldest_xmin: self.retention.oldest_xmin,
                    confirmed: self.retention.confirmed,
                }
            }
        };
        effects.stream(self.to, stream, message);
    }

    pub fn tick(&mut self, effects: &mut Effects<'_>) {
        let now = effects.now;
        match self.link {
            Link::Down { retry_at } if now >= retry_at && !self.partitions.is_empty() => {
                let stream = effects.ticket();
                self.link = Link::Opening { stream, since: now };
                let open = Message::OpenStream {
                    stream,
                    token: self.token,
                    incarnation: self.start.incarnation,
                };
                effects.stream(self.to, stream, open);
            }
            Link::Opening { since, .. } if now >= since + OPEN_TIMEOUT_MS => self.hang_up(now),
            Link::Up { heard_at, .. } if now >= heard_at + SILENCE_MS => self.hang_up(now),
            Link::Up { stream, .. } => self.attach_again(stream, effects),
            _ => {}
        }
    }

    /// A learner that its node did not have when it was attached.
    fn attach_again(&mut self, stream: Ticket, effects: &mut Effects<'_>) {
        let unknown = |f: &Fed| f.is_learner && !f.is_known && effects.now >= f.attach_at;
        let ids = self.partitions.iter().filter(|(_, fed)| unknown(fed));
        for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.send_attach(id, stream, effects);
            let again = self.items.iter().take(self.sent);
            let again = again.filter(|item| item.partition() == Some(id)).cloned();
            for item in again.collect::<Vec<_>>() {
                self.send_item(item, stream, effects);
            }
            // An idle source has nothing else to say for long.
            if self.sent == self.items.len() && self.told > WalPosition::ZERO {
                let (kind, to) = (Kind::NothingElse, self.told);
                self.send_item(Item { kind, to }, stream, effects);
            }
        }
    }

    fn hang_up(&mut self, now: u64) {
        let retry_at = now + RETRY_MS;
        self.link = Link::Down { retry_at };
    }

    /// The message belongs to the present stream: the node lives.
    fn is_current(&mut self, of: Ticket, now: u64) -> bool {
        match &mut self.link {
            Link::Up { stream, heard_at } if *stream == of => {
                *heard_at = now;
                true
            }
            _ => false,
        }
    }

    pub fn on(&mut self, message: &Message, effects: &mut Effects<'_>) -> Vec<News> {
        let now = effects.now;
        match message {
            Message::Opened { stream, reports } => self.opened(*stream, reports, effects),
            Message::Watermarks { stream, reports } if self.is_current(*stream, now) => {
                self.take_reports(reports)
            }
            Message::Gap { stream, partition } if self.is_current(*stream, now) => {
                self.gap(*partition)
            }
            Message::Refused { stream } => {
                let is_ours = match self.link {
                    Link::Opening { stream: ours, .. } | Link::Up { stream: ours, .. } => {
                        ours == *stream
                    }
                    Link::Down { .. } => false,
                };
                if is_ours {
                    self.hang_up(now);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// A replica that the slot waits for is fed from the slot again. No other may
    /// trouble the source: it is fed no more, and a learner is attached anew.
    fn gap(&mut self, id: PartitionId) -> Vec<News> {
        match self.partitions.get(&id) {
            Some(fed) if !fed.is_required => {
                self.remove(id);
                vec![News::Detached]
            }
            Some(_) => vec![News::Restart("gap")],
            None => Vec::new(),
        }
    }

    fn opened(&mut self, of: Ticket, reports: &[Report], effects: &mut Effects<'_>) -> Vec<News> {
        match self.link {
            Link::Opening { stream, .. } if stream == of => {}
            _ => return Vec::new(),
        }
        if self.is_given_up {
            return vec![News::Restart("node back")];
        }
        let mut news = Vec::new();
        let complete = self.partitions.iter_mut().filter(|(_, f)| f.is_complete);
        for (id, fed) in complete {
            let held = reports
                .iter()
                .find(|r| r.partition == *id && r.generation == fed.generation);
            match held {
                None => fed.is_absent = true,
                Some(report)
                    if report.is_learning || report.durable < self.start.max(fed.durable) =>
                {
                    news.push(News::RowsMissing(*id));
                }
                Some(_) => {}
            }
        }
        if !news.is_empty() {
            return news;
        }
        let absent: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, f)| f.is_absent)
            .map(|(id, _)| *id)
            .collect();
        self.retain(|item| item.partition().is_none_or(|id| !absent.contains(&id)));
        self.sent = 0;
        let heard_at = effects.now;
        self.link = Link::Up {
            stream: of,
            heard_at,
        };
        let learners = self.partitions.iter().filter(|(_, f)| f.is_learner);
        for id in learners.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.send_attach(id, of, effects);
        }
        self.send(effects);
        self.take_reports(reports)
    }

    fn take_reports(&mut self, reports: &[Report]) -> Vec<News> {
        let mut news = Vec::new();
        for report in reports {
            let fed = self.partitions.get_mut(&report.partition);
            let Some(fed) = fed.filter(|f| f.generation == report.generation) else {
                continue;
            };
            if fed.is_absent {
                news.push(News::Restart("replica back"));
                continue;
            }
            // A learner that was not attached yet has nothing of ours.
            if fed.is_learner && report.durable < fed.kept_from {
                continue;
            }
            fed.is_known = true;
            fed.is_learning = report.is_learning;
            fed.applied = report.applied.max(fed.applied);
            fed.durable = report.durable.max(fed.durable);
            news.push(News::Moved(report.partition));
        }
        self.trim();
        news
    }

    /// Drops what is durable wherever it concerns, and a "nothing else" that the
    /// next item covers.
    fn trim(&mut self) {
        let lowest = self.partitions.values().map(|fed| fed.durable).min();
        let mut is_covered = false;
        let mut stay = Vec::with_capacity(self.items.len());
        for (index, item) in self.items.iter().enumerate().rev() {
            let durable = match item.partition() {
                Some(id) => self.partitions.get(&id).map(|fed| fed.durable),
                None => lowest,
            };
            let is_durable = durable.is_none_or(|durable| durable >= item.to);
            let is_nothing_else = item.partition().is_none();
            let is_needless = is_durable || (is_nothing_else && is_covered);
            let stays = index >= self.sent || !is_needless;
            if stays {
                is_covered = is_nothing_else;
            }
            stay.push(stays);
        }
        let mut stay = stay.into_iter().rev();
        let mut dropped = Vec::new();
        self.retain(|item| {
            let stays = stay.next().unwrap_or(true);
            if !stays {
                dropped.extend(item.partition().map(|id| (id, item.to)));
            }
            stays
        });
        for (id, to) in dropped {
            if let Some(fed) = self.partitions.get_mut(&id) {
                fed.kept_from = to.max(fed.kept_from);
            }
        }
    }
}
