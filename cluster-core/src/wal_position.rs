//! Where something stands in a source's history.

use crate::ids::Incarnation;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log, printed as Postgres prints it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position (want the form 16/B374D848): {0:?}")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Lsn((u64::from(high) << 32) | u64::from(low)))
    }
}

/// A position in a source's history, compared field by field.
///
/// `commit_end` is where the commit record *ends*, for that is what a waiting
/// backend knows. A change's own LSN is no order: transactions interleave.
/// `ordinal` counts the surviving row and TRUNCATE changes of the transaction
/// from 1; [`WalPosition::END`] stands behind all of them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct WalPosition {
    pub incarnation: Incarnation,
    pub commit_end: Lsn,
    pub ordinal: u32,
}

impl WalPosition {
    /// The ordinal behind every change of a transaction.
    pub const END: u32 = u32::MAX;
    /// Before everything.
    pub const ZERO: WalPosition = WalPosition {
        incarnation: Incarnation(0),
        commit_end: Lsn(0),
        ordinal: 0,
    };

    pub fn new(incarnation: Incarnation, commit_end: Lsn, ordinal: u32) -> Self {
        Self {
            incarnation,
            commit_end,
            ordinal,
        }
    }

    /// The position behind the whole transaction whose commit ends at `lsn`.
    pub fn end_of(incarnation: Incarnation, lsn: Lsn) -> Self {
        Self::new(incarnation, lsn, Self::END)
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation.0, self.commit_end)?;
        match self.ordinal {
            Self::END => write!(f, "+end"),
            n => write!(f, "+{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_prints_and_parses_as_postgres_does() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(lsn));
        assert!("16B374D848".parse::<Lsn>().is_err());
        assert!("G/0".parse::<Lsn>().is_err());
    }

    #[test]
    fn positions_order_by_incarnation_then_commit_end_then_ordinal() {
        let at = |i, l, o| WalPosition::new(Incarnation(i), Lsn(l), o);
        assert!(at(1, 900, 5) < at(2, 10, 1));
        assert!(at(1, 10, 5) < at(1, 11, 1));
        assert!(at(1, 10, 5) < WalPosition::end_of(Incarnation(1), Lsn(10)));
    }
}
