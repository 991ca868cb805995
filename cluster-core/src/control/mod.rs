//! The replicated state machine of the coordinators.
