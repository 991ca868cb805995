//! `ctl init`: the explicit, one-time beginning of a cluster. Nothing begins one
//! because a disk happens to be empty: that is how a second cluster is made.

use super::{Ctl, Report, failure, unreachable};
use crate::dev::new_cluster_id;
use crate::failure::{Failure, FailureKind};
use clap::Args;
use proto::v1::initialise_request::Member;
use proto::v1::{GetStatusRequest, InitialiseRequest};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

const PAUSE: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct InitArgs {
    /// The first coordinators, as 1=host:port,2=host:port,3=host:port
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID=ADDR", value_parser = member)]
    members: Vec<Member>,
    /// The cluster's id; drawn at random by default
    #[arg(long)]
    cluster_id: Option<String>,
    /// Succeed when the cluster is initialised already
    #[arg(long)]
    if_needed: bool,
}

#[derive(Serialize)]
pub struct Initialised {
    cluster_id: String,
    was_initialised: bool,
}

pub fn member(text: &str) -> Result<Member, String> {
    let bad = || format!("want ID=host:port, as in 1=10.0.0.1:7401, not {text:?}");
    let (id, address) = text.split_once('=').ok_or_else(bad)?;
    let coordinator_id: u64 = id.trim().parse().map_err(|_| bad())?;
    let is_address = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if coordinator_id == 0 || !is_address {
        return Err(bad());
    }
    Ok(Member {
        coordinator_id,
        address: address.trim().to_owned(),
    })
}

pub async fn init(ctl: &Ctl, args: InitArgs) -> Result<Initialised, Failure> {
    check_distinct(&args.members)?;
    let give_up = Instant::now() + ctl.timeout;
    // All members get the same list, so that any one may be told; the first is.
    let first = &args.members[0];
    let mut coordinator = ctl.client.coordinator(&first.address).map_err(failure)?;
    let request = InitialiseRequest {
        cluster_id: args.cluster_id.clone().unwrap_or_else(new_cluster_id),
        members: args.members.clone(),
    };
    loop {
        let asked = async {
            let status = coordinator
                .get_status(GetStatusRequest {})
                .await?
                .into_inner();
            if status.is_initialised {
                let cluster_id = status.map.map(|map| map.cluster_id).unwrap_or_default();
                return Ok(Initialised {
                    cluster_id,
                    was_initialised: true,
                });
            }
            let cluster_id = coordinator
                .initialise(request.clone())
                .await?
                .into_inner()
                .cluster_id;
            Ok::<_, tonic::Status>(Initialised {
                cluster_id,
                was_initialised: false,
            })
        };
        let status = match tokio::time::timeout_at(give_up, asked).await {
            Ok(Ok(done)) if done.was_initialised && !args.if_needed => {
                let message = format!(
                    "the cluster is initialised already, with id {}; nothing was changed",
                    done.cluster_id
                );
                return Err(Failure::new(FailureKind::Refused, message));
            }
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(status)) => status,
            Err(_) => {
                return Err(unreachable(&format!(
                    "{}: no answer in time",
                    first.address
                )));
            }
        };
        let is_transient = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        if !is_transient {
            return Err(Failure::new(
                FailureKind::Refused,
                format!("the cluster refused: {}", status.message()),
            ));
        }
        if Instant::now() + PAUSE >= give_up {
            return Err(unreachable(&format!(
                "{}: {}",
                first.address,
                status.message()
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn check_distinct(members: &[Member]) -> Result<(), Failure> {
    for (i, member) in members.iter().enumerate() {
        let is_twice = |other: &Member| {
            other.coordinator_id == member.coordinator_id || other.address == member.address
        };
        if members[..i].iter().any(is_twice) {
            let message = format!(
                "--members names {}={} twice",
                member.coordinator_id, member.address
            );
            return Err(Failure::new(FailureKind::Usage, message));
        }
    }
    Ok(())
}

impl Report for Initialised {
    fn text(&self) -> String {
        match self.was_initialised {
            true => format!(
                "The cluster is initialised already; its id is {}\n",
                self.cluster_id
            ),
            false => format!(
                "The cluster is initialised; its id is {}\n",
                self.cluster_id
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_numbered_addresses() {
        let parsed = member("2=10.0.0.1:7401").expect("a member");
        assert_eq!(
            (parsed.coordinator_id, parsed.address.as_str()),
            (2, "10.0.0.1:7401")
        );
        for bad in [
            "10.0.0.1:7401",
            "0=h:1",
            "x=h:1",
            "1=h",
            "1=:7401",
            "1=h:port",
        ] {
            assert!(member(bad).is_err(), "{bad}");
        }
    }
}
