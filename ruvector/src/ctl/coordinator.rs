//! `ctl coordinator`: who agrees, who leads, and changes of both.

use super::init::member;
use super::table::{Align, Table, count};
use super::{Ctl, Observed, Report, show};
use crate::failure::{Failure, FailureKind};
use clap::Subcommand;
use proto::v1::initialise_request::Member;
use proto::v1::{
    AddCoordinatorRequest, CoordinatorStatus, GetStatusResponse, RemoveCoordinatorRequest,
    TransferLeaderRequest,
};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Subcommand)]
pub enum CoordinatorCommand {
    /// Coordinators: role, term, how far each has applied
    List,
    /// Add a coordinator that was started with this id and an empty data_dir
    Add {
        /// As in 4=10.0.0.4:7401
        #[arg(value_name = "ID=ADDR", value_parser = member)]
        member: Member,
    },
    /// Take a coordinator's vote away; its id does not come back
    Remove { id: u64 },
    /// Give the lead to another coordinator, by default the one that has
    /// applied the most
    TransferLeader { id: Option<u64> },
}

/// What each coordinator says of itself, or why it does not, by id.
pub type Answers = BTreeMap<u64, Result<GetStatusResponse, String>>;

#[derive(Serialize)]
#[serde(transparent)]
pub struct Coordinators(Vec<CoordinatorLine>);

