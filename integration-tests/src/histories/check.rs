//! A question to the index and the scan that it is compared with, as one statement:
//! first what the index finds, then what the heap holds. Both see one snapshot.

use super::shape::Table;
use anyhow::{Context, Result, ensure};
use postgres::Row;
use rand::RngExt;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Of `bounded` searches.
const MAX_LAG_MS: u64 = 200;
/// A commit's time is taken before its record is on disk, which the bound is about.
const COMMIT_TAKES_MS_MAX: u64 = 2_000;
/// Share of the nearest rows that searches with a limit have to find, in a history.
const RECALL_MIN: f64 = 0.95;
/// Fewer say nothing.
const RECALL_ROWS_MIN: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Eventual,
    Bounded,
    Session,
    Strong,
}

impl Consistency {
    pub fn draw(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..20) {
            0..3 => Self::Eventual,
            3..8 => Self::Bounded,
            8..13 => Self::Session,
            _ => Self::Strong,
        }
    }

    pub fn setting(self) -> String {
        let name = match self {
            Self::Eventual => "eventual",
            Self::Bounded => "bounded",
            Self::Session => "session",
            Self::Strong => "strong",
        };
        format!("SET ruvector.read_consistency = {name}; SET ruvector.max_lag_ms = {MAX_LAG_MS}")
    }

    /// Whether an answer may not lack a row of the snapshot.
    fn demands(self, row: &Held, asker: &Asker) -> bool {
        match (self, row.committed_ms) {
            (Self::Strong, _) => true,
            (Self::Session, _) => row.writer.abs() == asker.writer,
            // Not committed, and seen: of this transaction. What it left alone of a row is
            // as old as it was.
            (_, None) => row.writer == asker.writer,
            (Self::Bounded, Some(at)) => at + MAX_LAG_MS + COMMIT_TAKES_MS_MAX < asker.asked_ms,
            (Self::Eventual, _) => false,
        }
    }
}

/// Whose answer it is.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// What the rows bear that this connection wrote.
    pub writer: i32,
    /// Milliseconds since 1970.
    pub asked_ms: u64,
}

impl Asker {
    pub fn now(writer: i32) -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            writer,
            asked_ms: since.as_millis() as u64,
        }
    }
}

/// A question about one table.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    table: String,
    distance: String,
    /// None pages through everything.
    pub limit: Option<u32>,
}

impl Check {
    pub fn draw(rng: &mut SmallRng, table: &Table) -> Self {
        let limit = match rng.random_range(0..3) {
            0 => Some(rng.random_range(1..12)),
            1 => Some(10_000),
            _ => None,
        };
        Self {
            limit,
            ..Self::of(table, rng.random_range(1..1_000_000))
        }
    }

    /// Everything, from the probe of a number.
    pub fn of(table: &Table, probe: u64) -> Self {
        Self {
            table: table.full_name(),
            distance: table.distance(probe),
            limit: None,
        }
    }

    pub fn sql(&self) -> String {
        let Self {
            table,
            distance,
            limit,
        } = self;
        let limit = limit.map_or(String::new(), |rows| format!(" LIMIT {rows}"));
        // Rows without a vector are in no index, but in a scan that stands in for one.
        format!(
            "SELECT 0 AS part, n, d, 0 AS writer, NULL::float8 AS committed FROM \
             (SELECT n, {distance} AS d FROM {table} ORDER BY {distance}{limit}) f WHERE d IS NOT NULL \
             UNION ALL SELECT 1, n, {distance}, coalesce(writer, 0), \
             extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 * 1000 FROM {table} WHERE embedding IS NOT NULL"
        )
    }
}

/// A row of the snapshot.
#[derive(Clone, Debug)]
struct Held {
    distance: f64,
    /// Who wrote its vector or key; negative once somebody has changed the rest of the row.
    writer: i32,
    committed_ms: Option<u64>,
}

/// Both halves of an answer. A snapshot may hold a number twice: above READ COMMITTED a
/// transaction still sees the row that another has removed since, and has inserted it anew,
/// which Postgres's unique indexes allow.
#[derive(Default, Debug)]
pub struct Compared {
    found: Vec<(i64, f64)>,
    held: Vec<(i64, Held)>,
}

