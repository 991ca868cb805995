//! Every kind of row change reaches the index (P2, P3), rows in the tail are
//! answered as an exact scan would, and nothing is lost once they are folded.
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use integration_tests::{Cluster, Items, Session, clustered_vector, literal};

/// Larger than a page's TOAST threshold: such vectors are stored out of line.
const TOASTED: usize = 784;

fn session() -> Result<Session> {
    Cluster::shared()?.session()
}

fn nearest_id(session: &mut Session, items: &Items, vector: &[f32]) -> Result<i64> {
    let sql = format!(
        "SELECT id FROM {} ORDER BY embedding <-> '{}' LIMIT 1",
        items.name,
        literal(vector)
    );
    Ok(session.ids(&sql)?[0])
}

#[test]
fn p2_rows_that_were_there_before_the_index_and_rows_inserted_later_are_found() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_insert", 2_000, 24)?;
    items.assert_equals_exact(&mut session, 10)?;
    items.insert(&mut session, 2_001..2_501)?;
    items.assert_equals_exact(&mut session, 10)?;
    assert_eq!(
        nearest_id(&mut session, &items, &clustered_vector(2_400, 24))?,
        2_400
    );
    items.assert_every_row_once(&mut session)
}

#[test]
fn rows_in_the_tail_are_answered_as_an_exact_scan_would() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_tail", 100, 64)?;
    let mut tail_rows = 0;
    for round in 0..20 {
        items.insert(&mut session, 1_000 * (round + 1)..1_000 * (round + 1) + 900)?;
        tail_rows = tail_rows.max(session.explain(&items.nearest(5, 10))?.count("tail_rows")?);
        items.assert_equals_exact(&mut session, 10)?;
        if tail_rows > 0 && round > 3 {
            return items.assert_every_row_once(&mut session);
        }
    }
    panic!("no search met a row in the tail");
}

#[test]
fn recall_stays_once_the_tail_is_folded() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_folded", 10_000, 32)?;
    session.wait_for(&items.index(), true)?;
    let recall = items.recall_at_10(&mut session, 50)?;
    assert!(recall >= 0.98, "recall@10 is {recall}");
    session
        .explain(&items.nearest(3, 10))?
        .assert_answered_by_the_cluster()?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn p3_an_updated_vector_is_found_at_its_new_place_only() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_update", 500, 16)?;
    let far = vec![9.0; 16];
    session.execute(
        &format!(
            "UPDATE rows_update SET embedding = '{}' WHERE id = 77",
            literal(&far)
        ),
        &[],
    )?;
    assert_eq!(nearest_id(&mut session, &items, &far)?, 77);
    assert_ne!(
        nearest_id(&mut session, &items, &clustered_vector(77, 16))?,
        77
    );
    items.assert_equals_exact(&mut session, 20)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn an_update_that_leaves_a_toasted_vector_alone_keeps_it() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_toast", 200, TOASTED)?;
    session.execute("UPDATE rows_toast SET label = label + 1", &[])?;
    assert_eq!(
        nearest_id(&mut session, &items, &clustered_vector(123, TOASTED))?,
        123
    );
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn a_key_change_moves_a_toasted_vector_with_its_row() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_key", 200, TOASTED)?;
    session.execute("UPDATE rows_key SET id = id + 1000 WHERE id <= 50", &[])?;
    for id in [1, 17, 50] {
        assert_eq!(
            nearest_id(&mut session, &items, &clustered_vector(id, TOASTED))?,
            id + 1000
        );
    }
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn p3_deleted_rows_do_not_come_back() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_delete", 500, 16)?;
    session.execute("DELETE FROM rows_delete WHERE id % 3 = 0", &[])?;
    items.assert_equals_exact(&mut session, 50)?;
    items.insert(&mut session, 501..520)?;
    session.execute("DELETE FROM rows_delete WHERE id = 510", &[])?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn truncate_empties_the_index_and_rows_inserted_after_it_are_found() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_truncate", 300, 16)?;
    session.batch_execute("TRUNCATE rows_truncate")?;
    items.assert_every_row_once(&mut session)?;
    items.insert(&mut session, 10..40)?;
    items.assert_equals_exact(&mut session, 10)?;
    session.batch_execute("BEGIN; TRUNCATE rows_truncate")?;
    items.insert(&mut session, 100..130)?;
    session.batch_execute("COMMIT")?;
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn several_changes_of_a_row_in_one_transaction_end_with_the_last() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_several", 100, TOASTED)?;
    let (a, b) = (vec![5.0f32; TOASTED], vec![-5.0f32; TOASTED]);
    let (a, b) = (literal(&a), literal(&b));
    session.batch_execute(&format!(
        "BEGIN;
         INSERT INTO rows_several VALUES (1001, 1, '{a}');
         UPDATE rows_several SET label = 2 WHERE id = 1001;
         UPDATE rows_several SET embedding = '{b}' WHERE id = 1;
         UPDATE rows_several SET label = 3 WHERE id = 1;
         DELETE FROM rows_several WHERE id = 2;
         INSERT INTO rows_several VALUES (2, 9, '{b}');
         INSERT INTO rows_several VALUES (1002, 1, '{a}');
         DELETE FROM rows_several WHERE id = 1002;
         UPDATE rows_several SET id = 1003 WHERE id = 3;
         UPDATE rows_several SET embedding = '{a}' WHERE id = 1003;
         UPDATE rows_several SET id = 1004 WHERE id = 1003;
         COMMIT"
    ))?;
    let mut near_a = session.ids(&format!(
        "SELECT id FROM rows_several ORDER BY embedding <-> '{a}' LIMIT 2"
    ))?;
    near_a.sort_unstable();
    assert_eq!(near_a, [1001, 1004]);
    let mut near_b = session.ids(&format!(
        "SELECT id FROM rows_several ORDER BY embedding <-> '{b}' LIMIT 2"
    ))?;
    near_b.sort_unstable();
    assert_eq!(near_b, [1, 2]);
    items.assert_every_row_once(&mut session)
}

