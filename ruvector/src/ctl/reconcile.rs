//! `ctl reconcile`: an index is compared with its table, and mended. It goes on
//! answering meanwhile; `ctl collections` shows how far it is.

use super::{Ctl, Report, failure, usage};
use crate::failure::Failure;
use clap::Args;
use cluster_core::collection::Collection;
use proto::v1::RequestReconcileRequest;
use serde::Serialize;

#[derive(Args)]
pub struct ReconcileArgs {
    /// The collection, as `ctl collections` numbers it, or its index by name
    collection: String,
}

#[derive(Serialize)]
pub struct Requested {
    collection: u64,
    index: String,
}

pub async fn reconcile(ctl: &Ctl, args: ReconcileArgs) -> Result<Requested, Failure> {
    let seen = ctl.leader_status().await?;
    let wanted = &args.collection;
    let by_id = wanted.parse::<u64>().ok();
    let is_meant = |c: &&Collection| c.spec.index_name == *wanted || Some(c.id.0) == by_id;
    let found: Vec<&Collection> = seen.map.collections.values().filter(is_meant).collect();
    let [collection] = found.as_slice() else {
        let count = found.len();
        if count == 0 {
            return Err(usage(format!(
                "no collection or index is called {wanted}: ruvector ctl collections lists them"
            )));
        }
        return Err(usage(format!(
            "{count} collections are called {wanted}: name one by its number, as ruvector ctl \
             collections lists them"
        )));
    };
    let request = RequestReconcileRequest {
        collection_id: collection.id.0,
        reason: "asked for by ruvector ctl reconcile".to_owned(),
    };
    ctl.client
        .leader(|mut leader| {
            let request = request.clone();
            async move { leader.request_reconcile(request).await }
        })
        .await
        .map_err(failure)?;
    Ok(Requested {
        collection: collection.id.0,
        index: collection.spec.index_name.clone(),
    })
}

impl Report for Requested {
    fn text(&self) -> String {
        format!(
            "collection {} ({}) is compared with its table and mended; ruvector ctl collections \
             shows how far it is\n",
            self.collection, self.index
        )
    }
}
