//! Predicates of the promises that asserts, simulation and fault tests share.
