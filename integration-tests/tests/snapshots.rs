//! P1: the heap decides under the query's snapshot: no row that the snapshot
//! does not see, and none missing that it sees although it has ended since.
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use integration_tests::{Cluster, Items, clustered_vector, literal};

#[test]
fn p1_rows_deleted_and_updated_by_others_stay_in_an_older_snapshot() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    let items = Items::indexed(&mut writer, "snap_rr", 400, 12)?;
    let query = literal(&clustered_vector(50, 12));
    let sql = format!("SELECT id FROM snap_rr ORDER BY embedding <-> '{query}' LIMIT 20");
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let before = reader.ids(&sql)?;
    writer.batch_execute(&format!(
        "DELETE FROM snap_rr WHERE id IN ({}); UPDATE snap_rr SET embedding = '{}' WHERE id IN ({})",
        join(&before[..7]),
        literal(&[50.0f32; 12]),
        join(&before[7..14])
    ))?;
    // The writer's own read waits until the cluster has applied its changes.
    assert!(!writer.ids(&sql)?.iter().any(|id| before[..14].contains(id)));
    assert_eq!(
        reader.ids(&sql)?,
        before,
        "the older snapshot sees what it saw"
    );
    reader.explain(&sql)?.assert_answered_by_the_cluster()?;
    items.assert_every_row_once(&mut reader)?;
    reader.batch_execute("COMMIT")?;
    assert!(!reader.ids(&sql)?.iter().any(|id| before[..14].contains(id)));
    items.assert_every_row_once(&mut reader)
}

#[test]
fn p1_an_open_cursor_sees_neither_less_nor_more_than_its_snapshot() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    Items::indexed(&mut writer, "snap_cursor", 1_000, 12)?;
    let query = literal(&clustered_vector(5, 12));
    reader.batch_execute(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM snap_cursor ORDER BY embedding <-> '{query}'"
    ))?;
    let mut got = reader.ids("FETCH 10 FROM c")?;
    writer.batch_execute(&format!(
        "DELETE FROM snap_cursor WHERE id % 2 = 0;
         UPDATE snap_cursor SET embedding = '{}' WHERE id % 5 = 0;
         INSERT INTO snap_cursor SELECT i, 0, '{query}' FROM generate_series(5001, 5050) i",
        literal(&[-30.0f32; 12])
    ))?;
    writer.ids(&format!(
        "SELECT id FROM snap_cursor ORDER BY embedding <-> '{query}' LIMIT 1"
    ))?;
    got.extend(reader.ids("FETCH ALL FROM c")?);
    reader.batch_execute("COMMIT")?;
    got.sort_unstable();
    assert_eq!(got, (1..=1_000).collect::<Vec<i64>>());
    Ok(())
}

#[test]
fn p1_a_row_inserted_by_an_open_transaction_is_invisible_to_others() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    Items::indexed(&mut writer, "snap_open", 100, 12)?;
    let near = literal(&[8.0f32; 12]);
    let sql = format!("SELECT id FROM snap_open ORDER BY embedding <-> '{near}' LIMIT 1");
    writer.batch_execute(&format!(
        "BEGIN; INSERT INTO snap_open VALUES (901, 0, '{near}')"
    ))?;
    assert_ne!(reader.ids(&sql)?, [901]);
    writer.batch_execute("COMMIT")?;
    reader.batch_execute("SET ruvector.read_consistency = strong")?;
    assert_eq!(reader.ids(&sql)?, [901]);
    Ok(())
}

#[test]
fn p1_a_snapshot_older_than_the_backfill_is_scanned_exactly() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut reader, mut writer) = (cluster.session()?, cluster.session()?);
    let items = Items::create(&mut writer, "snap_older", 200, 12)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    reader.ids("SELECT count(*) FROM snap_older")?;
    writer.batch_execute("DELETE FROM snap_older WHERE id <= 100")?;
    items.create_index(&mut writer, "vector_l2_ops")?;
    let query = literal(&clustered_vector(1, 12));
    let got = reader.ids(&format!(
        "SELECT id FROM snap_older ORDER BY embedding <-> '{query}'"
    ))?;
    assert_eq!(
        got.len(),
        200,
        "the snapshot from before the DELETE sees all rows"
    );
    Ok(())
}

fn join(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}
