//! What the extension writes into the database for the cluster to read, and the
//! hooks that keep it true.

pub mod collections;
pub mod databases;
pub mod detach;
pub mod hooks;
pub mod prerequisites;
pub mod refollow;
