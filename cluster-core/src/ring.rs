//! The consistent-hash ring that proposes placements.
