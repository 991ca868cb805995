//! What names a row: keys of every kind, and every REPLICA IDENTITY. Rows are found,
//! moved and removed by it (P2, P3); a table that loses its key is scanned exactly and
//! returns by itself.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{Cluster, Items, Session};

/// A table `name(…, n bigint, embedding vector(3))` with a key made of `n`.
struct Keyed<'a> {
    name: &'a str,
    /// Columns and their primary key.
    columns: &'a str,
    /// The key's values as SQL over `n`.
    values: &'a str,
}

impl Keyed<'_> {
    fn check(&self, session: &mut Session) -> Result<()> {
        self.run(session)
            .with_context(|| format!("key {}", self.columns))
    }

    fn run(&self, session: &mut Session) -> Result<()> {
        let Self {
            name,
            columns,
            values,
        } = self;
        let insert = |rows: &str| {
            format!(
                "INSERT INTO {name} SELECT {values}, n, ARRAY[n % 7, n % 11, n]::real[]::vector FROM generate_series({rows}) n"
            )
        };
        session.batch_execute(&format!(
            "DROP TABLE IF EXISTS {name};
             CREATE TABLE {name}({columns}, n bigint, embedding vector(3));
             {};
             CREATE INDEX {name}_idx ON {name} USING ruhnsw (embedding vector_l2_ops)",
            insert("1, 60")
        ))?;
        session.wait_for(&format!("{name}_idx"), false)?;
        self.assert_as_exact(session)?;
        session.batch_execute(&format!(
            "{};
             UPDATE {name} SET embedding = embedding + embedding WHERE n % 5 = 0;
             UPDATE {name} SET n = n + 1000 WHERE n % 7 = 0;
             DELETE FROM {name} WHERE n % 4 = 0",
            insert("61, 90")
        ))?;
        self.assert_as_exact(session)
    }

    fn assert_as_exact(&self, session: &mut Session) -> Result<()> {
        let name = self.name;
        let sql = format!("SELECT n FROM {name} ORDER BY embedding <-> '[3,5,40]', n");
        let nearest = format!("SELECT n FROM {name} ORDER BY embedding <-> '[3.1,5.2,40.4]'");
        session
            .explain(&nearest)?
            .assert_answered_by_the_cluster()?;
        for sql in [sql, nearest] {
            let (got, want) = (session.ids(&sql)?, session.exact_ids(&sql)?);
            ensure!(got == want, "{sql}: got {got:?}, want {want:?}");
        }
        Ok(())
    }
}

#[test]
fn p2_keys_of_every_common_type_name_their_rows() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS kind_domain, kind_enum, kind_no_case;
         DROP DOMAIN IF EXISTS even_id; CREATE DOMAIN even_id AS bigint CHECK (VALUE % 2 = 0);
         DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
         DROP COLLATION IF EXISTS no_case;
         CREATE COLLATION no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )?;
    let kinds = [
        ("bigint", "id bigint PRIMARY KEY", "n"),
        ("integer", "id int PRIMARY KEY", "n"),
        ("smallint", "id smallint PRIMARY KEY", "n"),
        ("text", "id text PRIMARY KEY", "'Zeile äöü ' || n"),
        ("varchar", "id varchar(40) PRIMARY KEY", "'v' || n"),
        ("bpchar", "id char(12) PRIMARY KEY", "'c' || n"),
        (
            "no_case",
            "id text COLLATE no_case PRIMARY KEY",
            "'Id' || n",
        ),
        ("uuid", "id uuid PRIMARY KEY", "md5(n::text)::uuid"),
        ("numeric", "id numeric PRIMARY KEY", "n + 0.50"),
        ("date", "id date PRIMARY KEY", "date '2000-01-01' + n::int"),
        (
            "timestamptz",
            "id timestamptz PRIMARY KEY",
            "timestamptz '2000-01-01 00:00:00+03' + n * interval '1 hour'",
        ),
        (
            "bytea",
            "id bytea PRIMARY KEY",
            "decode(md5(n::text), 'hex')",
        ),
        (
            "bool",
            "id bool, k int, PRIMARY KEY (id, k)",
            "n % 2 = 0, n",
        ),
        ("float8", "id float8 PRIMARY KEY", "n / 3.0::float8"),
        ("inet", "id inet PRIMARY KEY", "inet '10.0.0.0' + n"),
        (
            "jsonb",
            "id jsonb PRIMARY KEY",
            "jsonb_build_object('n', n)",
        ),
        ("domain", "id even_id PRIMARY KEY", "n * 2"),
        (
            "enum",
            "id mood, k int, PRIMARY KEY (k, id)",
            "(enum_range(NULL::mood))[1 + n % 3], n",
        ),
        (
            "composite",
            "tenant text, id bigint, at timestamptz, PRIMARY KEY (id, tenant, at)",
            "'t' || n % 3, n / 3, timestamptz '2020-02-02' + n * interval '1 second'",
        ),
    ];
    for (kind, columns, values) in kinds {
        let name = format!("kind_{kind}");
        let keyed = Keyed {
            name: &name,
            columns,
            values,
        };
        keyed.check(&mut session)?;
    }
    Ok(())
}