#[derive(Serialize)]
pub struct CoordinatorLine {
    id: u64,
    address: String,
    is_leader: bool,
    /// It copies the log and has no vote yet, or no vote any more.
    is_learner: bool,
    /// Absent when it does not answer.
    term: Option<u64>,
    last_applied_index: Option<u64>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Added {
    id: u64,
    address: String,
    coordinators: Vec<u64>,
}

#[derive(Serialize)]
struct Removed {
    id: u64,
    coordinators: Vec<u64>,
}

#[derive(Serialize)]
struct Transferred {
    leader_id: u64,
    epoch: u64,
}

pub async fn run(ctl: &Ctl, command: CoordinatorCommand, json: bool) -> Result<String, Failure> {
    match command {
        CoordinatorCommand::List => {
            let seen = ctl.any_status().await?;
            let answers = ask_each(ctl, &seen).await;
            show(&Coordinators::of(&seen.status, &answers), json)
        }
        CoordinatorCommand::Add { member } => show(&add(ctl, member).await?, json),
        CoordinatorCommand::Remove { id } => show(&remove(ctl, id).await?, json),
        CoordinatorCommand::TransferLeader { id } => show(&transfer(ctl, id).await?, json),
    }
}

async fn add(ctl: &Ctl, member: Member) -> Result<Added, Failure> {
    let Member {
        coordinator_id: id,
        address,
    } = member;
    let request = AddCoordinatorRequest {
        coordinator_id: id,
        address: address.clone(),
    };
    ctl.lead_patiently(|mut leader| {
        let request = request.clone();
        async move { leader.add_coordinator(request).await }
    })
    .await?;
    Ok(Added {
        id,
        address,
        coordinators: voters(ctl).await?,
    })
}

async fn remove(ctl: &Ctl, id: u64) -> Result<Removed, Failure> {
    let request = RemoveCoordinatorRequest { coordinator_id: id };
    ctl.lead_patiently(|mut leader| async move { leader.remove_coordinator(request).await })
        .await?;
    Ok(Removed {
        id,
        coordinators: voters(ctl).await?,
    })
}

/// The call names whom it wants: repeated after a lost answer, it does not send
/// the lead on once more.
async fn transfer(ctl: &Ctl, wanted: Option<u64>) -> Result<Transferred, Failure> {
    let to = match wanted {
        Some(id) => id,
        None => {
            let seen = ctl.leader_status().await?;
            let answers = ask_each(ctl, &seen).await;
            successor(&seen.status, &answers)?
        }
    };
    let request = TransferLeaderRequest { coordinator_id: to };
    let answer = ctl
        .lead_patiently(|mut leader| async move { leader.transfer_leader(request).await })
        .await?;
    if answer.leader_id != to {
        let message = format!(
            "coordinator {} was elected instead of {to}, with epoch {}; ask again, \
             or leave it at that",
            answer.leader_id, answer.epoch
        );
        return Err(Failure::new(FailureKind::Failed, message));
    }
    Ok(Transferred {
        leader_id: answer.leader_id,
        epoch: answer.epoch,
    })
}

/// The voter other than the leader that has applied the most.
fn successor(status: &GetStatusResponse, answers: &Answers) -> Result<u64, Failure> {
    let coordinators = status.coordinators.iter();
    let others = coordinators.filter(|c| !c.is_leader && !c.is_learner);
    let applied = others.filter_map(|c| {
        let answer = answers.get(&c.coordinator_id)?.as_ref().ok()?;
        Some((answer.last_applied_index, c.coordinator_id))
    });
    match applied.max() {
        Some((_, id)) => Ok(id),
        None => Err(Failure::new(
            FailureKind::Refused,
            "no other coordinator answers that could take the lead: ruvector ctl coordinator list",
        )),
    }
}

async fn voters(ctl: &Ctl) -> Result<Vec<u64>, Failure> {
    let seen = ctl.leader_status().await?;
    let voters = seen.status.coordinators.iter().filter(|c| !c.is_learner);
    Ok(voters.map(|c| c.coordinator_id).collect())
}

/// Each coordinator that `seen` names is asked about itself.
pub async fn ask_each(ctl: &Ctl, seen: &Observed) -> Answers {
    let ask = |coordinator: &CoordinatorStatus| {
        let (id, address) = (coordinator.coordinator_id, coordinator.address.clone());
        async move {
            match id == seen.status.coordinator_id {
                true => (id, Ok(seen.status.clone())),
                false => (id, ctl.status_of(&address).await),
            }
        }
    };
    let asking = seen.status.coordinators.iter().map(ask);
    futures::future::join_all(asking)
        .await
        .into_iter()
        .collect()
}

impl Coordinators {
    pub fn of(status: &GetStatusResponse, answers: &Answers) -> Self {
        let line = |coordinator: &CoordinatorStatus| {
            let answer = answers.get(&coordinator.coordinator_id);
            let answered = answer.and_then(|answer| answer.as_ref().ok());
            CoordinatorLine {
                id: coordinator.coordinator_id,
                address: coordinator.address.clone(),
                is_leader: coordinator.is_leader,
                is_learner: coordinator.is_learner,
                term: answered.map(|answer| answer.term),
                last_applied_index: answered.map(|answer| answer.last_applied_index),
                problem: answer.and_then(|answer| answer.as_ref().err().cloned()),
            }
        };
        Self(status.coordinators.iter().map(line).collect())
    }
}

impl CoordinatorLine {
    fn role(&self) -> &'static str {
        match (self.is_leader, self.is_learner) {
            (true, _) => "leader",
            (false, true) => "learner",
            (false, false) => "follower",
        }
    }
}

impl Coordinators {
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            ("coordinator", Align::Right),
            ("address", Align::Left),
            ("role", Align::Left),
            ("term", Align::Right),
            ("applied", Align::Right),
        ]);
        for line in &self.0 {
            table.row([
                line.id.to_string(),
                line.address.clone(),
                line.role().to_owned(),
                line.term.map_or("-".to_owned(), |term| term.to_string()),
                line.last_applied_index.map_or("-".to_owned(), count),
            ]);
        }
        table.render("no coordinator is known")
    }

    /// Who is silent, in sentences.
    pub fn problems(&self) -> Vec<String> {
        let problem = |line: &CoordinatorLine| {
            let why = line.problem.as_ref()?;
            Some(format!(
                "coordinator {} says nothing of itself: {why}",
                line.id
            ))
        };
        self.0.iter().filter_map(problem).collect()
    }
}

