//! Tables `name(id bigint primary key, embedding vector(n))`, filled by binary COPY.

use anyhow::Result;
use postgres::Client;
use std::io::Write;
use std::ops::Range;

const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_END: [u8; 2] = (-1i16).to_be_bytes();

pub fn create(session: &mut Client, name: &str, dimensions: usize) -> Result<()> {
    Ok(session.batch_execute(&format!(
        "DROP TABLE IF EXISTS {name};
         CREATE TABLE {name}(id bigint PRIMARY KEY, embedding vector({dimensions}))"
    ))?)
}

/// Creates table and index, and waits until the index is ready.
pub fn create_indexed(session: &mut Client, name: &str, dimensions: usize) -> Result<()> {
    create(session, name, dimensions)?;
    session.batch_execute(&format!(
        "CREATE INDEX {name}_idx ON {name} USING ruhnsw (embedding vector_l2_ops)"
    ))?;
    // A statement of its own: the cluster hears of the index at its commit.
    let wait = format!("SELECT ruvector_wait_for_index('{name}_idx', 60)");
    Ok(session.batch_execute(&wait)?)
}

/// Components from a multiplicative hash: no two rows alike, and cheap to make.
pub fn vector(id: i64, dimensions: usize) -> impl Iterator<Item = f32> {
    let mut state = (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..dimensions).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    })
}

/// One committed COPY.
pub fn copy(session: &mut Client, name: &str, ids: Range<i64>, dimensions: usize) -> Result<()> {
    let mut writer = session.copy_in(&format!("COPY {name} FROM STDIN (FORMAT binary)"))?;
    writer.write_all(COPY_HEADER)?;
    let mut row = Vec::new();
    for id in ids {
        row.clear();
        row.extend(2i16.to_be_bytes());
        row.extend(8i32.to_be_bytes());
        row.extend(id.to_be_bytes());
        row.extend((4 + 4 * dimensions as i32).to_be_bytes());
        row.extend((dimensions as u16).to_be_bytes());
        row.extend([0, 0]);
        for component in vector(id, dimensions) {
            row.extend(component.to_be_bytes());
        }
        writer.write_all(&row)?;
    }
    writer.write_all(&COPY_END)?;
    writer.finish()?;
    Ok(())
}

/// A literal of a vector.
pub fn literal(id: i64, dimensions: usize) -> String {
    let components: Vec<String> = vector(id, dimensions).map(|x| x.to_string()).collect();
    format!("[{}]", components.join(","))
}
