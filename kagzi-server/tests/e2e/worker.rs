//! The worker process: it says what it does, line by line, and holds a step when told to.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the lines are how the case hears of it")]

use std::fs::OpenOptions;
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kagzi_sdk::transport::GrpcOptions;
use kagzi_sdk::{Client, Context, StepError, Worker, WorkflowError};
use kagzi_server::LogFormat;
use kagzi_server::telemetry::{self, Export, Traces};
use tracing::Instrument as _;

/// Set in the environment of a worker: its name.
pub const ROLE: &str = "KAGZI_E2E_WORKER";
/// The server that it connects to.
pub const SERVER: &str = "KAGZI_E2E_SERVER";
/// How long its leases last, in milliseconds.
pub const LEASE: &str = "KAGZI_E2E_LEASE_MS";
/// How many runs it executes at once.
pub const RUNS: &str = "KAGZI_E2E_RUNS";
/// Set: its step `hold` waits for a line on standard input.
pub const HOLDS: &str = "KAGZI_E2E_HOLDS";
/// The file in which each execution of a step of the workflow of five is noted, if any.
pub const EFFECTS: &str = "KAGZI_E2E_EFFECTS";

/// How often a worker asks a quiet link whether it lives: often, so that no case waits for it.
const KEEP_ALIVE: Duration = Duration::from_millis(300);

/// The workflow of five steps that carry a number along.
pub const FIVE: &str = "five-steps";
/// The workflow of a step `before`, a step `hold` that can be held, and a step `after`.
pub const HELD: &str = "held";
/// The workflow of a step `before`, a sleep as long as its input says, and a step `after`.
pub const NAPPING: &str = "napping";

/// The workflow of the same three steps, which log, and of an input that it gives back.
pub const TRACED: &str = "traced";

/// Runs the worker until SIGTERM, then says how many leases it lost.
pub fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("worker: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set"))
}

async fn work() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // As a server does it, so that the lines of both are alike.
    let export = Export::wanted(None)?;
    let traces = match &export {
        Some(_) => telemetry::init_with_traces(LogFormat::Json, "debug", export.as_ref())?,
        None => Traces::default(),
    };
    let mut options = GrpcOptions::default();
    options.keep_alive = KEEP_ALIVE;
    let client = Client::connect_with(variable(SERVER)?, &options).await?;
    let lease = Duration::from_millis(variable(LEASE)?.parse()?);
    let worker = Worker::builder(client)
        .worker_id(format!("{}-{}", variable(ROLE)?, std::process::id()))
        .queue("default")
        .register(FIVE, five_steps)
        .register(HELD, held)
        .register(TRACED, traced)
        .register(NAPPING, napping)
        .max_concurrent_runs(variable(RUNS)?.parse()?)
        .lease(lease)
        .build()?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    println!("clock {}", clock.as_secs());
    println!("ready");
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let stats = worker.stats();
    worker
        .run_until(async move {
            terminated.recv().await;
        })
        .await?;
    traces.end().await;
    println!("leases lost {}", stats.now().leases_lost);
    Ok(())
}

async fn five_steps(ctx: Context, start: u64) -> Result<u64, WorkflowError> {
    let mut number = start;
    for step in ["one", "two", "three", "four", "five"] {
        let run = ctx.run_id();
        number = ctx
            .step(step, || async move {
                note(&format!("{run} {step}"))?;
                Ok(number + 1)
            })
            .await?;
    }
    Ok(number)
}

/// Notes an effect where the case can count it.
fn note(effect: &str) -> Result<(), StepError> {
    let Some(file) = std::env::var_os(EFFECTS) else { return Ok(()) };
    let noted = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(format!("{effect}\n").as_bytes()));
    noted.map_err(|error| StepError::non_retryable("effects", error.to_string()))
}

/// A step, a sleep, and a step: what a clock that is wrong would spoil.
async fn napping(ctx: Context, nap_ms: u64) -> Result<(), WorkflowError> {
    ctx.step("before", || async { Ok(()) }).await?;
    ctx.sleep(Duration::from_millis(nap_ms)).await?;
    ctx.step("after", || async { Ok(()) }).await
}

async fn held(ctx: Context, _input: ()) -> Result<String, WorkflowError> {
    ctx.step("before", || async { Ok(()) }).await?;
    let by = ctx
        .step("hold", || async {
            hold().await?;
            Ok(variable(ROLE).unwrap_or_default())
        })
        .await?;
    ctx.step("after", || async { Ok(()) }).await?;
    Ok(by)
}

async fn hold() -> Result<(), StepError> {
    println!("holding");
    if std::env::var_os(HOLDS).is_some() {
        tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new()))
            .await
            .map_err(|error| StepError::retryable("join", error.to_string()))?
            .map_err(|error| StepError::retryable("stdin", error.to_string()))?;
    }
    Ok(())
}

async fn traced(ctx: Context, input: String) -> Result<String, WorkflowError> {
    let own = || async {
        tracing::info!("in the step");
        Ok(input.clone())
    };
    ctx.step("before", own).await?;
    ctx.step("hold", || async {
        hold().await?;
        Ok(input.clone())
    })
    .await?;
    ctx.step("after", || own().instrument(tracing::info_span!("own"))).await
}
