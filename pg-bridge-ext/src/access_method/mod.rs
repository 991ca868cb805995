//! The access method `ruhnsw`: an index whose only page of its own says which
//! definition the cluster keeps for it.
//!
//! In reading order: what an index is ([`definition`]), the page ([`metapage`]),
//! [`options`], the table of callbacks ([`handler`]), and the callbacks:
//! [`build`], [`insert`], [`vacuum`], [`cost`]; scans are in [`crate::scan`].

pub mod build;
pub mod cost;
pub mod definition;
pub mod handler;
pub mod insert;
pub mod metapage;
pub mod options;
pub mod vacuum;

/// The access method's name, as the SQL script creates it.
pub const NAME: &std::ffi::CStr = c"ruhnsw";
