//! `kagzi bench`: the project's own load, on a store of the user's.
//!
//! Five-step workflows from start to result, with many under way at once and then one after the other.
//! Over gRPC the server and the workers are processes of their own, as in production; embedded, all is in
//! this one. `cargo xtask bench` runs this very command beside its yardsticks.

mod command;
mod load;
mod part;
mod process;
mod processor;
mod reading;
mod report;
mod scene;
mod workflow;

pub use command::{BenchArgs, bench};
pub use part::{PartArgs, play};
