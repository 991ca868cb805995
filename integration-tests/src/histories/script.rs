//! What a seed stands for: tables, what each session does, and who dies when.
//! Nothing but the seed is read.

use super::check::{Check, Consistency};
use super::crash::Crash;
use super::moves::Move;
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
/// How long after one process another may die, while the first one is down or just back.
const COMPANION_WITHIN_MS: u64 = 800;
const PROCESSES: [&str; 6] = [
    "consumer-1",
    "node-1",
    "node-2",
    "node-3",
    "coordinator-1",
    "postgres",
];
const MOVES_MAX: usize = 8;
/// Of the session that compares replicas with tables.
const COMPARISONS: std::ops::RangeInclusive<usize> = 5..=10;

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
    /// Of an index: what its replicas hold.
    Compare(String),
    /// Until the cluster has an index, for a moment.
    Wait(String),
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
    pub moves: Vec<Move>,
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
        let crashes = crashes(rng);
        let moves = moves(rng);
        // In the others the first statements meet a backfill.
        if rng.random_ratio(3, 4) {
            setup.extend(tables.iter().map(await_index));
        }
        sessions.push(comparisons(rng, &tables));
        Self {
            seed,
            setup,
            sessions,
            crashes,
            moves,
            cleanup: format!("DROP SCHEMA {schema} CASCADE"),
            tables,
        }
    }
}

/// Where the set-up has made it.
fn await_index(table: &Table) -> String {
    format!(
        "SELECT ruvector_wait_for_index(oid, 50, false) FROM to_regclass('{}') oid WHERE oid IS NOT NULL",
        table.full_index()
    )
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

/// One session alone changes definitions: two would mostly wait for each other. It mostly
/// spares the last table: a rebuilt index is filled from the heap, and what it held before
/// is seen no more.
fn definitions(rng: &mut SmallRng, tables: &[Table]) -> Vec<Transaction> {
    let mut all = Vec::new();
    for _ in 0..rng.random_range(6..15) {
        let spared = usize::from(rng.random_ratio(9, 10));
        let table = one_of(rng, &tables[..tables.len() - spared]);
        let is_maintenance = rng.random();
        let mut steps = Vec::new();
        if is_maintenance {
            steps.extend(
                statement::maintenance(rng, table)
                    .into_iter()
                    .map(Step::Define),
            );
            if rng.random() {
                steps.push(Step::Wait(table.full_index()));
            }
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

/// A session that writes nothing and asks what the replicas hold, which no search shows:
/// of a row too many, the heap has the last word there.
fn comparisons(rng: &mut SmallRng, tables: &[Table]) -> Vec<Transaction> {
    let count = rng.random_range(COMPARISONS);
    let comparison = |rng: &mut SmallRng| {
        let index = one_of(rng, tables).full_index();
        let ms = rng.random_range(1..700);
        Transaction {
            settings: settings(rng),
            begin: None,
            consistency: Consistency::Strong,
            steps: vec![Step::Compare(index), Step::Pause { ms }],
            commits: true,
        }
    };
    (0..count).map(|_| comparison(rng)).collect()
}

/// A quarter of the histories is quiet: there no error is excused. In the others each
/// crash may be one of a process, of two within a moment, or of all: who loses the
/// memory that another one relies on is seen only then.
fn crashes(rng: &mut SmallRng) -> Vec<Crash> {
    let count = rng.random_range(0..=CRASHES_MAX);
    let mut crashes = Vec::new();
    for _ in 0..count {
        let at_ms = rng.random_range(100..CRASH_WITHIN_MS);
        let first = [0, 0, 1, 2, 3, 4, 5][rng.random_range(0..7)];
        let dying: Vec<usize> = match rng.random_range(0..10) {
            0..5 => vec![first],
            5..9 => vec![first, rng.random_range(0..PROCESSES.len())],
            _ => (0..PROCESSES.len()).collect(),
        };
        for (place, process) in dying.into_iter().enumerate() {
            let later_ms = match place {
                0 => 0,
                _ => rng.random_range(0..COMPANION_WITHIN_MS),
            };
            crashes.push(Crash {
                at_ms: at_ms + later_ms,
                process: PROCESSES[process],
                down_ms: rng.random_range(0..DOWN_MS_MAX),
            });
        }
    }
    crashes.sort_by_key(|crash| crash.at_ms);
    crashes
}

fn moves(rng: &mut SmallRng) -> Vec<Move> {
    let count = rng.random_range(0..=MOVES_MAX);
    let mut moves: Vec<_> = (0..count)
        .map(|_| Move {
            at_ms: rng.random_range(0..CRASH_WITHIN_MS),
            pick: rng.random_range(0..1_000),
        })
        .collect();
    moves.sort_by_key(|one| one.at_ms);
    moves
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
            "Compare(",
            "Wait(",
            "Move {",
        ] {
            assert!(told.contains(word), "{word}");
        }
        assert!(scripts.iter().any(|script| script.crashes.is_empty()));
        let loses_two_at_once = |script: &Script| {
            let mut pairs = script.crashes.iter().zip(script.crashes.iter().skip(1));
            pairs.any(|(a, b)| a.process != b.process && b.at_ms < a.at_ms + a.down_ms)
        };
        assert!(scripts.iter().any(loses_two_at_once));
    }
}
