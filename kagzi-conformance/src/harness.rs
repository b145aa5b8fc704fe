//! The entry of a test target: every case a test of its own name.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::{Builder, Runtime};

use crate::case::Case;
use crate::cases::all_cases;
use crate::fixture::Fixture;
use crate::report::{CaseReport, Outcome, Report};
use crate::runner::run_case;

/// Names the file to which each run appends its numbers as one line of JSON.
pub const REPORT_VARIABLE: &str = "KAGZI_CONFORMANCE_REPORT";

type Ended = Arc<Mutex<Vec<CaseReport>>>;

/// Runs the suite as a test target with `harness = false`; the whole of its `main`.
///
/// It understands what test binaries do: a filter, `--exact`, `--skip`, `--list`, `--test-threads`.
/// Cases that do not apply to the backend are shown as ignored, with the reason. The numbers of each
/// group stand at the end, and as one line of JSON in the file that `KAGZI_CONFORMANCE_REPORT` names.
#[must_use]
pub fn test_main(fixture: impl Fixture) -> ExitCode {
    let args = Arguments::from_args();
    match Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => play(&args, Arc::new(fixture), &Arc::new(runtime)),
        Err(error) => complain(&format!("no tokio runtime: {error}")),
    }
}

fn play(args: &Arguments, fixture: Arc<dyn Fixture>, runtime: &Arc<Runtime>) -> ExitCode {
    let ended = Ended::default();
    let capabilities = fixture.capabilities();
    let mut trials = Vec::new();
    for case in all_cases() {
        let reason = case.not_applicable(&capabilities);
        let trial = trial(&case, Arc::clone(&fixture), Arc::clone(runtime), Arc::clone(&ended))
            .with_ignored_flag(reason.is_some())
            .with_kind(reason.clone().unwrap_or_default());
        if args.is_filtered_out(&trial) {
            continue;
        }
        if let Some(reason) = reason.filter(|_| args.is_ignored(&trial)) {
            keep(&ended, CaseReport::new(&case, Outcome::NotApplicable(reason)));
        }
        trials.push(trial);
    }
    let conclusion = libtest_mimic::run(args, trials);
    if !args.list {
        let cases = std::mem::take(&mut *ended.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = publish(&Report { store: fixture.name(), cases }) {
            return complain(&format!("the report could not be written: {error}"));
        }
    }
    // The last handle: whatever the fixture runs (a database server) ends with it, inside the runtime.
    let _guard = runtime.enter();
    drop(fixture);
    conclusion.exit_code()
}

fn trial(case: &Case, fixture: Arc<dyn Fixture>, runtime: Arc<Runtime>, ended: Ended) -> Trial {
    let case = case.clone();
    Trial::ignorable_test(case.full_name(), move || {
        let outcome = runtime.block_on(run_case(&fixture, &case));
        keep(&ended, CaseReport::new(&case, outcome.clone()));
        match outcome {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::NotApplicable(reason) => Ok(Completion::ignored_with(reason)),
            Outcome::Failed(told) => Err(Failed::from(told)),
        }
    })
}

fn keep(ended: &Ended, report: CaseReport) {
    // A list of whole reports cannot be left half changed by a panic elsewhere.
    ended.lock().unwrap_or_else(PoisonError::into_inner).push(report);
}

pub(crate) fn publish(report: &Report) -> io::Result<()> {
    writeln!(io::stdout(), "{report}")?;
    match std::env::var_os(REPORT_VARIABLE) {
        Some(path) => append(Path::new(&path), &report.to_json_line()?),
        None => Ok(()),
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    // One write, so that the lines of test targets that run at one time do not mix.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
}

pub(crate) fn complain(message: &str) -> ExitCode {
    // If even standard error is gone, the exit code still tells.
    writeln!(io::stderr(), "{message}").map_or(ExitCode::from(2), |()| ExitCode::from(2))
}
