//! A table of synthetic vectors with an index, filled by one binary COPY.

use super::Bench;
use anyhow::{Context, Result, ensure};
use integration_tests::clustered_vector;
use postgres::{Client, NoTls};
use std::io::Write;
use std::time::Instant;

/// Bytes handed to the connection at a time.
const COPY_BYTES: usize = 1 << 20;
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TRAILER: [u8; 2] = (-1i16).to_be_bytes();
/// Until every replica has every row in its graph.
const FOLDED_WITHIN_SECONDS: u32 = 1_800;

#[derive(Clone)]
pub struct Table {
    pub name: &'static str,
    pub rows: i64,
    pub dimensions: usize,
}

impl Table {
    pub fn index(&self) -> String {
        format!("{}_idx", self.name)
    }

    /// Makes it, unless it is there from an earlier run, and waits until its
    /// graphs are complete.
    pub fn make(&self, bench: &Bench) -> Result<()> {
        let (name, dimensions) = (self.name, self.dimensions);
        let mut session = Client::connect(bench.cluster.dsn(), NoTls)?;
        let found = session.query_one("SELECT to_regclass($1) IS NOT NULL", &[&self.index()])?;
        if !found.get::<_, bool>(0) {
            session.batch_execute(&format!(
                "DROP TABLE IF EXISTS {name};
                 CREATE TABLE {name}(id bigint PRIMARY KEY, embedding vector({dimensions}))"
            ))?;
            let started = Instant::now();
            self.copy(&mut session)?;
            eprintln!("{name}: loaded in {:.1?}", started.elapsed());
            session.batch_execute(&format!("ANALYZE {name}"))?;
            session.batch_execute(&format!(
                "CREATE INDEX {} ON {name} USING ruhnsw (embedding vector_l2_ops)",
                self.index()
            ))?;
        }
        let started = Instant::now();
        self.wait_until_folded(bench)?;
        eprintln!("{name}: folded after {:.1?}", started.elapsed());
        Ok(())
    }

    pub fn wait_until_folded(&self, bench: &Bench) -> Result<()> {
        let mut session = Client::connect(bench.cluster.dsn(), NoTls)?;
        let index = self.index();
        session
            .batch_execute(&format!(
                "SELECT ruvector_wait_for_index('{index}', {FOLDED_WITHIN_SECONDS}, true)"
            ))
            .with_context(|| format!("waiting for {index}"))
    }

    fn copy(&self, session: &mut Client) -> Result<()> {
        let mut copy =
            session.copy_in(&format!("COPY {} FROM STDIN (FORMAT binary)", self.name))?;
        let mut buffer = COPY_HEADER.to_vec();
        for id in 1..=self.rows {
            append_row(id, &clustered_vector(id, self.dimensions), &mut buffer)?;
            if buffer.len() >= COPY_BYTES {
                copy.write_all(&buffer)?;
                buffer.clear();
            }
        }
        buffer.extend_from_slice(&COPY_TRAILER);
        copy.write_all(&buffer)?;
        let rows = copy.finish()?;
        ensure!(
            i64::try_from(rows)? == self.rows,
            "COPY took {rows} rows of {}",
            self.rows
        );
        Ok(())
    }
}

/// Two columns: a bigint, and pgvector's binary format (dimensions, a zero, the
/// elements, all in network order).
fn append_row(id: i64, elements: &[f32], out: &mut Vec<u8>) -> Result<()> {
    out.extend_from_slice(&2i16.to_be_bytes());
    out.extend_from_slice(&8i32.to_be_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&i32::try_from(4 + 4 * elements.len())?.to_be_bytes());
    out.extend_from_slice(&u16::try_from(elements.len())?.to_be_bytes());
    out.extend_from_slice(&0u16.to_be_bytes());
    for element in elements {
        out.extend_from_slice(&element.to_be_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_written_as_copy_reads_it() {
        let mut row = Vec::new();
        append_row(258, &[1.0, -2.0], &mut row).expect("a small row");
        let expected = [
            0, 2, // columns
            0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2, // id
            0, 0, 0, 12, 0, 2, 0, 0, 0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0, // [1,-2]
        ];
        assert_eq!(row, expected);
    }
}
