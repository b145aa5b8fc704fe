//! What the entries of test targets say to whoever starts them in a way that makes no sense.
//!
//! Each test starts this program again, as the target of a backend's author, under another environment.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::process::{Command, ExitCode, Output};
use std::sync::Arc;

use kagzi_conformance::{
    CRASH_ROUNDS_VARIABLE, CRASH_SEED_VARIABLE, Capability, CrashFixture, CrashPlace, DatabaseProcess,
    FAULT_VARIABLE, Fixture, FixtureError, HISTORY_VARIABLE, Instance, MODEL_VARIABLE, REPORT_VARIABLE,
    SEED_VARIABLE, crash_main, test_main,
};
use kagzi_core::{Clock, Rules, SharedStore};
use libtest_mimic::{Arguments, Trial};

/// Says as which target the program was started.
const TARGET: &str = "KAGZI_USAGE_TEST_TARGET";

/// A backend that is never opened: nothing is to be played.
#[derive(Debug)]
struct Untouched;

#[async_trait::async_trait]
impl Fixture for Untouched {
    fn name(&self) -> String {
        "untouched".to_owned()
    }

    fn capabilities(&self) -> Vec<Capability> {
        vec![Capability::SecondHandle, Capability::Reopen]
    }

    async fn open(&self, _: Arc<dyn Clock>, _: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        Err("OPENED".into())
    }
}

#[async_trait::async_trait]
impl CrashFixture for Untouched {
    fn name(&self) -> String {
        "untouched".to_owned()
    }

    fn database(&self) -> DatabaseProcess {
        DatabaseProcess::Embedded
    }

    async fn place(&self) -> Result<Box<dyn CrashPlace>, FixtureError> {
        Err("OPENED".into())
    }

    async fn open(&self, _: &str, _: Arc<dyn Clock>, _: Rules) -> Result<SharedStore, FixtureError> {
        Err("OPENED".into())
    }
}

fn started_as(target: &str, variable: &str, text: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for known in [
        SEED_VARIABLE,
        MODEL_VARIABLE,
        HISTORY_VARIABLE,
        FAULT_VARIABLE,
        REPORT_VARIABLE,
        CRASH_ROUNDS_VARIABLE,
        CRASH_SEED_VARIABLE,
    ] {
        command.env_remove(known);
    }
    command.env(TARGET, target).env(variable, text).output().unwrap()
}

fn is_told_once_and_nothing_is_played(target: &str, variable: &str, text: &str) {
    let ended = started_as(target, variable, text);
    let (said, told) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(2), "{variable}={text}: {told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.starts_with(&format!("{variable}: expected ")) && told.contains(text), "{told}");
    assert!(said.is_empty(), "{said}");
}

fn a_variable_that_makes_no_sense_is_told_once() {
    for variable in [SEED_VARIABLE, MODEL_VARIABLE, HISTORY_VARIABLE, FAULT_VARIABLE] {
        is_told_once_and_nothing_is_played("suite", variable, "plenty");
    }
    is_told_once_and_nothing_is_played("suite", MODEL_VARIABLE, "0");
    for variable in [CRASH_ROUNDS_VARIABLE, CRASH_SEED_VARIABLE] {
        is_told_once_and_nothing_is_played("crash", variable, "plenty");
    }
    is_told_once_and_nothing_is_played("crash", CRASH_ROUNDS_VARIABLE, "0");
}

fn a_report_that_cannot_be_written_is_told_before_anything_is_played() {
    for target in ["suite", "crash"] {
        is_told_once_and_nothing_is_played(target, REPORT_VARIABLE, "/no/such/directory/report");
    }
}

fn a_variable_that_makes_sense_lets_the_cases_play() {
    for (target, variable) in [("suite", SEED_VARIABLE), ("crash", CRASH_ROUNDS_VARIABLE)] {
        let ended = started_as(target, variable, "7");
        assert_eq!(ended.status.code(), Some(101), "every case fails: {ended:?}");
        assert!(String::from_utf8_lossy(&ended.stdout).contains("OPENED"), "{ended:?}");
    }
}

fn main() -> ExitCode {
    match std::env::var(TARGET).as_deref() {
        Ok("suite") => return test_main(Untouched),
        Ok(_) => return crash_main(Untouched),
        Err(_) => {}
    }
    let tests: [(&str, fn()); 3] = [
        ("a_variable_that_makes_no_sense_is_told_once", a_variable_that_makes_no_sense_is_told_once),
        (
            "a_report_that_cannot_be_written_is_told_before_anything_is_played",
            a_report_that_cannot_be_written_is_told_before_anything_is_played,
        ),
        ("a_variable_that_makes_sense_lets_the_cases_play", a_variable_that_makes_sense_lets_the_cases_play),
    ];
    let trials = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}
