//! A table of vectors with an index, and the checks that most tests make.

use crate::sql::Session;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write;

/// pgvector's text form.
pub fn literal(vector: &[f32]) -> String {
    let mut text = String::from("[");
    for (i, x) in vector.iter().enumerate() {
        let _ = write!(text, "{}{x}", if i > 0 { "," } else { "" });
    }
    text.push(']');
    text
}

/// A vector near one of 20 centres: data with structure, as embeddings have.
pub fn clustered_vector(id: i64, dimensions: usize) -> Vec<f32> {
    let mut centre = SmallRng::seed_from_u64(id as u64 % 20);
    let mut noise = SmallRng::seed_from_u64(1_000 + id as u64);
    (0..dimensions)
        .map(|_| centre.random_range(-1.0f32..1.0) + noise.random_range(-0.4f32..0.4))
        .collect()
}

/// A table `name(id bigint primary key, label int, embedding vector(n))`.
#[derive(Clone)]
pub struct Items {
    pub name: String,
    pub dimensions: usize,
}

impl Items {
    /// Creates and fills a table; no index yet.
    pub fn create(session: &mut Session, name: &str, rows: i64, dimensions: usize) -> Result<Self> {
        session.batch_execute(&format!(
            "DROP TABLE IF EXISTS {name};
             CREATE TABLE {name}(id bigint PRIMARY KEY, label int, embedding vector({dimensions}))"
        ))?;
        let items = Self {
            name: name.to_owned(),
            dimensions,
        };
        items.insert(session, 1..rows + 1)?;
        session.batch_execute(&format!("ANALYZE {name}"))?;
        Ok(items)
    }

    /// Creates table, rows and index, and waits until the index is ready.
    pub fn indexed(
        session: &mut Session,
        name: &str,
        rows: i64,
        dimensions: usize,
    ) -> Result<Self> {
        let items = Self::create(session, name, rows, dimensions)?;
        items.create_index(session, "vector_l2_ops")?;
        Ok(items)
    }

    pub fn index(&self) -> String {
        format!("{}_embedding_idx", self.name)
    }

    pub fn create_index(&self, session: &mut Session, opclass: &str) -> Result<()> {
        session.batch_execute(&format!(
            "CREATE INDEX {} ON {} USING ruhnsw (embedding {opclass})",
            self.index(),
            self.name
        ))?;
        session.wait_for(&self.index(), false)
    }

    /// Waits until the index is ready, and asserts that it then answers as the heap does.
    pub fn assert_followed(&self, session: &mut Session) -> Result<()> {
        session.wait_for(&self.index(), false)?;
        self.assert_equals_exact(session, 10)?;
        self.assert_every_row_once(session)
    }

    /// Asserts that the table is scanned exactly, with the given word in the reason
    /// that the status gives.
    pub fn assert_exact(&self, session: &mut Session, word: &str) -> Result<()> {
        let status = format!(
            "SELECT state || ': ' || coalesce(reason, '') FROM ruvector_index_status('{}')",
            self.index()
        );
        let status = session.value(&status)?;
        ensure!(
            status.starts_with("exact: ") && status.contains(word),
            "not exact for {word:?}: {status}"
        );
        let sql = self.nearest(3, 10);
        let (got, want) = (session.ids(&sql)?, session.exact_ids(&sql)?);
        ensure!(got == want, "got {got:?}, want {want:?}");
        Ok(())
    }

    /// Loads the given ids by COPY in one transaction.
    pub fn insert(&self, session: &mut Session, ids: std::ops::Range<i64>) -> Result<()> {
        use std::io::Write as _;
        let mut copy = session.copy_in(&format!("COPY {} FROM STDIN", self.name))?;
        for id in ids {
            writeln!(
                copy,
                "{id}\t{}\t{}",
                id % 10,
                literal(&clustered_vector(id, self.dimensions))
            )?;
        }
        copy.finish()?;
        Ok(())
    }

    /// `SELECT id … ORDER BY embedding <-> … LIMIT …` for the vector of an id.
    pub fn nearest(&self, probe: i64, limit: usize) -> String {
        let query = literal(&clustered_vector(probe, self.dimensions));
        format!(
            "SELECT id FROM {} ORDER BY embedding <-> '{query}' LIMIT {limit}",
            self.name
        )
    }

    /// Asserts that the cluster answers as an exact scan does, for some probes.
    pub fn assert_equals_exact(&self, session: &mut Session, limit: usize) -> Result<()> {
        for probe in 0..10 {
            let sql = self.nearest(1_000_000 + probe, limit);
            let (got, want) = (session.ids(&sql)?, session.exact_ids(&sql)?);
            ensure!(got == want, "probe {probe}: got {got:?}, want {want:?}");
        }
        session
            .explain(&self.nearest(7, 10))?
            .assert_answered_by_the_cluster()
    }

    /// Mean recall@10 against an exact scan over `probes` queries.
    pub fn recall_at_10(&self, session: &mut Session, probes: i64) -> Result<f64> {
        let mut found = 0;
        for probe in 0..probes {
            let sql = self.nearest(1_000_000 + probe, 10);
            let (got, want) = (session.ids(&sql)?, session.exact_ids(&sql)?);
            found += want.iter().filter(|id| got.contains(id)).count();
        }
        Ok(found as f64 / (probes * 10) as f64)
    }

    /// Asserts that a scan without LIMIT returns every row of the heap once.
    pub fn assert_every_row_once(&self, session: &mut Session) -> Result<()> {
        let query = literal(&clustered_vector(1, self.dimensions));
        let sql = format!(
            "SELECT id FROM {} ORDER BY embedding <-> '{query}'",
            self.name
        );
        let mut got = session.ids(&sql)?;
        let mut want = session.exact_ids(&format!(
            "SELECT id FROM {} WHERE embedding IS NOT NULL",
            self.name
        ))?;
        got.sort_unstable();
        want.sort_unstable();
        ensure!(
            got.len() == want.len(),
            "{} rows instead of {}",
            got.len(),
            want.len()
        );
        ensure!(got == want, "other rows than the heap's");
        session.explain(&sql)?.assert_answered_by_the_cluster()
    }
}
