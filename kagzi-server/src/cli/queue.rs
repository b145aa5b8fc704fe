//! `kagzi queue`: pause a queue, wait until it has drained, resume it.

use std::time::Duration;

use clap::{Args, Subcommand};
use kagzi_core::{QueueName, QueueOutcome, RunFilter, RunState};
use serde::Serialize;
use tokio::time::Instant;

use super::args;
use super::connection::Connection;
use super::error::{CliError, Exit};
use super::host::stop_signal;
use super::output::Output;

/// How often a wait looks at the queue.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How many looks in a row must find no held run.
const EMPTY_LOOKS: u32 = 2;

/// How often it says how many runs are left, if that is another number than before.
const REMARK_EVERY: Duration = Duration::from_secs(5);

/// How many of the runs that are left are named when a wait ends before they do.
const NAMED: u32 = 10;

/// `kagzi queue`.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Have workers take nothing more from a queue.
    ///
    /// Runs that workers hold go on, so the queue drains; runs that are started or come due meanwhile wait.
    /// A queue that is paused already stays so, with the new reason.
    Pause(PauseArgs),
    /// Have workers take from a queue again.
    Resume(ResumeArgs),
}

/// `kagzi queue pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The queue. It need not hold a run.
    queue: QueueName,
    /// Why, for those who look later; at most 512 bytes.
    #[arg(long, default_value = "")]
    reason: String,
    /// Wait until no worker holds a run of the queue any more.
    #[arg(long)]
    wait: bool,
    /// Wait at most this long, such as 30s or 5m; then the exit code is 5, and the queue stays paused [default: for ever].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, requires = "wait", allow_hyphen_values = true)]
    timeout: Option<Duration>,
}

/// `kagzi queue resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The queue.
    queue: QueueName,
}

#[derive(Serialize)]
struct ChangeView {
    queue: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<u64>,
}

/// Pauses or resumes a queue.
pub async fn change(
    command: QueueCommand,
    connection: &Connection,
    output: Output,
) -> Result<Exit, CliError> {
    match command {
        QueueCommand::Pause(args) => pause(args, connection, output).await,
        QueueCommand::Resume(args) => resume(&args, connection, output).await,
    }
}

async fn pause(args: PauseArgs, connection: &Connection, output: Output) -> Result<Exit, CliError> {
    let explain = connection.explain("could not pause the queue");
    let outcome = connection.client().pause_queue(&args.queue, &*args.reason).await.map_err(explain)?;
    let outcome = match outcome {
        QueueOutcome::Changed => "PAUSED",
        QueueOutcome::Unchanged => "ALREADY_PAUSED",
    };
    let queue = args.queue.to_string();
    if !args.wait {
        let view = ChangeView { queue, outcome, running: None };
        output.show(&view, told)?;
        return Ok(Exit::Ok);
    }
    output.note(format_args!("{}; waiting for what its workers hold", one_sentence(&queue, outcome)));
    drained(&args, connection, output).await?;
    let view = ChangeView { queue, outcome, running: Some(0) };
    output.show(&view, |view| format!("{}, and no worker holds a run of it", told(view)))?;
    Ok(Exit::Ok)
}

async fn resume(args: &ResumeArgs, connection: &Connection, output: Output) -> Result<Exit, CliError> {
    let explain = connection.explain("could not resume the queue");
    let outcome = match connection.client().resume_queue(&args.queue).await.map_err(explain)? {
        QueueOutcome::Changed => "RESUMED",
        QueueOutcome::Unchanged => "ALREADY_OPEN",
    };
    let view = ChangeView { queue: args.queue.to_string(), outcome, running: None };
    output.show(&view, told)?;
    Ok(Exit::Ok)
}

fn told(view: &ChangeView) -> String {
    one_sentence(&view.queue, view.outcome)
}

fn one_sentence(queue: &str, outcome: &str) -> String {
    match outcome {
        "PAUSED" => format!("paused {queue}"),
        "ALREADY_PAUSED" => format!("{queue} was paused before"),
        "RESUMED" => format!("resumed {queue}"),
        _ => format!("{queue} was open before"),
    }
}

/// Waits until no run of the queue is held. A run whose lease has expired is held until it is taken back,
/// which the servers' reapers do.
async fn drained(args: &PauseArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let out_of_time = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let (exit, why) = tokio::select! {
        ended = none_held(args, connection, output) => return ended,
        () = out_of_time => (Exit::TimedOut, "--timeout has passed"),
        signal = stop_signal() => (signal.into(), "the wait was broken off"),
    };
    let held = held_now(args, connection).await.unwrap_or_default();
    Err(CliError {
        exit,
        what: format!("queue {} has not drained", args.queue),
        why: if held.is_empty() { why.to_owned() } else { format!("{why}; workers still hold {held}") },
        remedy: Some(format!(
            "it stays paused, and what is held goes on; look with `kagzi list --queue {} --state running`",
            args.queue
        )),
    })
}

async fn none_held(args: &PauseArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let held = held(args);
    let mut said: Option<(u64, Instant)> = None;
    let mut empty_looks = 0;
    loop {
        let explain = connection.explain_read("could not look at the queue");
        // Of this queue alone: how many runs the others hold is nobody's question here.
        let running = connection.client().count(&held).await.map_err(explain)?;
        // A claim that was under way when the queue was paused may still have taken some after a look.
        empty_looks = if running == 0 { empty_looks + 1 } else { 0 };
        if empty_looks == EMPTY_LOOKS {
            return Ok(());
        }
        if running > 0 && said.is_none_or(|(count, at)| count != running && at.elapsed() >= REMARK_EVERY) {
            output.note(format_args!("workers hold {running} of its runs"));
            said = Some((running, Instant::now()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Which runs are held.
fn held(args: &PauseArgs) -> RunFilter {
    RunFilter { states: vec![RunState::Running], queue: Some(args.queue.clone()), ..RunFilter::default() }
}

/// The runs that are still held, the first of them by name; nothing if they cannot be listed.
async fn held_now(args: &PauseArgs, connection: &Connection) -> Option<String> {
    let page = connection.client().list(&held(args), NAMED, None).await.ok()?;
    let named = page.items.iter().map(|run| match &run.worker_id {
        Some(worker) => format!("{} ({worker})", run.run_id),
        None => run.run_id.to_string(),
    });
    let mut named: Vec<String> = named.collect();
    if page.next.is_some() {
        named.push("and more".to_owned());
    }
    Some(named.join(", "))
}