#[test]
fn p2_numbers_that_are_equal_and_written_otherwise_are_one_key() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let keyed = Keyed {
        name: "kind_scale",
        columns: "id numeric PRIMARY KEY",
        values: "n",
    };
    keyed.check(&mut session)?;
    session.batch_execute(
        "UPDATE kind_scale SET id = id + 0.000 WHERE id % 2 = 0;
         UPDATE kind_scale SET embedding = embedding + '[1,2,3]' WHERE id % 3 = 0; DELETE FROM kind_scale WHERE id % 9 = 1",
    )?;
    keyed.assert_as_exact(&mut session)
}

#[test]
fn p11_a_renamed_label_of_an_enum_in_the_key_fails_no_query() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS kind_label; DROP TYPE IF EXISTS stage; CREATE TYPE stage AS ENUM ('draft', 'done')",
    )?;
    let keyed = Keyed {
        name: "kind_label",
        columns: "id stage, k int, PRIMARY KEY (id, k)",
        values: "(enum_range(NULL::stage))[1 + n % 2], n",
    };
    keyed.check(&mut session)?;
    session.batch_execute("ALTER TYPE stage ADD VALUE 'late'")?;
    session.batch_execute("UPDATE kind_label SET id = 'late' WHERE k % 5 = 1")?;
    keyed.assert_as_exact(&mut session)?;
    session.batch_execute(
        "ALTER TYPE stage RENAME VALUE 'draft' TO 'begun'; DELETE FROM kind_label WHERE k % 9 = 2",
    )?;
    session.wait_for("kind_label_idx", false)?;
    keyed.assert_as_exact(&mut session)
}

#[test]
fn a_key_with_a_generated_column_is_scanned_exactly_by_name() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS kind_generated;
         CREATE TABLE kind_generated(a bigint, id bigint GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY, embedding vector(3));
         CREATE INDEX kind_generated_embedding_idx ON kind_generated USING ruhnsw (embedding vector_l2_ops);
         INSERT INTO kind_generated(a, embedding) SELECT n, ARRAY[n, 0, 0]::real[]::vector FROM generate_series(1, 40) n;
         UPDATE kind_generated SET a = a + 100 WHERE a < 10; DELETE FROM kind_generated WHERE a = 20",
    )?;
    let items = Items {
        name: "kind_generated".into(),
        dimensions: 3,
    };
    items.assert_exact(&mut session, "generated")
}

