//! What happens to the world by itself: sessions write, things fail and are mended,
//! somebody moves partitions.

use crate::clock::WorldMs;
use crate::faults::{self, Fault};
use crate::message::Message;
use crate::process::{Channel, Proc, Ticket, Timer};
use crate::raft;
use crate::world::{Event, Input, World};
use cluster_core::control::Command;
use cluster_core::wal_position::Lsn;

const POSTGRES_TICK_MS: u64 = 20;
/// When an operator acts on a node that was cut off.
const EMPTIED_AFTER_MS: [u64; 3] = [200, 900, 2_000];
/// For how much longer than the node a session hears no coordinator.
const BLIND_MS_MORE: (u64, u64) = (200, 2_500);

impl World {
    /// Sessions write, and the walsender sends.
    pub(crate) fn work(&mut self) {
        self.schedule(POSTGRES_TICK_MS, Event::Postgres);
        if !self.is_calm {
            self.write();
        }
        self.input(Proc::Postgres, Input::Timer(Timer::Tick));
    }

    fn write(&mut self) {
        let open = self.postgres.open_transactions().to_vec();
        if open.len() < 4 && self.rng.chance(self.scenario.writes_per_mille) {
            self.postgres.begin();
        }
        if let Some(xid) = self.rng.pick(&open).copied()
            && self.rng.chance(200)
        {
            let end = self.postgres.commit(xid, &mut self.rng);
            self.committed_by_somebody(end);
        }
        let redefines =
            self.postgres.end() > Lsn(1_000) && self.rng.chance(self.scenario.defines(self.now));
        if redefines {
            self.scenario.definitions += 1;
            self.postgres.define(self.scenario.definitions);
        }
    }

    pub(crate) fn committed_by_somebody(&mut self, end: Lsn) {
        let last = self.postgres.last();
        self.trace.line(self.now, format_args!("commit {last:?}"));
        let session = self.rng.below(self.clients.len() as u64) as usize;
        if let Some(session) = self.clients.get_mut(session) {
            session.committed = end;
        }
    }

    pub(crate) fn fault(&mut self) {
        if self.is_calm {
            return;
        }
        let next = faults::next_in(&mut self.rng);
        self.schedule(next, Event::Fault);
        let leader = (0..raft::MEMBERS).find(|m| self.raft.leads(*m).is_some());
        let (fault, lasts) = faults::draw(self.scenario.cast, leader, &mut self.rng);
        self.trace
            .line(self.now, format_args!("fault for {lasts}: {fault:?}"));
        match &fault {
            Fault::Crash(process) => self.crash(*process),
            Fault::Pause(process) => {
                let until = self.paused.entry(*process).or_default();
                *until = (self.now + lasts).max(*until);
            }
            Fault::Cut(links) => {
                for (from, to) in links {
                    self.network.cut(*from, *to);
                }
                if let Some((node @ Proc::Node(_), _)) = links.first() {
                    for after in EMPTIED_AFTER_MS {
                        self.schedule(after, Event::Empty(*node));
                    }
                    self.blind_a_session(lasts);
                }
            }
            Fault::SlowDisk(node) => self.disks[*node].slow_until(self.now + lasts),
        }
        self.schedule(lasts, Event::Undo(fault));
    }

    /// A session that hears of no newer map is the one that still asks a node for what
    /// was given away.
    fn blind_a_session(&mut self, lasts: WorldMs) {
        if !self.rng.chance(800) {
            return;
        }
        let session = self.rng.below(self.clients.len() as u64) as usize;
        let coordinators = (0..raft::MEMBERS).map(Proc::Coordinator);
        let links: Vec<_> = coordinators.map(|c| (Proc::Client(session), c)).collect();
        for (from, to) in &links {
            self.network.cut(*from, *to);
        }
        let longer = self.rng.between(BLIND_MS_MORE.0, BLIND_MS_MORE.1);
        self.schedule(lasts + longer, Event::Undo(Fault::Cut(links)));
    }

    fn crash(&mut self, process: Proc) {
        if !self.down.insert(process) {
            return;
        }
        *self.starts.entry(process).or_default() += 1;
        match process {
            Proc::Node(node) => self.disks[node].crash(&mut self.rng),
            Proc::Coordinator(member) => self.raft.crash(member),
            _ => {}
        }
    }

    pub(crate) fn undo(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(process) => self.start(process),
            Fault::Cut(links) if !self.is_calm => {
                for (from, to) in links {
                    self.network.mend(from, to);
                }
            }
            Fault::Cut(_) | Fault::Pause(_) | Fault::SlowDisk(_) => {}
        }
    }

    fn start(&mut self, process: Proc) {
        if !self.down.remove(&process) {
            return;
        }
        self.trace.line(self.now, format_args!("{process} starts"));
        if let Proc::Coordinator(member) = process {
            self.raft.restart(member);
        }
        self.input(process, Input::Restart);
    }

    /// Undoes every fault; nothing fails from here on. A pause runs out, since what
    /// it holds back must not be overtaken.
    pub fn calm(&mut self) {
        self.is_calm = true;
        self.network.calm();
        for disk in &mut self.disks {
            disk.slow_until(0);
        }
        for process in std::mem::take(&mut self.down) {
            self.down.insert(process);
            self.start(process);
        }
        for xid in self.postgres.open_transactions().to_vec() {
            let end = self.postgres.commit(xid, &mut self.rng);
            self.committed_by_somebody(end);
        }
    }

    pub(crate) fn move_something(&mut self) {
        let next = self.rng.between(200, self.scenario.move_every_ms);
        self.schedule(next, Event::Move);
        self.begin_move(None);
    }

    /// An operator wants a partition elsewhere; the leader begins it when it can.
    pub(crate) fn begin_move(&mut self, from: Option<Proc>) {
        if self.is_calm {
            return;
        }
        let planned = self.scenario.a_move(&self.state, from, &mut self.rng);
        let Some(planned) = planned else {
            return;
        };
        let asked = self.state.planned().iter();
        let others = asked.filter(|asked| asked.partition != planned.partition);
        let moves = others.copied().chain([planned]).collect();
        let command = Command::PlanMoves { moves };
        for member in 0..raft::MEMBERS {
            self.tickets += 1;
            let call = Ticket(self.tickets);
            let command = command.clone();
            let message = Message::Propose { call, command };
            let link = (Proc::Client(0), Proc::Coordinator(member));
            self.send(link, Channel::Call, message);
        }
    }
}
