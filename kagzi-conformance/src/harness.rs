//! The entry of a test target: every case a test of its own name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::{Builder, Runtime};

use crate::case::Case;
use crate::cases::all_cases;
use crate::fixture::Fixture;
use crate::report::{CaseReport, Outcome, Report};
use crate::runner::run_case;
use crate::settings::Settings;

/// Names the file to which each run appends its numbers as one line of JSON.
pub const REPORT_VARIABLE: &str = "KAGZI_CONFORMANCE_REPORT";

type Ended = Arc<Mutex<Vec<CaseReport>>>;

/// Runs the suite as a test target with `harness = false`; the whole of its `main`.
///
/// It understands what test binaries do: a filter, `--exact`, `--skip`, `--list`, `--test-threads`.
/// Cases that do not apply to the backend are shown as ignored, with the reason. The numbers of each
/// group stand at the end, and as one line of JSON in the file that `KAGZI_CONFORMANCE_REPORT` names.
///
/// A variable that makes no sense is told on the standard error before any case is played, with exit
/// code 2.
#[must_use]
pub fn test_main(fixture: impl Fixture) -> ExitCode {
    let args = Arguments::from_args();
    let asked = Settings::from_environment().map_err(|error| error.to_string());
    let (settings, file) = match asked.and_then(|settings| Ok((settings, ReportFile::open(&args)?))) {
        Ok(ready) => ready,
        Err(told) => return complain(&told),
    };
    match Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => play(&args, settings, file, Arc::new(fixture), &Arc::new(runtime)),
        Err(error) => complain(&format!("no tokio runtime: {error}")),
    }
}

fn play(
    args: &Arguments,
    settings: Settings,
    file: ReportFile,
    fixture: Arc<dyn Fixture>,
    runtime: &Arc<Runtime>,
) -> ExitCode {
    let ended = Ended::default();
    let (capabilities, absent) = (fixture.capabilities(), fixture.not_applicable());
    let mut trials = Vec::new();
    for case in all_cases() {
        let reason = absent.clone().or_else(|| case.not_applicable(&capabilities));
        let trial = trial(&case, settings, Arc::clone(&fixture), Arc::clone(runtime), Arc::clone(&ended))
            .with_ignored_flag(reason.is_some())
            .with_kind(reason.clone().unwrap_or_default());
        if args.is_filtered_out(&trial) {
            continue;
        }
        if let Some(reason) = reason.filter(|_| args.is_ignored(&trial)) {
            keep(&ended, CaseReport::new(&case, Outcome::NotApplicable(reason), None));
        }
        trials.push(trial);
    }
    let conclusion = libtest_mimic::run(args, trials);
    if !args.list {
        let cases = std::mem::take(&mut *ended.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = file.publish(&Report { store: fixture.name(), cases }) {
            return complain(&format!("the report could not be written: {error}"));
        }
    }
    // The last handle: whatever the fixture runs (a database server) ends with it, inside the runtime.
    let _guard = runtime.enter();
    drop(fixture);
    conclusion.exit_code()
}

fn trial(
    case: &Case,
    settings: Settings,
    fixture: Arc<dyn Fixture>,
    runtime: Arc<Runtime>,
    ended: Ended,
) -> Trial {
    let case = case.clone();
    Trial::ignorable_test(case.full_name(), move || {
        let report = runtime.block_on(run_case(&fixture, &case, settings));
        keep(&ended, report.clone());
        match report.outcome {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::NotApplicable(reason) => Ok(Completion::ignored_with(reason)),
            Outcome::Failed(told) | Outcome::Hung(told) | Outcome::Unplayed(told) => Err(Failed::from(told)),
        }
    })
}

fn keep(ended: &Ended, report: CaseReport) {
    // A list of whole reports cannot be left half changed by a panic elsewhere.
    ended.lock().unwrap_or_else(PoisonError::into_inner).push(report);
}

/// Where the numbers go, beside the standard output. Opened before anything is played, so that a file
/// that cannot be written is not told of at the very end.
#[derive(Debug)]
pub(crate) struct ReportFile(Option<File>);

impl ReportFile {
    /// The file that [`REPORT_VARIABLE`] names, if it names one and anything is to be played.
    pub(crate) fn open(args: &Arguments) -> Result<Self, String> {
        let Some(path) = std::env::var_os(REPORT_VARIABLE).filter(|_| !args.list) else {
            return Ok(Self(None));
        };
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        opened.map(|file| Self(Some(file))).map_err(|error| {
            format!("{REPORT_VARIABLE}: expected a file that can be written, got {}: {error}", path.display())
        })
    }

    /// Shows the numbers, and appends them to the file.
    pub(crate) fn publish(self, report: &Report) -> io::Result<()> {
        writeln!(io::stdout(), "{report}")?;
        match self.0 {
            // One write, so that the lines of test targets that run at one time do not mix.
            Some(mut file) => file.write_all(format!("{}\n", report.to_json_line()?).as_bytes()),
            None => Ok(()),
        }
    }
}

pub(crate) fn complain(message: &str) -> ExitCode {
    // If even standard error is gone, the exit code still tells.
    writeln!(io::stderr(), "{message}").map_or(ExitCode::from(2), |()| ExitCode::from(2))
}
