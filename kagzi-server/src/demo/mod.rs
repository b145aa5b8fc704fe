//! `kagzi demo`: a durable backup of real files, with a crash on purpose and a proof at the end.
//!
//! The demo is an application like any other: it starts a server, starts one run for each file through
//! its gRPC API, and lets a worker in another process do the work. It kills that worker with SIGKILL in
//! the middle of a step, starts another, and reads from the attempts table what became of it.

mod archive;
mod audit;
mod batch;
mod blocking;
mod child;
mod failure;
mod hold;
mod manifest;
mod narrator;
mod path;
mod patience;
mod performance;
mod removal;
mod stage;
mod stream;
mod summary;
mod walk;
mod worker;
mod workflow;
mod workspace;

pub use performance::{DemoArgs, demo};
pub use worker::{WorkerArgs, work};
