//! 64-bit transaction ids. Decoded WAL carries the low 32 bits only.

/// A full transaction id: epoch in the high half. 0 is invalid.
pub type FullXid = u64;

/// Widens a 32-bit xid by a full one that is less than 2^31 transactions away, on
/// either side: a snapshot's xmax is the next xid itself, a streamed transaction
/// may have begun after the next xid was read. Compare Postgres's
/// FullTransactionIdFromAllowableAt.
pub fn widen(xid: u32, near: FullXid) -> FullXid {
    let distance = xid.wrapping_sub(near as u32).cast_signed();
    near.saturating_add_signed(distance.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_finds_the_epoch_on_both_sides_of_a_wraparound() {
        assert_eq!(widen(700, 1000), 700);
        assert_eq!(widen(5, (1 << 32) + 10), (1 << 32) + 5);
        assert_eq!(
            widen(10, (1 << 32) + 10),
            (1 << 32) + 10,
            "xmax is the next xid"
        );
        assert_eq!(
            widen(12, (1 << 32) + 10),
            (1 << 32) + 12,
            "begun after the read"
        );
        assert_eq!(widen(3, (1 << 32) - 2), (1 << 32) + 3);
        assert_eq!(widen(0xFFFF_FFF0, (1 << 32) + 10), 0xFFFF_FFF0);
        assert_eq!(widen(0xFFFF_FFF0, (3 << 32) + 10), (2 << 32) + 0xFFFF_FFF0);
    }
}
