//! Statements about one table, drawn at random. Rows come from a small range of
//! numbers, so that sessions meet each other on them.

use super::shape::{Identity, Table};
use crate::items::{clustered_vector, literal};
use rand::RngExt;
use rand::rngs::SmallRng;

/// In the database once: vectors as a function of a number, so that statements stay
/// short enough to be read.
pub const FUNCTIONS: &str = "
CREATE OR REPLACE FUNCTION history_vector(dimensions int, n bigint) RETURNS vector
LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT array_agg((x - floor(x))::real ORDER BY i)::vector
  FROM generate_series(1, dimensions) i,
       LATERAL (SELECT sin(n * 12.9898 + i * 78.233) * 43758.5453 AS x) s
$$";

/// Rows that everybody writes to.
const NUMBERS: std::ops::Range<i64> = 1..40;
/// A bulk insert's, once in a while.
const BULK_ROWS_MAX: i64 = 300;
/// A row of which only the rest has changed: the index has what it had of it before.
const LEAVES_VECTOR: &str = "writer = -abs(writer)";
/// A key change goes out of the range, and back.
const MOVED_BY: i64 = 1000;

#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    Sql(String),
    Copy { sql: String, lines: String },
}

fn numbers(rng: &mut SmallRng) -> String {
    let count = if rng.random_ratio(1, 4) {
        12
    } else {
        rng.random_range(1..4)
    };
    let drawn: Vec<String> = (0..count)
        .map(|_| rng.random_range(NUMBERS).to_string())
        .collect();
    format!("'{{{}}}'::bigint[]", drawn.join(","))
}

fn salt(rng: &mut SmallRng) -> u32 {
    rng.random_range(1..1_000_000)
}

fn insert_of(rng: &mut SmallRng, table: &Table, of: &str, vector: &str) -> String {
    format!(
        "INSERT INTO {} (n, {}, label, embedding, note) SELECT n, {}, {}, {vector}, \
         repeat(md5(n::text), {}) FROM {of} n",
        table.full_name(),
        table.derived_names(),
        table.derived_values(),
        rng.random_range(0..100),
        [0, 1, 200][rng.random_range(0..3)],
    )
}

/// All rows of the range at once.
pub fn insert_all(rng: &mut SmallRng, table: &Table) -> String {
    let of = format!(
        "generate_series({}::bigint, {})",
        NUMBERS.start,
        NUMBERS.end - 1
    );
    let vector = vector(rng, table);
    insert_of(rng, table, &of, &vector)
}

fn vector(rng: &mut SmallRng, table: &Table) -> String {
    format!("history_vector({}, n + {})", table.dimensions, salt(rng))
}

/// One change of rows.
pub fn change(rng: &mut SmallRng, table: &Table) -> Statement {
    let name = table.full_name();
    let sql = match rng.random_range(0..100) {
        0..28 => {
            let of = format!("unnest({})", numbers(rng));
            let vector = vector(rng, table);
            // A conflict is another session's row, or the same number twice.
            let on_conflict = if rng.random_ratio(9, 10) {
                " ON CONFLICT DO NOTHING"
            } else {
                ""
            };
            insert_of(rng, table, &of, &vector) + on_conflict
        }
        28..32 => {
            let rows = rng.random_range(50..BULK_ROWS_MAX);
            let of = format!("generate_series({MOVED_BY}::bigint, {MOVED_BY} + {rows})");
            let vector = vector(rng, table);
            insert_of(rng, table, &of, &vector) + " ON CONFLICT DO NOTHING"
        }
        32..48 => format!(
            "UPDATE {name} SET embedding = {}, writer = DEFAULT WHERE n = ANY({})",
            vector(rng, table),
            numbers(rng)
        ),
        // Leaves a vector that lies out of line where it is.
        48..60 => format!(
            "UPDATE {name} SET label = {}, {LEAVES_VECTOR} WHERE n = ANY({})",
            rng.random_range(0..100),
            numbers(rng)
        ),
        60..64 => format!(
            "UPDATE {name} SET embedding = NULL, writer = DEFAULT WHERE n = ANY({})",
            numbers(rng)
        ),
        64..72 => {
            let (by, among) = if rng.random() {
                (MOVED_BY, numbers(rng))
            } else {
                (
                    -MOVED_BY,
                    format!(
                        "ARRAY(SELECT m + {MOVED_BY} FROM unnest({}) m)",
                        numbers(rng)
                    ),
                )
            };
            format!(
                "UPDATE {name} SET {}, writer = DEFAULT WHERE n = ANY({among})",
                table.moved_by(by)
            )
        }
        72..85 => format!("DELETE FROM {name} WHERE n = ANY({})", numbers(rng)),
        85..87 => format!("DELETE FROM {name} WHERE n >= {MOVED_BY}"),
        87..90 => {
            let leaves = table.leaves();
            let whole = rng.random_ratio(1, 2);
            let which = if whole {
                name
            } else {
                leaves[rng.random_range(0..leaves.len())].clone()
            };
            // What comes behind it in its transaction stays.
            let behind = if rng.random() {
                let of = format!("unnest({})", numbers(rng));
                let vector = vector(rng, table);
                format!(
                    "; {} ON CONFLICT DO NOTHING",
                    insert_of(rng, table, &of, &vector)
                )
            } else {
                String::new()
            };
            format!("TRUNCATE {which}{behind}")
        }
        90..95 => return copy(rng, table),
        _ => reborn(rng, table),
    };
    Statement::Sql(sql)
}

