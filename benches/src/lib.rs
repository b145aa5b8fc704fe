//! The loads that benches and `cargo xtask bench` put on a store, the same over every backend.

pub mod backends;
pub mod benched;
pub mod suite;
pub mod workload;
