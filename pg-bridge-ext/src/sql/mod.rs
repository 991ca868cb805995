//! What SQL shows: [`status`] of an index, [`wait`] until it is ready, what a
//! statement did, in [`explain`], how fresh answers are, in [`visibility`], whether
//! replicas hold what the heap holds, in [`verify`], and what mends them, in [`reconcile`].

pub mod explain;
pub mod reconcile;
pub mod records;
pub mod status;
pub mod verify;
pub mod visibility;
pub mod wait;
