//! What a seed stands for: tables, what each session does, and who dies when.
//! Nothing but the seed is read.

use super::check::{Check, Consistency};
use super::crash::Crash;
use super::shape::Table;
use super::statement::{self, Statement};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const TABLES: std::ops::RangeInclusive<usize> = 2..=3;
/// Besides the one that changes definitions.
const SESSIONS: std::ops::RangeInclusive<usize> = 2..=3;
const TRANSACTIONS: std::ops::RangeInclusive<usize> = 15..=30;
const STEPS: std::ops::RangeInclusive<usize> = 1..=7;
const CRASHES_MAX: usize = 3;
/// When the last process dies, about as long as the sessions take.
const CRASH_WITHIN_MS: u64 = 4_000;
const DOWN_MS_MAX: u64 = 2_500;

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Change(Statement),
    Define(String),
    Savepoint,
    RollbackTo,
    Check(Check),
    /// A cursor that is read to its end when the transaction ends.
    Open(Check),
    Fetch(u32),
    Pause {
        ms: u64,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// Of the session, from here on.
    pub settings: String,
    /// Its `BEGIN`; each step is a transaction of its own without.
    pub begin: Option<&'static str>,
    pub consistency: Consistency,
    pub steps: Vec<Step>,
    pub commits: bool,
}

#[derive(Debug, PartialEq)]
pub struct Script {
    pub seed: u64,
    pub tables: Vec<Table>,
    pub setup: Vec<String>,
    pub sessions: Vec<Vec<Transaction>>,
    pub crashes: Vec<Crash>,
    pub cleanup: String,
}

impl Script {
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rng = &mut rng;
        let schema = format!("h{seed}");
        let count = rng.random_range(TABLES);
        let tables: Vec<_> = (0..count)
            .map(|place| Table::draw(rng, &schema, place))
            .collect();
        let mut setup = vec![
            format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"),
            "SET history.writer = 0".to_owned(),
        ];
        for table in &tables {
            setup.extend(table.create());
            let index = table.create_index("IF NOT EXISTS");
            // Some are built beside the writes, by the session that defines.
            match rng.random_range(0..4) {
                0 => {}
                1 => setup.extend([statement::insert_all(rng, table), index]),
                _ => setup.extend([index, statement::insert_all(rng, table)]),
            }
        }
        let count = rng.random_range(SESSIONS);
        let mut sessions: Vec<_> = (0..count).map(|_| session(rng, &tables)).collect();
        sessions.push(definitions(rng, &tables));
        Self {
            seed,
            setup,
            sessions,
            crashes: crashes(rng),
            cleanup: format!("DROP SCHEMA {schema} CASCADE"),
            tables,
        }
    }
}

fn one_of<'a>(rng: &mut SmallRng, tables: &'a [Table]) -> &'a Table {
    &tables[rng.random_range(0..tables.len())]
}

fn session(rng: &mut SmallRng, tables: &[Table]) -> Vec<Transaction> {
    let count = rng.random_range(TRANSACTIONS);
    (0..count).map(|_| transaction(rng, tables)).collect()
}

fn transaction(rng: &mut SmallRng, tables: &[Table]) -> Transaction {
    let begin = match rng.random_range(0..10) {
        0..2 => None,
        2..5 => Some("BEGIN"),
        5..8 => Some("BEGIN ISOLATION LEVEL REPEATABLE READ"),
        _ => Some("BEGIN ISOLATION LEVEL SERIALIZABLE"),
    };
    let count = rng.random_range(STEPS);
    let mut steps = Vec::new();
    if begin.is_some() && rng.random_ratio(1, 3) {
        let table = one_of(rng, tables);
        steps.push(Step::Open(Check::of(table, rng.random_range(1..1_000_000))));
        if rng.random() {
            steps.push(Step::Fetch(rng.random_range(1..8)));
        }
    }
    for _ in 0..count {
        let table = one_of(rng, tables);
        steps.push(match rng.random_range(0..100) {
            0..50 => Step::Change(statement::change(rng, table)),
            50..78 => Step::Check(Check::draw(rng, table)),
            78..82 if begin.is_some() => Step::Savepoint,
            82..86 if begin.is_some() => Step::RollbackTo,
            86..89 if begin.is_some() => Step::Fetch(rng.random_range(1..20)),
            _ => Step::Pause {
                ms: rng.random_range(1..200),
            },
        });
    }
    Transaction {
        settings: settings(rng),
        begin,
        consistency: Consistency::draw(rng),
        steps,
        commits: rng.random_ratio(5, 6),
    }
}

