//! `ctl source remove`: out of the cluster first, so that nobody follows it any more,
//! then out of its Postgres.

use super::dsn::{self, PasswordFile};
use super::find;
use super::leftovers::Leftovers;
use crate::ctl::{Ctl, Report, failure};
use crate::failure::{Failure, FailureKind};
use proto::v1::RemoveSourceRequest;
use serde::Serialize;

#[derive(Serialize)]
pub struct Removed {
    source_id: u64,
    name: String,
    was_detached: bool,
}

pub async fn remove(ctl: &Ctl, wanted: &str, password: &PasswordFile) -> Result<Removed, Failure> {
    let seen = ctl.leader_status().await?;
    let source = find(&seen, wanted)?;
    let source_id = source.id.0;
    // With the source its connection string is gone.
    let config = dsn::known(ctl, source_id).await?;
    let postgres = password.with(config)?;
    ctl.client
        .leader(|mut leader| async move {
            leader
                .remove_source(RemoveSourceRequest { source_id })
                .await
        })
        .await
        .map_err(failure)?;
    let leftovers = Leftovers::of(source);
    leftovers.remove(&postgres).await.map_err(|error| {
        let name = &source.name;
        let sql = leftovers.sql();
        let message = format!(
            "source {source_id} ({name}) is removed, but its slot may still be in Postgres, whose disk it fills: {error:#}\n\
             Run this there, in the source's database:\n{sql}"
        );
        Failure::new(FailureKind::Failed, message)
    })?;
    Ok(Removed {
        source_id,
        name: source.name.clone(),
        was_detached: source.is_detached(),
    })
}

impl Report for Removed {
    fn text(&self) -> String {
        let (id, name) = (self.source_id, &self.name);
        let there = match self.was_detached {
            true => "its slot and publication were dropped when it was detached",
            false => "its slot and publication are dropped",
        };
        format!(
            "Source {id} ({name}) is removed; {there}, and the nodes erase its rows.\n\
             A password in the consumers' credentials_dir stays there: delete the file {name:?}, if there is one\n"
        )
    }
}
