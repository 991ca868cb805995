//! The oldest snapshot of a source, and its next transaction id.
//!
//! A former version is kept while some snapshot may see it. The oldest one is
//! found as Postgres finds its own horizon: running transactions, backends,
//! prepared transactions, slots and standbys. Without the right to see other
//! users' backends nothing is known, and nothing is forgotten.

use anyhow::Context;
use cluster_core::xid::{FullXid, widen};
use tokio_postgres::Client;

/// How far transactions may run ahead of the last reading. Ids up to this much
/// above it, and 3/4 of the 32-bit space below, are widened right.
const AHEAD_MAX: FullXid = 1 << 30;

const READ: &str = "
SELECT pg_snapshot_xmin(s)::text AS xmin, pg_snapshot_xmax(s)::text AS xmax,
       current_setting('is_superuser') = 'on'
         OR pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_all,
       ARRAY(SELECT backend_xmin::text FROM pg_stat_activity WHERE backend_xmin IS NOT NULL
             UNION ALL SELECT xmin::text FROM pg_replication_slots WHERE xmin IS NOT NULL
             UNION ALL SELECT transaction::text FROM pg_prepared_xacts) AS others
  FROM pg_current_snapshot() AS s";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidReading {
    /// Lower bound of the next id.
    next: FullXid,
    /// `None`: unknown.
    pub oldest_xmin: Option<FullXid>,
}

impl XidReading {
    pub async fn take(client: &Client) -> anyhow::Result<Self> {
        let row = client
            .query_one(READ, &[])
            .await
            .context("reading the oldest snapshot")?;
        let number = |text: &str| text.parse::<u64>().context("a transaction id is no number");
        let xmin = number(row.try_get("xmin")?)?;
        let next = number(row.try_get("xmax")?)?;
        let sees_all: bool = row.try_get("sees_all")?;
        let others: Vec<String> = row.try_get("others")?;
        let others = others
            .iter()
            .map(|text| text.parse::<u32>().context("an xmin is no number"))
            .collect::<anyhow::Result<Vec<u32>>>()?;
        Ok(Self::new(xmin, next, sees_all.then_some(&others)))
    }

    fn new(xmin: FullXid, next: FullXid, others: Option<&Vec<u32>>) -> Self {
        let lowest = |others: &Vec<u32>| {
            let others = others.iter().map(|xid| widen(*xid, next + AHEAD_MAX));
            others.chain([xmin]).min().unwrap_or(xmin)
        };
        Self {
            next,
            oldest_xmin: others.map(lowest),
        }
    }

    /// Widens the xid of a transaction in the stream.
    pub fn widen(&self, xid: u32) -> FullXid {
        widen(xid, self.next + AHEAD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_before_and_after_the_reading_and_a_wraparound_are_widened_right() {
        let reading = XidReading::new(900, 1_000, None);
        assert_eq!(reading.widen(990), 990);
        assert_eq!(reading.widen(1_005), 1_005, "began after the reading");
        let next_epoch = XidReading::new(1 << 32, (1 << 32) + 10, None);
        assert_eq!(next_epoch.widen(0xFFFF_FFF0), 0xFFFF_FFF0);
        assert_eq!(next_epoch.widen(20), (1 << 32) + 20);
        let before_wrap = XidReading::new(0, 0xFFFF_FFF0, None);
        assert_eq!(before_wrap.widen(5), (1 << 32) + 5);
    }

    #[test]
    fn p1_the_oldest_snapshot_of_anybody_counts_and_unknown_stays_unknown() {
        let next = (1 << 32) + 10;
        let others = vec![7, 0xFFFF_FFFE];
        let reading = XidReading::new((1 << 32) + 9, next, Some(&others));
        assert_eq!(reading.oldest_xmin, Some(0xFFFF_FFFE));
        assert_eq!(XidReading::new(9, 10, None).oldest_xmin, None);
    }
}
