//! The tables of a history. Every row is made from a small number `n`, which it also
//! bears in a column that is no key: statements name rows by it, whatever the key is.

use rand::RngExt;
use rand::rngs::SmallRng;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    Bigint,
    Uuid,
    Text,
    Composite,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    Default,
    /// A unique index on a column of its own.
    Index,
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    L2,
    Cosine,
    InnerProduct,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub schema: String,
    /// Without the schema; the names of indexes begin with it.
    pub name: String,
    pub key: Key,
    pub identity: Identity,
    pub metric: Metric,
    pub dimensions: u32,
    /// By list, in two partitions and one for the rest.
    pub is_partitioned: bool,
}

/// 3072 bytes: out of line. The other stays in the row.
const DIMENSIONS: [u32; 2] = [768, 6];

impl Table {
    pub fn draw(rng: &mut SmallRng, schema: &str, place: usize) -> Self {
        let key = [Key::Bigint, Key::Uuid, Key::Text, Key::Composite][rng.random_range(0..4)];
        let is_partitioned = rng.random_ratio(1, 4);
        let identity = match rng.random_range(0..4) {
            // A partition does not inherit its parent's.
            0 if !is_partitioned => Identity::Index,
            1 => Identity::Full,
            _ => Identity::Default,
        };
        let metric = match rng.random_range(0..5) {
            0 => Metric::Cosine,
            1 => Metric::InnerProduct,
            _ => Metric::L2,
        };
        Self {
            schema: schema.to_owned(),
            name: format!("{schema}_t{place}"),
            key,
            identity,
            metric,
            dimensions: DIMENSIONS[rng.random_range(0..2)],
            is_partitioned,
        }
    }

    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub fn index(&self) -> String {
        format!("{}_embedding_idx", self.name)
    }

    pub fn full_index(&self) -> String {
        format!("{}.{}", self.schema, self.index())
    }

    /// What has a file of its own.
    pub fn leaves(&self) -> Vec<String> {
        let name = self.full_name();
        if self.is_partitioned {
            ["0", "1", "rest"]
                .map(|part| format!("{name}_{part}"))
                .into()
        } else {
            vec![name]
        }
    }

    pub fn operator(&self) -> &'static str {
        match self.metric {
            Metric::L2 => "<->",
            Metric::Cosine => "<=>",
            Metric::InnerProduct => "<#>",
        }
    }

    fn operator_class(&self) -> &'static str {
        match self.metric {
            Metric::L2 => "vector_l2_ops",
            Metric::Cosine => "vector_cosine_ops",
            Metric::InnerProduct => "vector_ip_ops",
        }
    }

    /// Columns that follow from a number, their types, and how.
    fn derived(&self, n: &str) -> Vec<(&'static str, &'static str, String)> {
        let mut columns = match self.key {
            Key::Bigint => vec![("id", "bigint", format!("{n} * 7 - 100"))],
            Key::Uuid => vec![("id", "uuid", format!("md5(({n})::text)::uuid"))],
            Key::Text => vec![("id", "text", format!("'Schlüssel ' || {n}"))],
            Key::Composite => vec![
                ("tenant", "text", format!("'tenant ' || {n} % 5")),
                ("number", "int", format!("({n})::int")),
            ],
        };
        if self.identity == Identity::Index {
            columns.push(("other", "bigint", format!("{n} + 1000000")));
        }
        if self.is_partitioned {
            columns.push(("part", "int", format!("({n} % 3)::int")));
        }
        columns
    }

    pub fn derived_names(&self) -> String {
        let columns = self.derived("n").into_iter();
        columns
            .map(|(name, _, _)| name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The values of the derived columns for a column `n` at hand.
    pub fn derived_values(&self) -> String {
        let columns = self.derived("n").into_iter();
        columns
            .map(|(_, _, value)| value)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// `SET` clauses that make a row of `n` one of `n + by`.
    pub fn moved_by(&self, by: i64) -> String {
        let n = format!("(n + {by})");
        let columns = self.derived(&n).into_iter();
        let sets: Vec<_> = columns
            .map(|(name, _, value)| format!("{name} = {value}"))
            .collect();
        format!("n = {n}, {}", sets.join(", "))
    }

    pub fn create(&self) -> Vec<String> {
        let name = self.full_name();
        let columns = self.derived("n").into_iter();
        let columns: Vec<_> = columns
            .map(|(c, kind, _)| format!("{c} {kind} NOT NULL"))
            .collect();
        // In another order than the columns stand.
        let mut key = match self.key {
            Key::Composite => "number, tenant".to_owned(),
            _ => "id".to_owned(),
        };
        if self.is_partitioned {
            key.push_str(", part");
        }
        let mut sql = vec![format!(
            "CREATE TABLE {name}(n bigint, {}, label int, \
             writer int DEFAULT current_setting('history.writer')::int, \
             embedding vector({}), note text, PRIMARY KEY ({key})){}",
            columns.join(", "),
            self.dimensions,
            if self.is_partitioned {
                " PARTITION BY LIST (part)"
            } else {
                ""
            }
        )];
        if self.is_partitioned {
            sql.push(format!(
                "CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES IN (0)"
            ));
            sql.push(format!(
                "CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES IN (1)"
            ));
            sql.push(format!(
                "CREATE TABLE {name}_rest PARTITION OF {name} DEFAULT"
            ));
        }
        match self.identity {
            Identity::Default => {}
            Identity::Index => {
                sql.push(format!(
                    "CREATE UNIQUE INDEX {}_other ON {name}(other)",
                    self.name
                ));
                sql.push(format!(
                    "ALTER TABLE {name} REPLICA IDENTITY USING INDEX {}_other",
                    self.name
                ));
            }
            Identity::Full => sql.extend(
                self.leaves()
                    .into_iter()
                    .map(|leaf| format!("ALTER TABLE {leaf} REPLICA IDENTITY FULL")),
            ),
        }
        sql
    }

    pub fn create_index(&self, how: &str) -> String {
        format!(
            "CREATE INDEX {how} {} ON {} USING ruhnsw (embedding {})",
            self.index(),
            self.full_name(),
            self.operator_class()
        )
    }

    /// The distance of a row from the probe of a number.
    pub fn distance(&self, probe: u64) -> String {
        format!(
            "embedding {} history_vector({}, {probe})",
            self.operator(),
            self.dimensions
        )
    }
}
