//! The suite that decides what a kagzi store is.
//!
//! A backend is a kagzi store when this suite says so, and for no other reason. Its author supplies a
//! [`Fixture`] and one line:
//!
//! ```text
//! fn main() -> std::process::ExitCode {
//!     kagzi_conformance::test_main(MyFixture)
//! }
//! ```
//!
//! Each case is one rule of the contract in [`kagzi_core::Store`], named as a sentence and filed in a
//! group; it plays on a fresh store of its own, by a clock that it turns by hand. A failure tells the
//! rule, what was expected, what was seen, and the calls that led there.

mod case;
mod cases;
mod crash;
mod faults;
mod fixture;
mod harness;
mod history;
mod interleavings;
mod invariant;
mod model;
mod proof;
mod record;
mod report;
mod runner;
mod scenario;
mod settings;
mod violation;

pub use case::Case;
pub use cases::all_cases;
pub use crash::{
    CRASH_ROUNDS_VARIABLE, CRASH_SEED_VARIABLE, CrashFixture, CrashPlace, DatabaseProcess, crash_main,
};
pub use fixture::{Capability, Fixture, FixtureError, Instance};
pub use harness::{REPORT_VARIABLE, test_main};
pub use history::checker;
pub use report::{CaseReport, Outcome, Report, Totals};
pub use runner::{Filter, rules_kept, run};
pub use scenario::suite_rules;
pub use settings::{
    FAULT_VARIABLE, HISTORY_VARIABLE, MODEL_VARIABLE, SEED_VARIABLE, Settings, SettingsError,
};
pub use violation::{Proves, Verdict, Violation};

/// The guide for authors of backends; its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/write-your-own-backend.md")]
struct WriteYourOwnBackend;
