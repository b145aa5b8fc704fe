//! The rounds: start a writer, kill it or its database in mid-write, open the data again, judge.

use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, ChildStdout, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use kagzi_core::{ManualClock, Namespace, Run, SharedStore};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use super::judge::{Acknowledged, all_runs, judge, judge_lapsed, same_runs};
use super::lapsed::{self, Lapsed};
use super::script::{Script, rules};
use super::writer::{self, Task};
use super::{CRASH_ROUNDS_VARIABLE, CRASH_SEED_VARIABLE, CrashFixture, CrashPlace, DatabaseProcess, openers};
use crate::fixture::FixtureError;
use crate::harness::{ReportFile, complain};
use crate::report::{CaseReport, Outcome, Report};
use crate::settings::{self, SettingsError};
use crate::violation::Violation;

/// After how many acknowledgements a writer is killed at most.
const MOST: usize = 60;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Writer,
    Database,
}

/// One test of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Openers,
    Rounds(Victim),
}

impl Test {
    const fn case(self) -> &'static str {
        match self {
            Self::Openers => openers::CASE,
            Self::Rounds(victim) => victim.case(),
        }
    }

    const fn invariants(self) -> &'static [u8] {
        match self {
            Self::Openers => &[9, 15],
            Self::Rounds(_) => &[8, 9, 15],
        }
    }

    fn play(self, fixture: &Arc<dyn CrashFixture>, asked: Asked) -> Result<(), String> {
        match self {
            Self::Openers => openers::play(fixture),
            Self::Rounds(victim) => all_rounds(&**fixture, victim, asked),
        }
    }
}

impl Victim {
    const fn case(self) -> &'static str {
        match self {
            Self::Writer => "a_killed_writer_loses_nothing_acknowledged_and_leaves_nothing_half",
            Self::Database => "a_killed_database_loses_nothing_acknowledged_and_leaves_nothing_half",
        }
    }
}

