//! What the tests share: a cluster of real processes beside a private Postgres,
//! driven through the same make targets that a user has, and the questions that
//! most tests ask of a table.
//!
//! Every cluster has a run folder of its own and is taken down when its
//! [`Cluster`] is dropped. Tests run one at a time.

mod cluster;
mod damage;
mod direct_search;
mod heap;
mod held;
pub mod histories;
pub mod history;
mod items;
mod load;
mod map_log;
mod memory;
mod metrics;
mod placed;
mod proxy;
mod relocation;
mod server;
mod settled;
mod slot;
mod sql;
mod standby;
mod verified;
mod wire;

pub use cluster::{Cluster, Shape};
pub use damage::ReplicaDisk;
pub use direct_search::{
    Answer, DirectSearch, assert_replicas_agree, assert_replicas_hold, wait_until_served,
};
pub use held::Held;
pub use items::{Items, clustered_vector, literal};
pub use load::{Done, Load};
pub use map_log::MapLog;
pub use placed::{is_settled, moves_of, serving_per_node};
pub use proxy::Proxy;
pub use relocation::{Relocation, Step};
pub use server::Server;
pub use settled::{assert_whole, wait_until_settled};
pub use sql::{Explained, Session};
pub use standby::Standby;
pub use verified::{Difference, Verified};
pub use wire::{Leader, Wire};
