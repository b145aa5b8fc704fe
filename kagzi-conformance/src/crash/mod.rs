//! Crash rounds: a process that writes through the store is killed in mid-write, again and again.
//!
//! The writer is the test binary itself, started as a child. Eight tasks in it play scripts, each
//! about one run, and print every acknowledgement after it came. After a number of them, chosen by the
//! seed, the child gets SIGKILL. Then the data are opened again and every row is judged: what was
//! acknowledged is there, the operation in flight is there whole or not at all (invariants 9 and 15),
//! and nothing else is. Last, every script goes on from its last acknowledgement, which sends the
//! operation in flight once more: each answer is the one that a store that never crashed gives
//! (invariant 8). All rounds play on the same data. Time stands still, so that rows agree to the last field.
//! A ninth task reaps: an hour before, the round had made runs whose leases, naps and deadlines ran out since
//! ([`lapsed`]).
//!
//! Where the database is a server, rounds of the same kind kill the server instead.
//!
//! The places are empty once, so one more test opens them eight times at that moment ([`openers`]).

mod judge;
mod lapsed;
mod openers;
mod rounds;
mod script;
mod writer;

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{Clock, Rules, SharedStore};

use crate::fixture::FixtureError;

/// Names how many writers are killed; 50 without it. Half as many servers are, but at least three.
pub const CRASH_ROUNDS_VARIABLE: &str = "KAGZI_CRASH_ROUNDS";

/// Names the seed of the first round; by chance without it. A failure tells the one it had.
pub const CRASH_SEED_VARIABLE: &str = "KAGZI_CRASH_SEED";

/// Where the database of a store runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseProcess {
    /// In the process that opened the store.
    Embedded,
    /// In a process of its own, which [`CrashPlace::kill_database`] kills.
    Server,
}

/// How crash rounds get at a durable backend. See `tests/crash.rs` of the backends for complete ones.
#[async_trait]
pub trait CrashFixture: fmt::Debug + Send + Sync + 'static {
    /// What the reports call the backend.
    fn name(&self) -> String;

    /// Where its database runs.
    fn database(&self) -> DatabaseProcess;

    /// Makes an empty place for data. Nobody else may use it.
    ///
    /// # Errors
    ///
    /// Whatever stands in the way.
    async fn place(&self) -> Result<Box<dyn CrashPlace>, FixtureError>;

    /// Opens the store on the data at `address`, as [`CrashPlace::address`] gave it, in this process
    /// or in a child.
    ///
    /// # Errors
    ///
    /// Whatever stands in the way.
    async fn open(
        &self,
        address: &str,
        clock: Arc<dyn Clock>,
        rules: Rules,
    ) -> Result<SharedStore, FixtureError>;
}

/// A place for data, which is removed when it is dropped.
#[async_trait]
pub trait CrashPlace: fmt::Debug + Send + Sync {
    /// What [`CrashFixture::open`] needs to find it: a path, a URL.
    fn address(&self) -> String;

    /// Kills every process of the database with SIGKILL and starts it again on the same data. Needs
    /// [`DatabaseProcess::Server`].
    ///
    /// # Errors
    ///
    /// Whatever stands in the way.
    async fn kill_database(&mut self) -> Result<(), FixtureError> {
        Err("the database has no process of its own".into())
    }
}

/// Runs the crash rounds as a test target with `harness = false`; the whole of its `main`.
///
/// Each kind of round is a test. `KAGZI_CRASH_ROUNDS` and `KAGZI_CRASH_SEED` change what is played; one
/// that makes no sense is told before anything is, with exit code 2.
#[must_use]
pub fn crash_main(fixture: impl CrashFixture) -> ExitCode {
    let fixture: Arc<dyn CrashFixture> = Arc::new(fixture);
    match writer::asked_for() {
        Some(task) => writer::write(&fixture, &task),
        None => rounds::play(&fixture),
    }
}