/// The `main` of the test target, unless it is a child.
pub(super) fn play(fixture: &Arc<dyn CrashFixture>) -> ExitCode {
    let args = Arguments::from_args();
    let asked = Asked::from_environment().map_err(|error| error.to_string());
    let (asked, file) = match asked.and_then(|asked| Ok((asked, ReportFile::open(&args)?))) {
        Ok(ready) => ready,
        Err(told) => return complain(&told),
    };
    let victims: &[Victim] = match fixture.database() {
        DatabaseProcess::Embedded => &[Victim::Writer],
        DatabaseProcess::Server => &[Victim::Writer, Victim::Database],
    };
    let tests = victims.iter().map(|victim| Test::Rounds(*victim)).chain([Test::Openers]);
    let ended = Arc::new(Mutex::new(Vec::new()));
    let trials = tests.map(|test| {
        let (fixture, ended) = (Arc::clone(fixture), Arc::clone(&ended));
        Trial::test(format!("crash::{}", test.case()), move || {
            let told = test.play(&fixture, asked).err();
            let outcome = told.clone().map_or(Outcome::Passed, Outcome::Failed);
            let report = CaseReport {
                group: "crash".to_owned(),
                name: test.case().to_owned(),
                invariants: test.invariants().to_vec(),
                outcome,
                note: None,
            };
            ended.lock().unwrap_or_else(PoisonError::into_inner).push(report);
            told.map_or(Ok(()), |told| Err(Failed::from(told)))
        })
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    let cases = std::mem::take(&mut *ended.lock().unwrap_or_else(PoisonError::into_inner));
    if !args.list
        && !cases.is_empty()
        && let Err(error) = file.publish(&Report { store: format!("{}, crashes", fixture.name()), cases })
    {
        return complain(&format!("the report could not be written: {error}"));
    }
    conclusion.exit_code()
}

/// How much is played, and with which dice.
#[derive(Clone, Copy, Debug)]
struct Asked {
    rounds: u64,
    first_seed: u64,
}

impl Asked {
    fn from_environment() -> Result<Self, SettingsError> {
        let (rounds, seed) = (std::env::var_os(CRASH_ROUNDS_VARIABLE), std::env::var_os(CRASH_SEED_VARIABLE));
        let first_seed = match seed {
            None => fastrand::u64(..1_000_000_000),
            Some(seed) => settings::number(CRASH_SEED_VARIABLE, "a whole number from 0 to 2^64 - 1", &seed)?,
        };
        Ok(Self { rounds: settings::at_least_one(CRASH_ROUNDS_VARIABLE, 50, rounds)?, first_seed })
    }
}

/// A round that was judged, to be looked at once more when all are over.
struct Judged {
    namespace: Namespace,
    runs: Vec<Run>,
}

fn all_rounds(fixture: &dyn CrashFixture, victim: Victim, asked: Asked) -> Result<(), String> {
    let Asked { rounds, first_seed } = asked;
    let rounds = if victim == Victim::Writer { rounds } else { (rounds / 2).max(3) };
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    let mut place = runtime.block_on(fixture.place()).map_err(|error| format!("no place: {error}"))?;
    let mut judged = Vec::new();
    for round in 0..rounds {
        let task = Task {
            address: place.address(),
            round: format!("round-{round}"),
            seed: first_seed.wrapping_add(round),
        };
        let told = |why: String| {
            format!(
                "{why}\nround     {round} of {rounds}, of a killed {victim:?}\nseed      {}: {CRASH_SEED_VARIABLE}={} plays the same scripts again",
                task.seed, task.seed
            )
        };
        judged.extend(one_round(&runtime, fixture, &mut place, &task, victim).map_err(told)?);
    }
    // Later crashes took nothing from earlier rounds.
    runtime.block_on(async {
        let store = open(fixture, &place.address()).await.map_err(|error| error.to_string())?;
        for Judged { namespace, runs } in &judged {
            let told = |violation: Violation| format!("{violation}\nnamespace {namespace}");
            let now = all_runs(&*store, namespace).await.map_err(told)?;
            same_runs("a later crash takes nothing from an earlier round [9]", runs, &now).map_err(told)?;
        }
        store.close().await.map_err(|error| error.to_string())
    })
}

/// Opens the data at `address` as crash rounds do.
pub(super) async fn open(fixture: &dyn CrashFixture, address: &str) -> Result<SharedStore, FixtureError> {
    fixture.open(address, Arc::new(lapsed::clock()), rules()).await
}

/// Makes runs that will have lapsed when the data are opened next.
async fn make_lapsed(fixture: &dyn CrashFixture, task: &Task) -> Result<Lapsed, FixtureError> {
    let lapsed = Lapsed::of(&task.round, task.seed)?;
    let store = fixture.open(&task.address, Arc::new(ManualClock::default()), rules()).await?;
    lapsed.make(&*store).await?;
    store.close().await?;
    Ok(lapsed)
}

fn one_round(
    runtime: &Runtime,
    fixture: &dyn CrashFixture,
    place: &mut Box<dyn CrashPlace>,
    task: &Task,
    victim: Victim,
) -> Result<[Judged; 2], String> {
    let enough = fastrand::Rng::with_seed(task.seed).usize(1..=MOST);
    let lapsed = runtime.block_on(make_lapsed(fixture, task));
    let lapsed = lapsed.map_err(|error| format!("before the writer: {error}"))?;
    let mut acknowledged = Acknowledged::default();
    let mut child = Killed::on_drop(task).map_err(|error| format!("the writer does not start: {error}"))?;
    child.listen(&mut acknowledged, enough)?;
    if acknowledged.total() < enough {
        return Err(format!(
            "the writer ended after {} acknowledgements, before {enough}",
            acknowledged.total()
        ));
    }
    if victim == Victim::Database {
        let killed = runtime.block_on(place.kill_database());
        killed.map_err(|error| format!("the database does not come back: {error}"))?;
    }
    child.kill().map_err(|error| format!("the writer does not die: {error}"))?;
    // What was printed before the end, and not read yet, was acknowledged too.
    child.listen(&mut acknowledged, usize::MAX)?;
    runtime.block_on(async {
        let opened = open(fixture, &task.address).await;
        let store = opened.map_err(|error| format!("the data cannot be opened after the crash: {error}"))?;
        let reaped = judge_lapsed(&store, &lapsed, &acknowledged).await?;
        let runs = judge(&store, &task.round, task.seed, &acknowledged).await?;
        store.close().await.map_err(|error| format!("closing: {error}"))?;
        let script = Script::new(&task.round, task.seed, 0).map_err(|error| error.to_string())?;
        let lapsed = Judged { namespace: lapsed.namespace().clone(), runs: reaped };
        Ok([Judged { namespace: script.namespace().clone(), runs }, lapsed])
    })
}

/// The child and what it says. It does not outlive the round.
struct Killed {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Killed {
    fn on_drop(task: &Task) -> io::Result<Self> {
        let mut child = writer::command(task)?.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("a child without output"))?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    /// Reads what the child says until `enough` operations are acknowledged, or it says no more.
    fn listen(&mut self, acknowledged: &mut Acknowledged, enough: usize) -> Result<(), String> {
        let mut line = String::new();
        while acknowledged.total() < enough {
            line.clear();
            let read = self.lines.read_line(&mut line).map_err(|error| error.to_string())?;
            // A line without its end was being printed when the child died.
            if read == 0 || !line.ends_with('\n') {
                break;
            }
            acknowledged.note(&line)?;
        }
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // An error means that it is gone already, which is what is wanted.
        self.kill().ok();
    }
}
