//! `kagzi start`.

use std::time::Duration;

use clap::Args;
use kagzi_core::{
    ContentType, IdempotencyKey, QueueName, RetryPolicy, RunRecord, RunState, StartOutcome, Timestamp,
    WorkflowType,
};
use kagzi_sdk::{RunHandle, Start};
use serde::Serialize;

use super::connection::Connection;
use super::error::CliError;
use super::output::Output;
use super::{Exit, args, read};

/// What a run is started with.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Which program to run: the name under which a worker registered it.
    #[arg(value_name = "TYPE")]
    workflow_type: WorkflowType,
    /// What the program is given: JSON as it stands, @FILE, or - for the standard input.
    #[arg(long, default_value = "null", allow_hyphen_values = true)]
    input: String,
    /// What the input is, if it is not JSON [default: application/json if it is, else application/octet-stream].
    #[arg(long, value_name = "TYPE")]
    content_type: Option<ContentType>,
    /// Where the run waits for workers.
    #[arg(long, default_value = "default")]
    queue: QueueName,
    /// Your own name for this start: the same key names the same run, however often it is sent.
    #[arg(long)]
    key: Option<IdempotencyKey>,
    /// How urgent it is, from -9 to 9; one level is worth an hour of waiting.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-9..=9))]
    priority: i64,
    /// Start this much later, such as 30s or 1h30m.
    #[arg(long, value_parser = args::duration, conflicts_with = "at", allow_hyphen_values = true)]
    delay: Option<Duration>,
    /// Start at this moment, in RFC 3339, such as 2026-11-24T10:31:20Z.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// How long the run may take from when it is due; then it fails.
    #[arg(long, value_name = "DURATION", value_parser = args::duration, allow_hyphen_values = true)]
    run_timeout: Option<Duration>,
    /// How often the run, and each step without a policy of its own, is tried [default: the server's].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), allow_hyphen_values = true)]
    max_attempts: Option<u32>,
    /// What the run can be found by; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::label)]
    labels: Vec<(String, String)>,
    /// Wait until the run has finished, and show it; the exit code is 1 if it did not complete.
    #[arg(long)]
    wait: bool,
    /// Wait at most this long.
    #[arg(long, value_name = "DURATION", value_parser = args::duration, requires = "wait", allow_hyphen_values = true)]
    wait_timeout: Option<Duration>,
    /// Show input and output after waiting.
    #[arg(long, requires = "wait")]
    show_payloads: bool,
}

/// For how long a wait bears a server that does not answer.
const PATIENCE_OF_A_WAIT: Duration = Duration::from_mins(2);

#[derive(Serialize)]
struct StartedView {
    run_id: String,
    outcome: &'static str,
}

/// Starts a run, and waits for its end if asked to.
pub async fn start(args: StartArgs, connection: &Connection, output: Output) -> Result<Exit, CliError> {
    let run = connection
        .client()
        .start(args.start()?)
        .await
        .map_err(connection.explain("could not start the run"))?;
    if !args.wait {
        return show_started(&run, output).map(|()| Exit::Ok);
    }
    output.note(format_args!("waiting for {}", run.run_id()));
    let record = wait(&run, args.wait_timeout, connection).await?;
    read::show_run(&record, read::payloads(args.show_payloads), output)?;
    Ok(if record.run.state == RunState::Completed { Exit::Ok } else { Exit::Failed })
}

fn show_started(run: &RunHandle, output: Output) -> Result<(), CliError> {
    let outcome = match run.start_outcome() {
        Some(StartOutcome::Existing) => "EXISTING",
        Some(StartOutcome::Created) | None => "CREATED",
    };
    output.show(&StartedView { run_id: run.run_id().to_string(), outcome }, |view| view.run_id.clone())?;
    if outcome == "EXISTING" {
        output.note("the key names this run already; nothing new was started");
    }
    Ok(())
}

/// Waits for the end, also while the server is away for a while: a restart of it does not end the run.
async fn wait(
    run: &RunHandle,
    limit: Option<Duration>,
    connection: &Connection,
) -> Result<RunRecord, CliError> {
    let run = connection.client().clone().with_patience(PATIENCE_OF_A_WAIT).handle(run.run_id());
    let ended = match limit {
        None => run.finished().await,
        Some(limit) => tokio::time::timeout(limit, run.finished()).await.map_err(|_| {
            let run_id = run.run_id();
            CliError::failed(format!("run {run_id} has not finished"), "--wait-timeout has passed")
                .remedy(format!("it goes on; look at it with `kagzi get {run_id}`"))
        })?,
    };
    ended.map_err(connection.explain("could not wait for the run"))
}

impl StartArgs {
    fn start(&self) -> Result<Start, CliError> {
        let input = args::payload(&self.input, self.content_type.as_ref())?;
        let mut start = Start::workflow(self.workflow_type.as_str())
            .queue(self.queue.as_str())
            .payload(input)
            .priority(self.priority);
        if let Some(key) = &self.key {
            start = start.idempotency_key(key.as_str());
        }
        if let Some(delay) = self.delay {
            start = start.after(delay);
        }
        if let Some(moment) = self.at {
            start = start.at(moment);
        }
        if let Some(timeout) = self.run_timeout {
            start = start.run_timeout(timeout);
        }
        if let Some(max_attempts) = self.max_attempts {
            start = start.retry(RetryPolicy { max_attempts, ..RetryPolicy::default() });
        }
        for (key, value) in &self.labels {
            start = start.label(key, value);
        }
        Ok(start)
    }
}
