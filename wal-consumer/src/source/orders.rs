//! What an operator orders of a source while it is followed: the map tells of it,
//! and the run ends, in order, to begin anew or to wait.

use super::SourceContext;
use super::slot_watch::SlotWatch;
use super::{coordination, sql};
use crate::replication::slot;
use cluster_core::ids::{DsnVersion, SourceId};
use cluster_core::map::PartitionMap;
use std::time::Duration;

/// How often a paused source's server is asked what its slot keeps.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Under which orders a run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    pub is_paused: bool,
    dsn: DsnVersion,
}

impl Orders {
    pub fn of(map: &PartitionMap, source: SourceId) -> Self {
        let source = map.sources.get(&source);
        source.map_or_else(Self::default, |source| Self {
            is_paused: source.is_paused,
            dsn: source.dsn_version,
        })
    }

    pub fn now(context: &SourceContext) -> Self {
        Self::of(&context.client.map(), context.source)
    }

    /// Returns once others are given.
    pub async fn change(self, context: &SourceContext) {
        let mut map = context.client.watch_map();
        let changed = map.wait_for(|map| Self::of(map, context.source) != self);
        if changed.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the end of a pause; until then the slot, which nobody reads, is looked
/// at, for it keeps every WAL segment.
pub async fn wait_while_paused(context: &SourceContext, orders: Orders) {
    tracing::warn!(source = %context.source, "paused: not followed, while the slot keeps WAL");
    let looking = async {
        let mut watch = None;
        loop {
            if let Err(problem) = look(context, &mut watch).await {
                tracing::debug!(source = %context.source, problem = format!("{problem:#}"), "the paused source's slot cannot be seen");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = orders.change(context) => {}
    }
}

/// What was told once is not told again: the watch outlives the looks.
async fn look(context: &SourceContext, watch: &mut Option<SlotWatch>) -> anyhow::Result<()> {
    let server = coordination::server(context).await?;
    let map = context.client.map();
    let source = map.sources.get(&context.source);
    let slot_name = source.map(|s| s.slot_name.clone()).unwrap_or_default();
    slot::check_name(&slot_name)?;
    let client = sql::connect(&server).await?;
    let watch = watch.get_or_insert_with(|| SlotWatch::new(context.clone(), slot_name));
    watch.look(&client).await?;
    context.metrics.positions(context.source, &context.standing);
    Ok(())
}