impl Compared {
    pub fn take(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            let (n, distance) = (row.try_get(1)?, row.try_get(2)?);
            if row.try_get::<_, i32>(0)? == 0 {
                self.found.push((n, distance));
                continue;
            }
            let committed: Option<f64> = row.try_get(4)?;
            let held = Held {
                distance,
                writer: row.try_get(3)?,
                committed_ms: committed.map(|ms| ms as u64),
            };
            self.held.push((n, held));
        }
        Ok(())
    }

    /// P1 and P8: nothing that the snapshot had not, nothing twice, and nothing missing
    /// that this consistency demands.
    pub fn judge(
        &self,
        limit: Option<u32>,
        consistency: Consistency,
        asker: &Asker,
    ) -> Result<Tally> {
        let mut left: BTreeMap<i64, Vec<&Held>> = BTreeMap::new();
        for (n, held) in &self.held {
            left.entry(*n).or_default().push(held);
        }
        for (n, distance) in &self.found {
            let versions = left.entry(*n).or_default();
            let same = versions.iter().position(|held| held.distance == *distance);
            let same = same.with_context(|| {
                let held = self.held.iter().filter(|(held, _)| held == n);
                let held: Vec<_> = held.map(|(_, held)| held.distance).collect();
                format!("found {n} at {distance} (again); its snapshot has it at {held:?}")
            })?;
            versions.swap_remove(same);
        }
        let mut tally = Tally {
            checks: 1,
            rows: self.found.len(),
            ..Tally::default()
        };
        match limit.map(|rows| rows as usize) {
            Some(limit) if limit < self.held.len() => {
                self.judge_nearest(limit, consistency, &mut tally)?
            }
            _ => {
                let missing = left
                    .iter()
                    .flat_map(|(n, rows)| rows.iter().map(move |row| (n, row)));
                let missing = missing.filter(|(_, row)| consistency.demands(row, asker));
                let missing: Vec<_> = missing.take(10).collect();
                ensure!(
                    missing.is_empty(),
                    "{} of {} rows found under {consistency:?} by {asker:?}; missing among others: {missing:?}",
                    self.found.len(),
                    self.held.len()
                );
            }
        }
        Ok(tally)
    }

    fn judge_nearest(
        &self,
        limit: usize,
        consistency: Consistency,
        tally: &mut Tally,
    ) -> Result<()> {
        ensure!(
            self.found.len() <= limit,
            "{} rows of {limit}",
            self.found.len()
        );
        if consistency != Consistency::Strong {
            return Ok(());
        }
        ensure!(
            self.found.len() == limit,
            "{} rows of {limit}, and the snapshot has {}",
            self.found.len(),
            self.held.len()
        );
        let mut distances: Vec<f64> = self.held.iter().map(|(_, held)| held.distance).collect();
        distances.sort_by(f64::total_cmp);
        let farthest = distances[limit - 1];
        tally.nearest_wanted = limit;
        tally.nearest_found = self
            .found
            .iter()
            .filter(|(_, distance)| *distance <= farthest)
            .count();
        Ok(())
    }
}

