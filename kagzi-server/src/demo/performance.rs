//! What a demo does, from the first file to the proof.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use kagzi_core::{Run, RunId, RunState};
use kagzi_sdk::ClientError;

use super::archive::Archive;
use super::batch::{Batch, Files};
use super::blocking::off_the_runtime;
use super::child::{WorkerEvent, WorkerProcess};
use super::hold::{Hold, HoldPoint};
use super::manifest::Entry;
use super::narrator::Narrator;
use super::patience::{Mood, Patience};
use super::stage::Stage;
use super::summary::{DeadLetter, Report, counted};
use super::walk::{self, Found};
use super::workspace::Keep;
use crate::cli::{CliError, Exit, Output, duration, stop_signal};

/// How often the bar is brought up to date.
const LOOK: Duration = Duration::from_millis(100);

/// How often to look whether a held run's step is shown as running.
const LOOKS_AT_A_HELD_RUN: u32 = 30;

/// How many workers may end by themselves before the demo gives up.
const MAX_UNASKED_ENDS: u32 = 3;

/// `kagzi demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The directory to back up; nothing is written into it unless --output says so.
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Leave the database and the archive for a look, and say where they are.
    #[arg(long)]
    keep: bool,
    /// Write here, into a directory that is empty or does not exist yet [default: a fresh temporary one].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Use this store instead of a SQLite file in the output directory, such as `postgres://user@host/database`.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Give up if calls keep failing and no file gets through for this long, as on a full disk.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s", allow_hyphen_values = true)]
    give_up_after: Duration,
}

/// Runs the demo. Ctrl-C ends it at any moment, with its workers.
///
/// # Errors
///
/// [`CliError`] if anything but the files themselves stood in the way.
pub async fn demo(args: DemoArgs, output: Output) -> Result<Exit, CliError> {
    let root = args.directory.canonicalize().map_err(|why| unusable(&args.directory, &why))?;
    let keep = if args.keep { Keep::Everything } else { Keep::Manifest };
    let narrator = Narrator::new(output.audience());
    let mut stop = std::pin::pin!(stop_signal());
    let stage = tokio::select! {
        stage = Stage::set_up(args.output.as_deref(), args.store, keep) => stage?,
        signal = &mut stop => return Ok(signal.into()),
    };
    let mut performance = Performance {
        root,
        stage,
        narrator,
        patience: Patience::new(args.give_up_after),
        workers: 0,
        killed: 0,
    };
    let ended = tokio::select! {
        report = performance.perform() => report.map(Outcome::Through),
        signal = &mut stop => Ok(Outcome::Stopped(signal.into())),
    };
    performance.close(ended, output).await
}

fn unusable(directory: &Path, why: &std::io::Error) -> CliError {
    CliError::usage("could not back up the directory", format!("{}: {why}", directory.display()))
        .remedy("name a directory that can be listed: kagzi demo DIR")
}

/// A call to the demo's own server failed for good: it is in this process, so what fails is its store.
fn lost(why: ClientError) -> CliError {
    let unavailable = matches!(&why, ClientError::Call(error) if error.is_retryable());
    let exit = if unavailable { Exit::Unavailable } else { Exit::Failed };
    CliError { exit, ..CliError::failed("the demo's server or its store does not work any more", why) }
}

/// How a demo came to its end.
enum Outcome {
    /// Every run has ended.
    Through(Report),
    /// Somebody stopped it.
    Stopped(Exit),
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Some runs have not ended.
    UnderWay,
    /// All have.
    Through,
}

/// A demo under way.
struct Performance {
    root: PathBuf,
    stage: Stage,
    narrator: Narrator,
    patience: Patience,
    /// Workers started.
    workers: u32,
    /// Workers killed.
    killed: u32,
}

impl Performance {
    async fn perform(&mut self) -> Result<Report, CliError> {
        let root = self.root.clone();
        let found =
            off_the_runtime(move || walk::walk(&root)).await.map_err(|why| unusable(&self.root, &why))?;
        let files = found.files.len() as u64;
        self.narrator.say(format_args!(
            "{} in {}, each a run of five steps: digest, compress, write, verify, record\nserver on {}",
            counted(files, "file"),
            self.root.display(),
            self.stage.server()
        ));
        let batch = self.stage.batch();
        let mut started = Files::new();
        let begun = Instant::now();
        if files > 0 {
            self.narrator.begin(files);
            self.narrator.status("starting the runs");
            started = batch.start(&found.files).await.map_err(lost)?;
            self.work_through(&batch, &found).await?;
        }
        let elapsed = begun.elapsed();
        if files > 0 {
            self.narrator.status("");
            self.narrator.say("every run has ended; reading their histories from the attempts table");
        }
        self.report(&batch, found, &started, elapsed).await
    }

