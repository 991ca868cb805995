//! Which position a search waits for, where that is not simply a commit's end.
//!
//! [`samples`]: how far the log was on disk some time ago, for a bound on the age
//! of what an answer may lack. [`token`]: a commit that another connection made.

pub mod samples;
pub mod token;