/// What was done and seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub transactions: usize,
    pub statements: usize,
    /// Of those that Postgres would have refused as well.
    pub refused: usize,
    /// Errors while something was down.
    pub excused: usize,
    pub checks: usize,
    pub cursors: usize,
    /// Replicas, with the heap, beside everything else.
    pub compared: usize,
    /// That checks returned.
    pub rows: usize,
    pub nearest_wanted: usize,
    pub nearest_found: usize,
    /// Until the last session and the last crash were done; the rest is settling.
    pub played_ms: usize,
    /// That the cluster has answered by now, since Postgres started last.
    pub searches: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.transactions += other.transactions;
        self.statements += other.statements;
        self.refused += other.refused;
        self.excused += other.excused;
        self.checks += other.checks;
        self.cursors += other.cursors;
        self.compared += other.compared;
        self.rows += other.rows;
        self.nearest_wanted += other.nearest_wanted;
        self.nearest_found += other.nearest_found;
        self.played_ms += other.played_ms;
        self.searches = self.searches.max(other.searches);
    }

    pub fn assert_found_enough(&self) -> Result<()> {
        let recall = self.nearest_found as f64 / self.nearest_wanted.max(1) as f64;
        ensure!(
            self.nearest_wanted < RECALL_ROWS_MIN || recall >= RECALL_MIN,
            "searches with a limit found {recall} of the nearest"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = Asker {
        writer: 7,
        asked_ms: 100_000,
    };

    fn compared(found: &[(i64, f64)], held: &[(i64, f64, i32, Option<u64>)]) -> Compared {
        let row = |(n, distance, writer, committed_ms): &(i64, f64, i32, Option<u64>)| {
            let (distance, writer, committed_ms) = (*distance, *writer, *committed_ms);
            (
                *n,
                Held {
                    distance,
                    writer,
                    committed_ms,
                },
            )
        };
        Compared {
            found: found.to_vec(),
            held: held.iter().map(row).collect(),
        }
    }

    #[test]
    fn p1_a_row_that_the_snapshot_has_not_or_twice_or_elsewhere_is_wrong() {
        let held = [(1, 0.5, 0, Some(1)), (2, 0.7, 0, Some(1))];
        let judge = |found: &[(i64, f64)]| {
            compared(found, &held).judge(None, Consistency::Eventual, &ASKER)
        };
        assert!(judge(&[(1, 0.5), (2, 0.7)]).is_ok());
        assert!(judge(&[(3, 0.5)]).is_err());
        assert!(judge(&[(1, 0.5), (1, 0.5)]).is_err());
        assert!(judge(&[(1, 0.6)]).is_err());
        // Seen still, and inserted anew by the same transaction.
        let twice = [(1, 0.5, 0, Some(1)), (1, 0.7, 7, None)];
        let both = compared(&[(1, 0.7), (1, 0.5)], &twice);
        assert!(both.judge(None, Consistency::Strong, &ASKER).is_ok());
        let one = compared(&[(1, 0.7)], &twice);
        assert!(one.judge(None, Consistency::Strong, &ASKER).is_err());
    }

    #[test]
    fn p8_each_consistency_demands_what_it_promises() {
        use Consistency::*;
        let missing = |writer, committed, consistency| {
            compared(&[], &[(1, 0.5, writer, committed)])
                .judge(None, consistency, &ASKER)
                .is_err()
        };
        // By another, a moment ago.
        let fresh = [Eventual, Bounded, Session, Strong].map(|c| missing(1, Some(99_990), c));
        assert_eq!(fresh, [false, false, false, true]);
        let old = [Eventual, Bounded, Session, Strong].map(|c| missing(1, Some(90_000), c));
        assert_eq!(old, [false, true, false, true]);
        let own = [Eventual, Bounded, Session, Strong].map(|c| missing(7, Some(99_990), c));
        assert_eq!(own, [false, false, true, true]);
        let uncommitted = [Eventual, Bounded, Session, Strong].map(|c| missing(7, None, c));
        assert_eq!(uncommitted, [true; 4]);
        let left_alone = [Eventual, Bounded, Session, Strong].map(|c| missing(-7, None, c));
        assert_eq!(left_alone, [false, false, true, true]);
    }

    #[test]
    fn p7_a_strong_search_with_a_limit_returns_that_many() {
        let held = [
            (1, 0.1, 0, Some(1)),
            (2, 0.2, 0, Some(1)),
            (3, 0.3, 0, Some(1)),
        ];
        let all = |found: &[(i64, f64)]| {
            compared(found, &held).judge(Some(2), Consistency::Strong, &ASKER)
        };
        assert!(all(&[(1, 0.1)]).is_err());
        let tally = all(&[(1, 0.1), (3, 0.3)]).expect("complete");
        assert_eq!((tally.nearest_found, tally.nearest_wanted), (1, 2));
    }
}
