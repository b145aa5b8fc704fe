//! `kagzi start`.

use std::time::Duration;

use clap::Args;
use kagzi_core::{
    ContentType, IdempotencyKey, QueueName, RetryPolicy, RunState, StartOutcome, StoreError, Timestamp,
    WorkflowType,
};
use kagzi_sdk::{ClientError, RunHandle, Start};
use serde::Serialize;

use super::connection::Connection;
use super::error::CliError;
use super::output::Output;
use super::wait::wait;
use super::{Exit, args, read};

/// What a run is started with.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Which program to run: the name under which a worker registered it.
    #[arg(value_name = "TYPE")]
    workflow_type: WorkflowType,
    /// What the program is given: JSON as it stands, @FILE, or - for the standard input; at most 2 MiB
    /// unless the server allows more.
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
    #[arg(long, value_name = "LEVEL", default_value_t = 0, allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-9..=9))]
    priority: i64,
    /// Start this much later, such as 250ms, 30s or 1h30m [default: at once].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, conflicts_with = "at", allow_hyphen_values = true)]
    delay: Option<Duration>,
    /// Start at this moment, in RFC 3339, such as 2026-11-24T10:31:20Z.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// How long the run may take from when it is due, such as 30s or 1h30m; then it fails [default: no limit].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, allow_hyphen_values = true)]
    run_timeout: Option<Duration>,
    /// How often the run, and each step without a policy of its own, is tried [default: the server's].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), allow_hyphen_values = true)]
    max_attempts: Option<u32>,
    /// What the run can be found by; may be repeated, up to 32 times, each key once.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::label)]
    labels: Vec<(String, String)>,
    /// The trace that the run continues, as in the header of W3C [default: what the variables TRACEPARENT and
    /// TRACESTATE say].
    #[arg(long, value_name = "HEADER", value_parser = args::traceparent)]
    traceparent: Option<String>,
    /// Wait until the run has finished, and show it; the exit code is 1 if it did not complete.
    #[arg(long)]
    wait: bool,
    /// Wait at most this long, such as 30s or 5m; then the exit code is 5, and the run goes on [default: for ever].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, requires = "wait", allow_hyphen_values = true)]
    timeout: Option<Duration>,
    /// Show input and output after waiting.
    #[arg(long, requires = "wait")]
    show_payloads: bool,
}

#[derive(Serialize)]
struct StartedView {
    run_id: String,
    outcome: &'static str,
}

/// Starts a run, and waits for its end if asked to.
pub async fn start(args: StartArgs, connection: &Connection, output: Output) -> Result<Exit, CliError> {
    let request = args.start(output)?;
    let explain = connection.explain("could not start the run");
    let run = connection.client().start(request).await.map_err(|error| explain(by_flag(error)))?;
    if !args.wait {
        return show_started(&run, output).map(|()| Exit::Ok);
    }
    output.note(format_args!("waiting for {}", run.run_id()));
    let record = wait(&run, args.timeout, connection).await?;
    read::show_run(&record, read::payloads(args.show_payloads), output)?;
    Ok(if record.run.state == RunState::Completed { Exit::Ok } else { Exit::Failed })
}

/// An error about a field of the request, under the name that the field has on the command line.
fn by_flag(error: ClientError) -> ClientError {
    let flag = |field: String| match field.strip_prefix("starts[0].") {
        Some("input") => "--input".to_owned(),
        Some("start_after") => "--delay".to_owned(),
        Some("start_at") => "--at".to_owned(),
        Some("run_timeout") => "--run-timeout".to_owned(),
        Some("retry_policy.max_attempts") => "--max-attempts".to_owned(),
        Some(other) => other.to_owned(),
        // Nothing else of a single start makes its message too long.
        None if field == "request" => "--input".to_owned(),
        None => field,
    };
    match error {
        ClientError::Call(StoreError::InvalidArgument { field, expected, got }) => {
            StoreError::InvalidArgument { field: flag(field), expected, got }.into()
        }
        ClientError::Call(StoreError::TooLarge { field, limit_bytes, actual_bytes }) => {
            StoreError::TooLarge { field: flag(field), limit_bytes, actual_bytes }.into()
        }
        other => other,
    }
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

impl StartArgs {
    fn start(&self, output: Output) -> Result<Start, CliError> {
        let input = args::payload(&self.input, self.content_type.as_ref())?;
        if self.content_type.is_none() && input.content_type != ContentType::json() {
            output.note(format_args!("the input is not JSON; it is sent as {}", input.content_type));
        }
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
        if let Some(context) = args::trace_context(self.traceparent.as_deref()) {
            start = start.trace_context(context);
        }
        for (key, value) in args::labels(&self.labels)?.as_map() {
            start = start.label(key, value);
        }
        Ok(start)
    }
}
