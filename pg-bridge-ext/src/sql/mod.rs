//! What SQL shows: [`status`] of an index, [`wait`] until it is ready, and what
//! a statement did, in [`explain`].

pub mod explain;
pub mod status;
pub mod wait;
