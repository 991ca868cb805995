//! The wire: generated types, and the one place where they become core types
//! and back ([`convert`]), where error details are read and written ([`error`]).

#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod v1 {
    tonic::include_proto!("ruvector.v1");
}

pub mod convert;
pub mod error;
pub mod map;
mod moves;
pub mod verify;

/// The most bytes of one gRPC message (P10).
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
