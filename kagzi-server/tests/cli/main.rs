//! The command line, the real binary against a real server with a real worker.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dead_letters;
mod refusals;
mod runs;
mod support;
mod tokens;
mod waits;