fn settings(rng: &mut SmallRng) -> String {
    let unavailable = if rng.random_ratio(1, 5) {
        "exact"
    } else {
        "error"
    };
    let commit = if rng.random_ratio(1, 5) { "off" } else { "on" };
    format!("SET ruvector.on_unavailable = {unavailable}; SET synchronous_commit = {commit}")
}

/// One session alone changes definitions: two would mostly wait for each other.
fn definitions(rng: &mut SmallRng, tables: &[Table]) -> Vec<Transaction> {
    let mut all = Vec::new();
    for _ in 0..rng.random_range(6..15) {
        let table = one_of(rng, tables);
        let is_maintenance = rng.random();
        let mut steps = Vec::new();
        if is_maintenance {
            steps.extend(
                statement::maintenance(rng, table)
                    .into_iter()
                    .map(Step::Define),
            );
        } else {
            steps.push(Step::Define(statement::definition(rng, table)));
            steps.push(Step::Change(statement::change(rng, table)));
        }
        steps.push(Step::Check(Check::draw(rng, table)));
        steps.push(Step::Pause {
            ms: rng.random_range(1..400),
        });
        all.push(Transaction {
            settings: settings(rng),
            begin: (!is_maintenance && rng.random_ratio(2, 3)).then_some("BEGIN"),
            consistency: Consistency::draw(rng),
            steps,
            commits: rng.random_ratio(4, 5),
        });
    }
    all
}

/// A quarter of the histories is quiet: there no error is excused.
fn crashes(rng: &mut SmallRng) -> Vec<Crash> {
    let count = rng.random_range(0..=CRASHES_MAX);
    let mut crashes: Vec<_> = (0..count)
        .map(|_| Crash {
            at_ms: rng.random_range(100..CRASH_WITHIN_MS),
            process: [
                "consumer-1",
                "consumer-1",
                "node-1",
                "node-2",
                "coordinator-1",
                "postgres",
            ][rng.random_range(0..6)],
            down_ms: rng.random_range(0..DOWN_MS_MAX),
        })
        .collect();
    crashes.sort_by_key(|crash| crash.at_ms);
    crashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_whole_script() {
        for seed in 0..50 {
            assert_eq!(Script::of_seed(seed), Script::of_seed(seed));
        }
        assert_ne!(Script::of_seed(1).sessions, Script::of_seed(2).sessions);
    }

    /// What the histories promise to hold occurs in few of them already.
    #[test]
    fn a_few_seeds_hold_every_kind_of_statement() {
        let scripts: Vec<_> = (1..=60).map(Script::of_seed).collect();
        let told = format!("{scripts:?}");
        for word in [
            "SERIALIZABLE",
            "REPEATABLE READ",
            "Savepoint",
            "RollbackTo",
            "TRUNCATE",
            "COPY",
            "DELETE FROM",
            "embedding = NULL",
            "VACUUM FULL",
            "CLUSTER",
            "REINDEX TABLE CONCURRENTLY",
            "REINDEX INDEX CONCURRENTLY",
            "CREATE INDEX CONCURRENTLY",
            "DROP INDEX CONCURRENTLY",
            "ADD COLUMN",
            "DROP COLUMN",
            "RENAME TO",
            "RENAME COLUMN",
            "DETACH PARTITION",
            "ATTACH PARTITION",
            "USING INDEX",
            "IDENTITY FULL",
            "node-1",
            "coordinator-1",
            "postgres",
            "consumer-1",
            "Eventual",
            "Bounded",
            "Session",
            "Strong",
            "Open(",
        ] {
            assert!(told.contains(word), "{word}");
        }
        assert!(scripts.iter().any(|script| script.crashes.is_empty()));
    }
}
