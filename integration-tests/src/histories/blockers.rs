//! No statement of a user fails because the consumer holds what it waits for (P11).

use super::session::LOCK_TIMEOUT;
use crate::cluster::Cluster;
use crate::sql::Session;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LOOKS_EVERY: Duration = Duration::from_millis(100);
/// Two looks lie before the end of a wait that is given up.
const BLOCKED_MAX: Duration = LOCK_TIMEOUT.saturating_sub(Duration::from_millis(200));
const RECONNECTS_WITHIN: Duration = Duration::from_secs(60);

/// Each wait of somebody's statement for one of ours: the two, and the statement.
const BLOCKED: &str = "
SELECT w.pid, b.pid, w.query_start::text, left(w.query, 200), left(b.query, 200)
  FROM pg_stat_activity w JOIN pg_stat_activity b ON b.pid = ANY (pg_blocking_pids(w.pid))
 WHERE w.wait_event_type = 'Lock' AND w.application_name NOT LIKE 'ruvector%'
   AND (b.application_name LIKE 'ruvector%' OR b.backend_type LIKE 'ruvector%')";

type Wait = (i32, i32, String, String, String);

/// Looks until it is told to stop. Who comes after Postgres has restarted waits anew.
pub fn watch(cluster: &Cluster, is_over: &AtomicBool) -> Result<()> {
    let mut session = cluster.session_within(RECONNECTS_WITHIN)?;
    let mut waits = BTreeMap::new();
    while !is_over.load(Ordering::SeqCst) {
        match look(&mut session) {
            Ok(seen) => waits = go_on(waits, seen)?,
            Err(_) => {
                waits.clear();
                session = cluster.session_within(RECONNECTS_WITHIN)?;
            }
        }
        std::thread::sleep(LOOKS_EVERY);
    }
    Ok(())
}

fn look(session: &mut Session) -> Result<Vec<Wait>> {
    let rows = session.query(BLOCKED, &[])?;
    let wait = |row: &postgres::Row| {
        Ok((
            row.try_get(0)?,
            row.try_get(1)?,
            row.try_get(2)?,
            row.try_get(3)?,
            row.try_get(4)?,
        ))
    };
    rows.iter().map(wait).collect()
}

fn go_on(before: BTreeMap<Wait, Instant>, seen: Vec<Wait>) -> Result<BTreeMap<Wait, Instant>> {
    let now = Instant::now();
    let mut waits = BTreeMap::new();
    for wait in seen {
        let since = before.get(&wait).copied().unwrap_or(now);
        let lasted = now - since;
        ensure!(
            lasted < BLOCKED_MAX,
            "P11: {:?} waits {lasted:?} for ours: {:?}",
            wait.3,
            wait.4
        );
        waits.insert(wait, since);
    }
    Ok(waits)
}
