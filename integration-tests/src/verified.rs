//! What `ruvector_verify` and `ruvector_verify_differences` say of an index.

use postgres::{Client, Error};
use std::collections::BTreeSet;

/// One replica, compared with the table.
#[derive(Debug)]
pub struct Verified {
    pub partition: i64,
    pub node: i64,
    pub state: String,
    pub heap_rows: i64,
    pub replica_rows: Option<i64>,
    pub differences: Option<i64>,
    pub undetermined: Option<i64>,
    pub problem: Option<String>,
}

impl Verified {
    pub fn all(client: &mut Client, index: &str) -> Result<Vec<Self>, Error> {
        let sql = "SELECT partition, node, state, heap_rows, replica_rows, differences, undetermined, problem \
                   FROM ruvector_verify($1::text::regclass)";
        let rows = client.query(sql, &[&index])?;
        let of_row = |row: &postgres::Row| {
            Ok(Self {
                partition: row.try_get(0)?,
                node: row.try_get(1)?,
                state: row.try_get(2)?,
                heap_rows: row.try_get(3)?,
                replica_rows: row.try_get(4)?,
                differences: row.try_get(5)?,
                undetermined: row.try_get(6)?,
                problem: row.try_get(7)?,
            })
        };
        rows.iter().map(of_row).collect()
    }

    /// It answers searches, and some key differs for sure. One that was left behind is
    /// compared as it stands, and lacks what it lacks.
    pub fn serves_a_difference(&self) -> bool {
        self.state == "serving" && self.differences.unwrap_or(0) > 0
    }

    /// It serves, was compared to its end, and holds exactly the table's rows. Only
    /// where nobody writes: beside a writer the two numbers of rows mean nothing.
    pub fn is_equal(&self) -> bool {
        self.state == "serving"
            && self.problem.is_none()
            && self.differences == Some(0)
            && self.undetermined == Some(0)
            && self.replica_rows == Some(self.heap_rows)
    }
}

/// A key that differs on one replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    pub partition: i64,
    pub node: i64,
    pub key: String,
    pub kind: String,
}

impl Difference {
    pub fn all(client: &mut Client, index: &str) -> Result<BTreeSet<Self>, Error> {
        let sql = "SELECT partition, node, key, kind FROM ruvector_verify_differences($1::text::regclass)";
        let rows = client.query(sql, &[&index])?;
        let of_row = |row: &postgres::Row| {
            Ok(Self {
                partition: row.try_get(0)?,
                node: row.try_get(1)?,
                key: row.try_get(2)?,
                kind: row.try_get(3)?,
            })
        };
        rows.iter().map(of_row).collect()
    }
}
