//! What the tests share: a cluster of real processes beside a private Postgres,
//! driven through the same make targets that a user has, and the questions that
//! most tests ask of a table.
//!
//! Every cluster has a run folder of its own and is taken down when its
//! [`Cluster`] is dropped. Tests run one at a time.

mod cluster;
mod items;
mod sql;

pub use cluster::{Cluster, Shape};
pub use items::{Items, clustered_vector, literal};
pub use sql::{Explained, Session};