impl Report for Coordinators {
    fn text(&self) -> String {
        let mut text = self.table();
        for problem in self.problems() {
            text += &format!("\n! {problem}\n");
        }
        text
    }
}

/// `1, 2, 3`.
fn listed(ids: &[u64]) -> String {
    let ids: Vec<_> = ids.iter().map(u64::to_string).collect();
    ids.join(", ")
}

/// An even number bears the loss of no more than the odd one below it.
fn remark(coordinators: &[u64]) -> String {
    let voters = coordinators.len();
    match voters {
        0 | 1 => "there is only one: when it fails, nothing can change".to_owned(),
        _ => format!(
            "of {voters} voters ({}) {} may fail",
            listed(coordinators),
            (voters - 1) / 2
        ),
    }
}

impl Report for Added {
    fn text(&self) -> String {
        let Self { id, address, .. } = self;
        let remark = remark(&self.coordinators);
        format!("Coordinator {id} at {address} has caught up and votes; {remark}\n")
    }
}

impl Report for Removed {
    fn text(&self) -> String {
        format!(
            "Coordinator {} is removed: stop its process; {}\n",
            self.id,
            remark(&self.coordinators)
        )
    }
}

impl Report for Transferred {
    fn text(&self) -> String {
        format!(
            "Coordinator {} leads, with epoch {}\n",
            self.leader_id, self.epoch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(of: &[(u64, bool, bool)]) -> GetStatusResponse {
        let coordinator = |(id, is_leader, is_learner): &(u64, bool, bool)| CoordinatorStatus {
            coordinator_id: *id,
            address: format!("10.0.0.{id}:7401"),
            is_leader: *is_leader,
            is_learner: *is_learner,
        };
        GetStatusResponse {
            coordinators: of.iter().map(coordinator).collect(),
            ..GetStatusResponse::default()
        }
    }

    fn applied(index: u64) -> Result<GetStatusResponse, String> {
        Ok(GetStatusResponse {
            term: 3,
            last_applied_index: index,
            ..GetStatusResponse::default()
        })
    }

    #[test]
    fn the_successor_is_the_living_voter_that_has_applied_the_most() {
        let of = [
            (1, true, false),
            (2, false, false),
            (3, false, false),
            (4, false, true),
        ];
        let mut answers = Answers::from([
            (1, applied(90)),
            (2, applied(88)),
            (3, applied(89)),
            (4, applied(90)),
        ]);
        assert_eq!(successor(&status(&of), &answers).ok(), Some(3));
        answers.insert(3, Err("no answer in time".to_owned()));
        assert_eq!(successor(&status(&of), &answers).ok(), Some(2));
        answers.remove(&2);
        assert!(successor(&status(&of), &answers).is_err());
    }

    #[test]
    fn the_list_has_roles_and_says_who_is_silent() {
        let of = [(1, true, false), (2, false, false), (4, false, true)];
        let answers = Answers::from([(1, applied(90)), (2, Err("gone".to_owned()))]);
        let text = Coordinators::of(&status(&of), &answers).text();
        let rows: Vec<&str> = text.lines().collect();
        assert!(
            rows[1].contains("leader") && rows[1].contains("90"),
            "{text}"
        );
        assert!(
            rows[2].contains("follower") && rows[2].ends_with('-'),
            "{text}"
        );
        assert!(rows[3].contains("learner"), "{text}");
        assert!(
            text.contains("! coordinator 2 says nothing of itself: gone"),
            "{text}"
        );
    }

    #[test]
    fn the_answer_says_how_many_may_fail() {
        assert_eq!(remark(&[1, 2, 3]), "of 3 voters (1, 2, 3) 1 may fail");
        assert_eq!(remark(&[1, 2]), "of 2 voters (1, 2) 0 may fail");
        assert!(remark(&[2]).contains("only one"));
    }
}
