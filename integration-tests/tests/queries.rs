//! The shapes of SQL that applications send are answered by the cluster, and as
//! an exact scan would (joins, parameters, cursors, counts, no LIMIT).
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use integration_tests::{Cluster, Items, Session, clustered_vector, literal};
use std::time::{Duration, Instant};

fn session() -> Result<Session> {
    Cluster::shared()?.session()
}

#[test]
fn limits_of_1_10_and_100() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "q_limits", 3_000, 16)?;
    for limit in [1, 10, 100] {
        items.assert_equals_exact(&mut session, limit)?;
    }
    Ok(())
}

#[test]
fn each_metric_orders_as_its_operator_says() -> Result<()> {
    let mut session = session()?;
    for (opclass, operator) in [
        ("vector_l2_ops", "<->"),
        ("vector_cosine_ops", "<=>"),
        ("vector_ip_ops", "<#>"),
    ] {
        let items = Items::create(&mut session, "q_metric", 1_000, 16)?;
        items.create_index(&mut session, opclass)?;
        let query = literal(&clustered_vector(5_000, 16));
        let sql =
            format!("SELECT id FROM q_metric ORDER BY embedding {operator} '{query}' LIMIT 20");
        assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?, "{operator}");
        session.explain(&sql)?.assert_answered_by_the_cluster()?;
    }
    Ok(())
}

#[test]
fn prepared_statements_with_a_parameter_keep_using_the_index() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "q_prepared", 1_000, 16)?;
    let statement = session
        .prepare("SELECT id FROM q_prepared ORDER BY embedding <-> $1::text::vector LIMIT 10")?;
    for probe in 0..8 {
        let query = literal(&clustered_vector(9_000 + probe, 16));
        let rows = session.query(&statement, &[&query])?;
        let got: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(got, session.exact_ids(&items.nearest(9_000 + probe, 10))?);
    }
    session.batch_execute(
        "PREPARE near(vector) AS SELECT id FROM q_prepared ORDER BY embedding <-> $1 LIMIT 3;
         SET plan_cache_mode = force_generic_plan",
    )?;
    // Postgres 15 calls no hook for EXPLAIN EXECUTE: the plan is what can be seen.
    let execute = format!("EXECUTE near('{}')", literal(&clustered_vector(1, 16)));
    let explained = session.explain(&execute)?;
    assert!(
        explained
            .text
            .contains("Index Scan using q_prepared_embedding_idx"),
        "{}",
        explained.text
    );
    assert_eq!(
        session.ids(&execute)?,
        session.exact_ids(&items.nearest(1, 3))?
    );
    Ok(())
}

#[test]
fn joins_filters_and_counts_over_an_ordered_subquery() -> Result<()> {
    let mut session = session()?;
    Items::indexed(&mut session, "q_join", 1_000, 16)?;
    let query = literal(&clustered_vector(4_242, 16));
    for sql in [
        format!("SELECT count(*) FROM (SELECT id FROM q_join ORDER BY embedding <-> '{query}' LIMIT 37) s"),
        format!("SELECT count(*) FROM (SELECT id FROM q_join ORDER BY embedding <-> '{query}' OFFSET 5) s"),
        format!("SELECT id FROM q_join WHERE label = 3 ORDER BY embedding <-> '{query}' LIMIT 15"),
        format!(
            "SELECT a.id FROM (SELECT id, embedding <-> '{query}' AS d FROM q_join ORDER BY d LIMIT 20) a
             JOIN q_join b ON b.id = a.id WHERE b.label < 5 ORDER BY a.d, a.id"
        ),
        "SELECT n.id FROM (SELECT id, embedding FROM q_join WHERE id IN (3, 500, 999)) p
         CROSS JOIN LATERAL (SELECT id, p.id AS pid, c.embedding <-> p.embedding AS d FROM q_join c
                             ORDER BY c.embedding <-> p.embedding LIMIT 5) n ORDER BY n.pid, n.d, n.id"
            .to_owned(),
    ] {
        assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?, "{sql}");
    }
    Ok(())
}

#[test]
fn p1_every_row_comes_exactly_once_without_a_limit() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "q_all", 5_000, 12)?;
    items.assert_every_row_once(&mut session)?;
    session.wait_for(&items.index(), true)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn a_cursor_pages_through_in_order() -> Result<()> {
    let mut session = session()?;
    Items::indexed(&mut session, "q_cursor", 800, 12)?;
    let query = literal(&clustered_vector(77, 12));
    session.batch_execute(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM q_cursor ORDER BY embedding <-> '{query}'"
    ))?;
    let mut got = Vec::new();
    loop {
        let page = session.ids("FETCH 90 FROM c")?;
        if page.is_empty() {
            break;
        }
        got.extend(page);
    }
    session.batch_execute("COMMIT")?;
    let want = session.exact_ids(&format!(
        "SELECT id FROM q_cursor ORDER BY embedding <-> '{query}'"
    ))?;
    assert_eq!(got.len(), want.len());
    assert_eq!(got[..100], want[..100]);
    Ok(())
}

#[test]
fn a_transactions_own_writes_are_in_its_answers() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "q_own", 300, 12)?;
    let near = literal(&[6.0f32; 12]);
    let sql = format!("SELECT id FROM q_own ORDER BY embedding <-> '{near}' LIMIT 1");
    session.batch_execute(&format!(
        "BEGIN; INSERT INTO q_own VALUES (900, 1, '{near}')"
    ))?;
    assert_eq!(session.ids(&sql)?, [900]);
    session.batch_execute("SAVEPOINT s; DELETE FROM q_own WHERE id = 900")?;
    assert_ne!(session.ids(&sql)?, [900]);
    session.batch_execute("ROLLBACK TO s")?;
    assert_eq!(session.ids(&sql)?, [900]);
    session.batch_execute(&format!("UPDATE q_own SET embedding = '{near}', id = 901 WHERE id = 5; DELETE FROM q_own WHERE id = 900"))?;
    assert_eq!(session.ids(&sql)?, [901]);
    items.assert_every_row_once(&mut session)?;
    session.batch_execute("ROLLBACK")?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn p8_a_session_reads_what_it_has_committed() -> Result<()> {
    let mut session = session()?;
    Items::indexed(&mut session, "q_session", 100, 12)?;
    for i in 0..50 {
        let vector = literal(&[10.0 + i as f32; 12]);
        session.execute(
            &format!(
                "INSERT INTO q_session VALUES ({}, 0, '{vector}')",
                1_000 + i
            ),
            &[],
        )?;
        let sql = format!("SELECT id FROM q_session ORDER BY embedding <-> '{vector}' LIMIT 1");
        assert_eq!(session.ids(&sql)?, [1_000 + i]);
    }
    Ok(())
}

#[test]
fn a_query_can_be_cancelled_and_the_session_goes_on() -> Result<()> {
    let mut session = session()?;
    let items = Items::indexed(&mut session, "q_cancel", 2_000, 64)?;
    session.batch_execute("SET statement_timeout = '3ms'")?;
    let query = literal(&clustered_vector(1, 64));
    let mut cancelled = 0;
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline && cancelled < 20 {
        let sql = format!(
            "SELECT count(*) FROM (SELECT id FROM q_cancel ORDER BY embedding <-> '{query}') s"
        );
        if session.client_error(&sql) == Some("57014".into()) {
            cancelled += 1;
        }
    }
    assert!(cancelled > 0, "no scan was slow enough to be cancelled");
    session.batch_execute("SET statement_timeout = '60s'")?;
    items.assert_every_row_once(&mut session)
}
