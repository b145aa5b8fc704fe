//! Programs that people start from: see `examples/`. Each runs by itself, to its end, in seconds:
//!
//! - `cargo run -p kagzi-examples --example hello`: a first workflow, on a database on disk
//! - `cargo run -p kagzi-examples --example order`: retries, a failure as data, compensation
//! - `cargo run -p kagzi-examples --example parallel`: steps side by side, as many as the input asks for
//! - `cargo run -p kagzi-examples --example reminder`: durable sleeps in a loop, and cancellation