    /// Lets workers work until every run is finished, and kills the first of them on the way.
    async fn work_through(&mut self, batch: &Batch, found: &Found) -> Result<(), CliError> {
        let files = found.files.len() as u64;
        let mut unasked_ends = 0;
        let mut worker = self.start_worker(files, Some(where_to_hold(found)))?;
        let mut look = tokio::time::interval(LOOK);
        loop {
            let event = tokio::select! {
                event = worker.event() => event,
                _ = look.tick() => {
                    if self.look(batch, files).await? == Look::Through {
                        return Ok(());
                    }
                    continue;
                }
            };
            match event.map_err(|why| CliError::failed("lost sight of a worker", why))? {
                WorkerEvent::Trouble(what) => {
                    self.trouble(what);
                    continue;
                }
                WorkerEvent::Held(run_id) => self.kill(worker, run_id, batch, files).await?,
                WorkerEvent::Ended { status, last_words } => {
                    unasked_ends += 1;
                    let ending = format!("worker {} ended by itself: {status}\n{last_words}", self.workers);
                    if unasked_ends > MAX_UNASKED_ENDS {
                        return Err(CliError::failed(
                            "the workers of the demo keep ending",
                            ending.trim_end(),
                        ));
                    }
                    self.narrator.say(ending.trim_end());
                }
            }
            worker = self.start_worker(files, None)?;
        }
    }

    /// Sees how far the files are, and whether it is still worth waiting.
    async fn look(&mut self, batch: &Batch, files: u64) -> Result<Look, CliError> {
        match batch.at_once().live().await {
            Ok(live) => {
                let through = files.saturating_sub(live);
                self.narrator.progress(through);
                if self.patience.progress(through) == Mood::Relieved {
                    self.narrator.status("");
                }
                if live == 0 {
                    return Ok(Look::Through);
                }
            }
            // The server lets nobody pass while its store is away.
            Err(ClientError::Call(error)) if error.is_retryable() => self.trouble(error.to_string()),
            Err(why) => return Err(lost(why)),
        }
        let through = self.patience.through();
        match self.patience.exhausted(Instant::now()) {
            None => Ok(Look::UnderWay),
            Some(trouble) => Err(CliError {
                exit: Exit::Unavailable,
                ..CliError::failed(
                    format!(
                        "the demo gave up: calls keep failing, and no file gets through ({through} of {files} are)"
                    ),
                    trouble,
                )
            }),
        }
    }

    /// Shows what failed and is tried again.
    fn trouble(&mut self, what: String) {
        self.narrator.status(format!("failing, tried again: {what}"));
        if let Some(what) = self.patience.trouble(what, Instant::now()) {
            self.narrator.say(format_args!("a call fails and is tried again: {what}"));
        }
    }

    fn start_worker(&mut self, files: u64, hold: Option<Hold>) -> Result<WorkerProcess, CliError> {
        self.workers += 1;
        let plan = self.stage.worker_plan(&self.root, files, hold);
        let worker =
            WorkerProcess::spawn(&plan).map_err(|why| CliError::failed("could not start a worker", why))?;
        self.narrator.say(format_args!("worker {} started, process {}", self.workers, worker.pid()));
        self.narrator.status(if self.killed > 0 {
            "the dead worker's files come back when its leases end"
        } else {
            ""
        });
        Ok(worker)
    }

