//! Feeds decoders with what nobody sends: captured messages ([`captured`]), mangled
//! ([`mutate`]), to the [`targets`], which say what must hold of any input; [`run`]
//! does so for a while, and [`allocation`] counts what a decoder asks memory for.
//! [`encode`] is pgoutput backwards, for round trips.
//!
//! Caveat: nothing measures which code an input reaches. Inputs with a new kind of
//! outcome are kept and mangled further, which stands in for it; the formats are small.

pub mod allocation;
pub mod captured;
pub mod encode;
pub mod golden;
pub mod mutate;
pub mod run;
pub mod targets;
