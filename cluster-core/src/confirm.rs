//! How far the slot may be confirmed (P2).