    /// Kills the worker that waits inside a step of `run_id`, once the attempts table shows that step
    /// as running: what the table says then is what the crash leaves behind. It shows it at once, unless
    /// the machine is so busy that the lease was lost meanwhile; then the worker is killed all the same.
    async fn kill(
        &mut self,
        worker: WorkerProcess,
        run_id: RunId,
        batch: &Batch,
        files: u64,
    ) -> Result<(), CliError> {
        let mut step = None;
        for _ in 0..LOOKS_AT_A_HELD_RUN {
            step = batch.running_step(run_id).await.map_err(lost)?;
            if step.is_some() {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let through = files.saturating_sub(batch.live().await.map_err(lost)?);
        let (number, pid) = (self.workers, worker.pid());
        worker.kill().await.map_err(|why| CliError::failed("could not kill the worker", why))?;
        self.killed += 1;
        self.narrator.progress(through);
        let moment = step.map_or_else(String::new, |step| {
            format!(": step {step:?} of run {run_id} had done its work and told nobody")
        });
        self.narrator.say(format_args!(
            "worker {number} (process {pid}) killed with SIGKILL after {through} of {}{moment}",
            counted(files, "file")
        ));
        Ok(())
    }

    /// Reads from the records what became of it, and writes the manifest.
    async fn report(
        &self,
        batch: &Batch,
        found: Found,
        started: &Files,
        elapsed: Duration,
    ) -> Result<Report, CliError> {
        let runs = batch.runs().await.map_err(lost)?;
        let audit = batch.audit(&runs).await.map_err(lost)?;
        let archive = self.stage.workspace().archive().clone();
        let completed: Vec<RunId> =
            runs.iter().filter(|run| run.state == RunState::Completed).map(|run| run.run_id).collect();
        let entries = off_the_runtime(move || assemble_manifest(&archive, &completed)).await?;
        let given_up = runs.iter().filter(|run| run.state != RunState::Completed);
        let mut dead_letters: Vec<_> = given_up.map(|run| dead_letter(run, started)).collect();
        dead_letters.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Report {
            files: found.files.len() as u64,
            bytes: entries.iter().map(|entry| entry.bytes).sum(),
            compressed_bytes: entries.iter().map(|entry| entry.compressed_bytes).sum(),
            runs_completed: entries.len() as u64,
            dead_letters,
            skipped: found.skipped,
            workers_killed: self.killed,
            audit,
            elapsed,
        })
    }

    /// Takes the stage down, whatever happened on it, and says how it ended.
    async fn close(self, ended: Result<Outcome, CliError>, output: Output) -> Result<Exit, CliError> {
        let Self { root, stage, mut narrator, .. } = self;
        narrator.end();
        let manifest = stage.workspace().archive().manifest();
        let report = match ended {
            Ok(Outcome::Through(report)) => report,
            Ok(Outcome::Stopped(exit)) => {
                stage.abandon().await;
                narrator.say("stopped; nothing is left running");
                return Ok(exit);
            }
            Err(error) => {
                let help = (error.exit == Exit::Unavailable).then(|| stage.how_to_help());
                stage.abandon().await;
                return Err(CliError { remedy: error.remedy.or(help), ..error });
            }
        };
        // Said first: on a busy disk, taking thousands of files away may take longer than the backup.
        output.show(&report.summary(&root, &manifest), |_| report.text(&root, &manifest))?;
        if let Some(look) = stage.finish().await? {
            narrator.say(look);
        }
        match report.verdict() {
            Ok(()) => Ok(Exit::Ok),
            Err(why) => Err(CliError::failed("the backup is not what it should be", why)),
        }
    }
}

/// Writes the manifest of the files whose runs have completed, from the records that these have left.
fn assemble_manifest(archive: &Archive, completed: &[RunId]) -> Result<Vec<Entry>, CliError> {
    let record_of = |run_id: &RunId| {
        archive.read_record(&run_id.to_string()).map_err(|why| {
            CliError::failed(format!("run {run_id} is COMPLETED, and its record cannot be read"), why)
        })
    };
    let mut entries = completed.iter().map(record_of).collect::<Result<Vec<_>, _>>()?;
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    archive.write_manifest(&entries).map_err(|why| CliError::failed("could not write the manifest", why))?;
    Ok(entries)
}

/// Half way: inside the step of the file in the middle, after it has put its result in place. If no
/// file can be read, no run gets that far, and the first step has to do.
fn where_to_hold(found: &Found) -> Hold {
    let middle = |count: usize| u32::try_from(count / 2 + 1).unwrap_or(u32::MAX);
    match found.readable {
        0 => Hold::new(HoldPoint::Digest, middle(found.files.len())),
        readable => Hold::new(HoldPoint::Write, middle(readable)),
    }
}

fn dead_letter(run: &Run, started: &Files) -> DeadLetter {
    let reason = run.dead_letter.map_or(run.state.as_str(), |reason| reason.as_str());
    let (code, message) = match &run.failure {
        Some(failure) => (failure.code.clone(), failure.message.clone()),
        None => (String::new(), format!("run {} has no failure", run.run_id)),
    };
    let path = started.get(&run.run_id).map(ToString::to_string).unwrap_or_default();
    DeadLetter { run_id: run.run_id.to_string(), path, reason: reason.to_owned(), code, message }
}
