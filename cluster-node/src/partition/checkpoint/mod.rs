//! Checkpoints of a partition's index, so that a restart reads it instead of building it
//! anew from the rows.
//!
//! The rows are the truth. A checkpoint is of the moment between two commits at which it
//! *began*; from then on every commit notes which rows it changes, under the checkpoint's
//! number, in the same atomic write. When the file is durable the writer names it in the
//! database, and forgets what was noted before it began. So at any moment the file that
//! is named, and the rows that were noted since it began, make the index of the rows.
//!
//! A file that is not named, of another replica or beyond the durable rows, is not used. A
//! corrupt one is put aside, and the index is built from the rows; the node stays up. A
//! TRUNCATE and a replica that begins anew leave no checkpoint.
//!
//! - [`files`]: where they are, and what becomes of old and corrupt ones.
//! - [`file`]: one file, written and read.
//! - [`take`]: when one is due, and how the writer takes it.
//! - [`restore`]: the index that a restart begins with.

pub(super) mod file;
pub mod files;
pub(super) mod restore;
pub(super) mod take;
