//! 64-bit transaction ids. Decoded WAL carries the low 32 bits only.

/// A full transaction id: epoch in the high half. 0 is invalid.
pub type FullXid = u64;

/// Widens a 32-bit xid that is at most 2^31 transactions older than
/// `next_full_xid`, which was read from the same server after the transaction
/// had begun. See FullTransactionIdFromXidAndCtx in Postgres's xid8 code.
pub fn widen(xid: u32, next_full_xid: FullXid) -> FullXid {
    let candidate = (next_full_xid & !0xFFFF_FFFF) | u64::from(xid);
    if candidate >= next_full_xid && candidate >= 1 << 32 {
        candidate - (1 << 32)
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_finds_the_epoch_on_both_sides_of_a_wraparound() {
        assert_eq!(widen(700, 1000), 700);
        assert_eq!(widen(5, (1 << 32) + 10), (1 << 32) + 5);
        assert_eq!(widen(0xFFFF_FFF0, (1 << 32) + 10), 0xFFFF_FFF0);
        assert_eq!(widen(0xFFFF_FFF0, (3 << 32) + 10), (2 << 32) + 0xFFFF_FFF0);
    }
}
