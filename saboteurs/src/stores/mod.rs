//! Fixtures of the three stores: as they are, and broken.

pub mod memory;
pub mod postgres;
pub mod sqlite;