#[test]
fn p2_every_replica_identity_names_rows_and_a_change_of_it_needs_no_reindex() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "identity", 200, 8)?;
    session.batch_execute(
        "ALTER TABLE identity ADD COLUMN code text; UPDATE identity SET code = 'c' || id;
         ALTER TABLE identity ALTER COLUMN code SET NOT NULL; CREATE UNIQUE INDEX identity_code ON identity (code)",
    )?;
    let churn = "UPDATE identity SET embedding = embedding + embedding WHERE id % 5 = 0;
         UPDATE identity SET label = label + 1 WHERE id % 3 = 0;
         UPDATE identity SET id = id + 1000 WHERE id % 17 = 0;
         UPDATE identity SET code = code || 'x' WHERE id % 19 = 0;
         DELETE FROM identity WHERE id % 23 = 0";
    for identity in [
        "FULL",
        "USING INDEX identity_code",
        "FULL",
        "DEFAULT",
        "USING INDEX identity_code",
        "DEFAULT",
    ] {
        session.batch_execute(churn)?;
        session.batch_execute(&format!("ALTER TABLE identity REPLICA IDENTITY {identity}"))?;
        session.batch_execute(churn)?;
        items
            .assert_followed(&mut session)
            .with_context(|| identity.to_owned())?;
        session.batch_execute(churn)?;
        items
            .assert_every_row_once(&mut session)
            .with_context(|| identity.to_owned())?;
    }

    session.batch_execute("ALTER TABLE identity REPLICA IDENTITY NOTHING")?;
    session.batch_execute(churn)?;
    items.assert_exact(&mut session, "REPLICA IDENTITY NOTHING")?;
    session.batch_execute("ALTER TABLE identity REPLICA IDENTITY DEFAULT")?;
    session.batch_execute(churn)?;
    items.assert_followed(&mut session)
}

#[test]
fn p2_a_whole_old_row_names_its_key_while_columns_come_and_go() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "identity_full", 300, 8)?;
    session.batch_execute("ALTER TABLE identity_full REPLICA IDENTITY FULL")?;
    items.assert_followed(&mut session)?;
    for round in 0..5 {
        // The catalog is ahead of what is still in the stream.
        session.batch_execute(&format!(
            "UPDATE identity_full SET embedding = embedding + embedding WHERE id % 5 = {round};
             ALTER TABLE identity_full ADD COLUMN extra{round} text DEFAULT 'x';
             UPDATE identity_full SET label = label + 1 WHERE id % 5 = {round};
             ALTER TABLE identity_full DROP COLUMN extra{round};
             DELETE FROM identity_full WHERE id % 50 = {round}"
        ))?;
    }
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn p2_a_key_that_comes_late_has_the_table_followed_without_reindex() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::create(&mut session, "key_late", 200, 8)?;
    session.batch_execute(
        "ALTER TABLE key_late DROP CONSTRAINT key_late_pkey;
         CREATE INDEX key_late_embedding_idx ON key_late USING ruhnsw (embedding vector_l2_ops)",
    )?;
    items.assert_exact(&mut session, "no primary key")?;
    session.batch_execute("UPDATE key_late SET label = label + 1")?;
    for (lose, gain) in [
        ("", "ALTER TABLE key_late ADD PRIMARY KEY (id)"),
        (
            "ALTER TABLE key_late DROP CONSTRAINT key_late_pkey; CREATE UNIQUE INDEX key_late_id ON key_late (id)",
            "ALTER TABLE key_late ADD CONSTRAINT key_late_pkey PRIMARY KEY USING INDEX key_late_id",
        ),
        (
            "ALTER TABLE key_late DROP CONSTRAINT key_late_pkey; CREATE UNIQUE INDEX CONCURRENTLY key_late_id ON key_late (id)",
            "ALTER TABLE key_late REPLICA IDENTITY USING INDEX key_late_id",
        ),
    ] {
        for statement in lose.split(';').filter(|s| !s.trim().is_empty()) {
            session.batch_execute(statement)?;
        }
        session.batch_execute(
            "UPDATE key_late SET embedding = embedding + embedding WHERE id % 10 = 3",
        )?;
        session.batch_execute(gain)?;
        session.batch_execute("DELETE FROM key_late WHERE id % 40 = 7")?;
        items
            .assert_followed(&mut session)
            .with_context(|| gain.to_owned())?;
    }
    Ok(())
}

#[test]
fn p1_a_key_that_comes_in_a_transaction_that_is_rolled_back_changes_nothing() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "key_back", 100, 8)?;
    session.batch_execute(
        "BEGIN; ALTER TABLE key_back DROP CONSTRAINT key_back_pkey;
         ALTER TABLE key_back ADD PRIMARY KEY (id, label); ROLLBACK;
         UPDATE key_back SET embedding = embedding + embedding WHERE id % 3 = 0",
    )?;
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}
