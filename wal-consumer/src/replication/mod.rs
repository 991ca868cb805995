//! Speaks Postgres's replication protocol: the [`connection`], the slot's life
//! ([`slot`]), what arrives on it ([`pgoutput`]), and the status updates that
//! nothing else can block ([`stream`]).

pub mod connection;
pub mod pgoutput;
pub mod slot;
pub mod stream;
pub mod tuple;

#[cfg(test)]
mod pgoutput_tests;
