//! What SQL shows: [`status`] of an index, [`wait`] until it is ready, what a
//! statement did, in [`explain`], what mends an index, in [`reconcile`], and how fresh answers are, in [`visibility`].

pub mod explain;
pub mod reconcile;
pub mod records;
pub mod status;
pub mod visibility;
pub mod wait;