/// A row that comes, goes and comes again within one transaction.
fn reborn(rng: &mut SmallRng, table: &Table) -> String {
    let n = rng.random_range(NUMBERS);
    let name = table.full_name();
    let of = format!("unnest('{{{n}}}'::bigint[])");
    let mut sql = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let vector = vector(rng, table);
        sql.push(format!("DELETE FROM {name} WHERE n = {n}"));
        sql.push(insert_of(rng, table, &of, &vector));
    }
    sql.join("; ")
}

/// Only where the key is the number itself: COPY computes nothing.
fn copy(rng: &mut SmallRng, table: &Table) -> Statement {
    use super::shape::Key;
    let is_plain = table.key == Key::Bigint && table.identity != Identity::Index;
    if !is_plain || table.is_partitioned {
        let of = format!("unnest({})", numbers(rng));
        let vector = vector(rng, table);
        return Statement::Sql(insert_of(rng, table, &of, &vector) + " ON CONFLICT DO NOTHING");
    }
    let first = rng.random_range(2_000..4_000);
    let mut lines = String::new();
    for n in first..first + rng.random_range(1..30) {
        let vector = clustered_vector(n, table.dimensions as usize);
        lines.push_str(&format!("{n}\t{}\t{}\n", n * 7 - 100, literal(&vector)));
    }
    Statement::Copy {
        sql: format!("COPY {} (n, id, embedding) FROM STDIN", table.full_name()),
        lines,
    }
}

/// A change of the definition that may stand in a transaction.
pub fn definition(rng: &mut SmallRng, table: &Table) -> String {
    let name = table.full_name();
    let short = &table.name;
    match rng.random_range(0..9) {
        0 => format!("ALTER TABLE {name} ADD COLUMN extra int"),
        1 => format!("ALTER TABLE {name} ADD COLUMN extra float8 DEFAULT random()"),
        2 | 3 => format!("ALTER TABLE {name} DROP COLUMN IF EXISTS extra"),
        4 => format!(
            "ALTER TABLE {name} RENAME TO {short}_away; \
                      ALTER TABLE {name}_away RENAME TO {short}"
        ),
        5 => format!(
            "ALTER TABLE {name} RENAME COLUMN embedding TO vectors; \
                      UPDATE {name} SET label = label + 1, {LEAVES_VECTOR}; \
                      ALTER TABLE {name} RENAME COLUMN vectors TO embedding"
        ),
        6 => format!("DROP INDEX IF EXISTS {}", table.full_index()),
        7 => table.create_index("IF NOT EXISTS"),
        _ if table.identity == Identity::Index => {
            format!("ALTER TABLE {name} ALTER COLUMN note TYPE varchar")
        }
        _ => {
            let leaves = table.leaves();
            let kind = if rng.random() { "FULL" } else { "DEFAULT" };
            let leaf = &leaves[rng.random_range(0..leaves.len())];
            format!("ALTER TABLE {leaf} REPLICA IDENTITY {kind}")
        }
    }
}

/// Commands of maintenance, which stand alone, each a transaction of its own or more.
pub fn maintenance(rng: &mut SmallRng, table: &Table) -> Vec<String> {
    let name = table.full_name();
    let index = table.full_index();
    let leaves = table.leaves();
    let leaf = leaves[rng.random_range(0..leaves.len())].clone();
    let concurrently = if table.is_partitioned {
        ""
    } else {
        "CONCURRENTLY"
    };
    let one = match rng.random_range(0..11) {
        0 => format!("VACUUM FULL {leaf}"),
        1 => format!("VACUUM {leaf}"),
        2 => format!(
            "CLUSTER {leaf} USING {}_pkey",
            leaf.trim_start_matches(&format!("{}.", table.schema))
        ),
        3 => format!("REINDEX TABLE {leaf}"),
        4 => format!("REINDEX TABLE CONCURRENTLY {leaf}"),
        5 => format!("REINDEX INDEX {concurrently} {index}"),
        6 => format!("DROP INDEX {concurrently} IF EXISTS {index}"),
        7 => table.create_index(&format!("{concurrently} IF NOT EXISTS")),
        8 => format!("ANALYZE {leaf}"),
        _ if table.is_partitioned => return detach_and_attach(rng, &name),
        _ => table.create_index(&format!("{concurrently} IF NOT EXISTS")),
    };
    vec![one]
}

/// The partition lives on its own for a while. Rows that its place in the default
/// partition got meanwhile have to leave before it returns.
fn detach_and_attach(rng: &mut SmallRng, name: &str) -> Vec<String> {
    let lonely = format!(
        "UPDATE {name}_1 SET embedding = NULL, writer = DEFAULT WHERE n = {}",
        rng.random_range(NUMBERS)
    );
    vec![
        format!("ALTER TABLE {name} DETACH PARTITION {name}_1"),
        lonely,
        format!(
            "BEGIN; DELETE FROM {name}_rest WHERE part = 1; \
             ALTER TABLE {name} ATTACH PARTITION {name}_1 FOR VALUES IN (1); COMMIT"
        ),
    ]
}
