//! The apply stream: who may feed, what is fed, and what is told of it.
//!
//! A token is on disk before it counts. "Nothing else" moves only what the stream
//! feeds, by name: a replica whose feed has ended, or has not begun, would
//! otherwise claim what it never got.

use super::writer::{Job, Replica};
use super::{Node, Stream, Then, Written};
use crate::checks::Fact;
use crate::message::{Fenced, Message, Report};
use crate::mutant::Mutant;
use crate::node::disk::NodeWrite;
use crate::process::{Effects, Ticket};
use cluster_core::ids::*;
use cluster_core::lease::Offer;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::WalPosition;

impl Node {
    pub(super) fn install(&mut self, token: ConsumerEpoch, then: Then, effects: &mut Effects<'_>) {
        if self.token.offer(token) != Offer::New {
            return self.installed(token, then, effects);
        }
        let ticket = effects.write(NodeWrite::Token(token));
        self.writes.insert(ticket, Written::Token(token, then));
    }

    /// The token is on disk, or one at least as high was.
    pub(super) fn installed(
        &mut self,
        token: ConsumerEpoch,
        then: Then,
        effects: &mut Effects<'_>,
    ) {
        // A later one may have been written meanwhile.
        let is_fenced = matches!(self.token.offer(token), Offer::Old { .. });
        if !is_fenced {
            self.token.install(token);
        }
        match then {
            Then::Installed(to, call) => {
                let result = match is_fenced {
                    true => Err(Fenced),
                    false => Ok(self.reports()),
                };
                effects.call(to, Message::Installed { call, result });
            }
            Then::Open(consumer, ticket) if is_fenced => {
                effects.stream(consumer, ticket, Message::Refused { stream: ticket });
            }
            Then::Open(consumer, ticket) => {
                self.stream = Some(Stream {
                    ticket,
                    consumer,
                    token,
                });
                let reports = self.reports();
                let opened = Message::Opened {
                    stream: ticket,
                    reports,
                };
                effects.stream(consumer, ticket, opened);
            }
        }
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        let replicas = self.replicas.iter();
        replicas.map(|(id, replica)| report(*id, replica)).collect()
    }

    /// Tells the consumer where one replica stands, or all.
    pub(super) fn report(&self, only: Option<PartitionId>, effects: &mut Effects<'_>) {
        let Some(stream) = self.stream else { return };
        let told = self.replicas.iter();
        let told = told.filter(|(id, _)| only.is_none_or(|only| only == **id));
        let watermarks = Message::Watermarks {
            stream: stream.ticket,
            reports: told.map(|(id, replica)| report(*id, replica)).collect(),
        };
        effects.stream(stream.consumer, stream.ticket, watermarks);
    }

    pub(super) fn gap(&self, stream: Ticket, partition: PartitionId, effects: &mut Effects<'_>) {
        let current = self.stream.filter(|s| s.ticket == stream);
        if let Some(current) = current {
            let gap = Message::Gap { stream, partition };
            effects.stream(current.consumer, stream, gap);
        }
    }

    /// The stream, if it is the present one and may feed.
    fn feeding(&mut self, ticket: Ticket, effects: &mut Effects<'_>) -> Option<Stream> {
        let stream = self.stream.filter(|s| s.ticket == ticket)?;
        if stream.token < self.token.installed() || !self.lease.is_held(effects.now) {
            self.refuse(effects);
            return None;
        }
        effects.tell(Fact::Fed {
            token: stream.token,
            installed: self.token.installed(),
        });
        Some(stream)
    }

    fn refuse(&mut self, effects: &mut Effects<'_>) {
        if let Some(Stream {
            ticket, consumer, ..
        }) = self.stream.take()
        {
            effects.stream(consumer, ticket, Message::Refused { stream: ticket });
        }
    }

    pub(super) fn feed(&mut self, message: Message, effects: &mut Effects<'_>) {
        match message {
            Message::Attach {
                stream,
                partition,
                generation,
                from,
            } => {
                if self.feeding(stream, effects).is_none() {
                    return;
                }
                let held = self.replicas.get(&partition).map(|r| r.data.generation);
                let is_serving =
                    self.assigned(partition, generation) == Some(ReplicaState::Serving);
                // One that is not here yet is attached again later.
                if held == Some(generation) && !is_serving {
                    effects.note(format!("{partition} is attached at {from}"));
                    // What follows on the stream is queued behind the attachment.
                    if let Some(replica) = self.replicas.get_mut(&partition) {
                        replica.attached = Some(stream);
                    }
                    self.queue(partition, Job::Attach(from), effects);
                }
            }
            Message::Apply { stream, batch } => {
                if self.feeding(stream, effects).is_none() {
                    return;
                }
                let partition = batch.partition;
                match self.is_fed(partition, batch.generation, stream) {
                    Some(true) => self.queue(partition, Job::Batch(stream, batch), effects),
                    Some(false) => {}
                    None => {
                        // A newer map may assign it.
                        self.map_at = effects.now;
                        self.refuse(effects);
                    }
                }
            }
            Message::NothingElse {
                stream,
                to,
                fed,
                oldest_xmin,
                confirmed,
            } => {
                if self.feeding(stream, effects).is_none() {
                    return;
                }
                self.retention = (oldest_xmin, confirmed);
                for partition in self.partitions() {
                    let generation = self.replicas[&partition].data.generation;
                    let is_named = fed.contains(&(partition, generation))
                        && self.is_fed(partition, generation, stream) == Some(true);
                    if is_named || effects.is_broken(Mutant::NothingElseToUnfed) {
                        self.queue(partition, Job::NothingElse(stream, to), effects);
                    }
                }
                self.look_at_searches(effects);
            }
            _ => {}
        }
    }

    /// Whether the stream feeds a replica of this generation: a learner only from
    /// its attachment on. `None`: the stream takes for granted what is not so here.
    fn is_fed(
        &self,
        partition: PartitionId,
        generation: Generation,
        stream: Ticket,
    ) -> Option<bool> {
        let replica = self.replicas.get(&partition);
        let replica = replica.filter(|r| r.data.generation == generation);
        let is_learner = self.assigned(partition, generation) == Some(ReplicaState::Learner);
        let Some(replica) = replica else {
            // A learner that is not here yet is attached again later.
            return is_learner.then_some(false);
        };
        let is_learning = replica.data.learning.is_some();
        if replica.attached == Some(stream) || !(is_learner || is_learning) {
            return Some(true);
        }
        // One that is live may be taken for serving already, on a newer map:
        // what is left out of its feed would be missing.
        is_learning.then_some(false)
    }
}

fn report(partition: PartitionId, replica: &Replica) -> Report {
    let learning = replica.data.learning.as_ref();
    Report {
        partition,
        generation: replica.data.generation,
        is_learning: learning.is_some(),
        applied: match learning {
            Some(_) => WalPosition::ZERO,
            None => replica.applied,
        },
        durable: learning.map_or(replica.durable, |l| l.learner.durable()),
    }
}
