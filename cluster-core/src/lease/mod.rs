//! Leases: who may answer, and until when.
//!
//! Times are milliseconds of the machine that counts them, handed in; no second
//! machine's clock takes part. A [`holder`] counts from the moment it *sent* the
//! renewal, the [`grantor`] from the moment it received it and adds the drift:
//! whatever the network did, the holder stops first. Locks with leases alone
//! do not exclude, for a process may sleep between looking and acting: the
//! resource keeps a [`fence`] as well.

mod fence;
mod grantor;
mod holder;
mod terms;

pub use fence::{Offer, TokenFence};
pub use grantor::{Grantor, Handovers, ReignMs, Unconfirmed, grantable};
pub use holder::{Admission, BootMs, Granted, HeldLease, Standing};
pub use terms::LeaseTerms;