#[test]
fn aborted_transactions_and_savepoints_leave_no_row() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "rows_abort", 100, 16)?;
    let near = literal(&[7.0f32; 16]);
    session.batch_execute(&format!(
        "BEGIN; INSERT INTO rows_abort VALUES (901, 1, '{near}'); ROLLBACK;
         BEGIN; INSERT INTO rows_abort VALUES (902, 1, '{near}');
         SAVEPOINT s; INSERT INTO rows_abort VALUES (903, 1, '{near}'); ROLLBACK TO s;
         INSERT INTO rows_abort VALUES (904, 1, '{near}'); COMMIT"
    ))?;
    let mut got = session.ids(&format!(
        "SELECT id FROM rows_abort ORDER BY embedding <-> '{near}' LIMIT 2"
    ))?;
    got.sort_unstable();
    assert_eq!(got, [902, 904]);
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn hot_updated_rows_are_found_through_their_chain() -> Result<()> {
    let mut session = session()?;
    session.batch_execute("DROP TABLE IF EXISTS rows_hot; CREATE TABLE rows_hot(id bigint PRIMARY KEY, label int, embedding vector(8)) WITH (fillfactor = 30)")?;
    let items = Items {
        name: "rows_hot".into(),
        dimensions: 8,
    };
    items.insert(&mut session, 1..200)?;
    items.create_index(&mut session, "vector_l2_ops")?;
    for _ in 0..3 {
        session.execute("UPDATE rows_hot SET label = label + 1", &[])?;
    }
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn keys_of_several_columns_and_types_find_their_rows() -> Result<()> {
    let mut session = session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS rows_keys;
         CREATE TABLE rows_keys(id bigint NOT NULL, embedding vector(8), tenant text NOT NULL, at timestamptz NOT NULL,
                                ref uuid NOT NULL, amount numeric NOT NULL, PRIMARY KEY (tenant, ref, amount, at));
         INSERT INTO rows_keys SELECT i, array_fill((i * 0.25)::real, ARRAY[8])::vector, 'tenant ' || i % 3, to_timestamp(i),
                                      md5(i::text)::uuid, i / 7.0 FROM generate_series(1, 100) i;
         CREATE INDEX rows_keys_idx ON rows_keys USING ruhnsw (embedding vector_l2_ops)",
    )?;
    session.wait_for("rows_keys_idx", false)?;
    session.batch_execute("UPDATE rows_keys SET amount = amount + 1 WHERE id = 40; DELETE FROM rows_keys WHERE id = 41")?;
    let sql = "SELECT id FROM rows_keys ORDER BY embedding <-> array_fill(10.05::real, ARRAY[8])::vector LIMIT 5";
    assert_eq!(session.ids(sql)?, session.exact_ids(sql)?);
    session.explain(sql)?.assert_answered_by_the_cluster()
}
