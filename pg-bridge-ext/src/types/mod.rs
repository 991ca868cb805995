//! pgvector's type `vector`: the same layout, text, binary form and errors.
//!
//! In reading order: the value ([`vector`]), how it is read and written
//! ([`io`]), where it comes from ([`casts`]), how far two are apart
//! ([`distance`]), and the rest ([`arithmetic`], [`compare`], [`aggregate`]).

pub mod aggregate;
pub mod arithmetic;
pub mod casts;
pub mod compare;
pub mod distance;
pub mod io;
pub mod vector;
