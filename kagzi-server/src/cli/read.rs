//! The commands that look: `get`, `list`, `dead-letters`, `steps`, `queues`.

use clap::Args;
use kagzi_core::{
    Cursor, Page, QueueName, Run, RunFilter, RunId, RunRecord, RunState, Timestamp, WorkflowType,
};
use serde::Serialize;

use super::args;
use super::connection::Connection;
use super::error::CliError;
use super::output::{Output, table};
use super::view::{self, AttemptView, Payloads, QueueView, RunView};

/// `kagzi get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The run.
    run: RunId,
    /// Show input and output.
    #[arg(long)]
    show_payloads: bool,
}

/// Which runs are wanted.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Only of this type.
    #[arg(long = "type", value_name = "TYPE")]
    workflow_type: Option<WorkflowType>,
    /// Only of this queue.
    #[arg(long)]
    queue: Option<QueueName>,
    /// Only with this label; may be repeated, each key once: a run has to have all of them.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::label)]
    labels: Vec<(String, String)>,
    /// Only created at this moment or later, in RFC 3339, such as 2026-11-24T10:31:20Z.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only created before this moment, in RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// At most this many, from 1 to 1000.
    #[arg(long, value_name = "COUNT", default_value_t = 50, allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on where the page before ended: the cursor that it gave.
    #[arg(long, allow_hyphen_values = true)]
    cursor: Option<String>,
}

/// `kagzi list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only in this state: pending, running, sleeping, completed, failed or cancelled; may be repeated.
    #[arg(long = "state", value_name = "STATE", value_parser = args::state)]
    states: Vec<RunState>,
    #[command(flatten)]
    filter: FilterArgs,
}

/// `kagzi dead-letters`.
#[derive(Debug, Args)]
pub struct DeadLettersArgs {
    #[command(flatten)]
    filter: FilterArgs,
}

/// `kagzi steps`.
#[derive(Debug, Args)]
pub struct StepsArgs {
    /// The run.
    run: RunId,
    /// Show what the steps gave; with --json only.
    #[arg(long)]
    show_payloads: bool,
}

#[derive(Serialize)]
struct RunsView {
    runs: Vec<RunView>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct AttemptsView {
    run_id: String,
    attempts: Vec<AttemptView>,
}

#[derive(Serialize)]
struct QueuesView {
    queues: Vec<QueueView>,
}

/// Whether payloads are wanted.
pub fn payloads(show: bool) -> Payloads {
    if show { Payloads::Show } else { Payloads::Hide }
}

/// Shows one run.
pub async fn get(args: &GetArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let explain = connection.explain_read("could not get the run");
    let record = connection.client().get(args.run).await.map_err(explain)?;
    show_run(&record, payloads(args.show_payloads), output)
}

/// Shows a run that was fetched.
pub fn show_run(record: &RunRecord, payloads: Payloads, output: Output) -> Result<(), CliError> {
    output.show(&RunView::with_payloads(record, payloads), |_| view::run_text(record, payloads))
}

/// Lists runs.
pub async fn list(args: ListArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let page = fetch(args.filter, args.states, connection).await?;
    show_page(&page, "no run matches", output, |runs| table(view::RUN_HEADER, runs.iter().map(view::run_row)))
}

/// Lists dead letters.
pub async fn dead_letters(
    args: DeadLettersArgs,
    connection: &Connection,
    output: Output,
) -> Result<(), CliError> {
    let page = fetch(args.filter, vec![RunState::Failed], connection).await?;
    show_page(&page, "no dead letters", output, |runs| {
        table(view::DEAD_LETTER_HEADER, runs.iter().map(view::dead_letter_row))
    })
}

async fn fetch(
    args: FilterArgs,
    states: Vec<RunState>,
    connection: &Connection,
) -> Result<Page<Run>, CliError> {
    if let (Some(since), Some(until)) = (args.since, args.until)
        && since >= until
    {
        return Err(CliError::usage("could not list the runs", "--since is not before --until"));
    }
    let filter = RunFilter {
        states,
        workflow_type: args.workflow_type,
        queue: args.queue,
        labels: args::labels(&args.labels)?,
        created_from: args.since,
        created_before: args.until,
    };
    let cursor = args.cursor.map(Cursor::from_text);
    let page = connection.client().list(&filter, args.limit, cursor).await;
    page.map_err(connection.explain_read("could not list the runs"))
}

fn show_page(
    page: &Page<Run>,
    nothing: &str,
    output: Output,
    text: impl FnOnce(&[Run]) -> String,
) -> Result<(), CliError> {
    let next_cursor = page.next.as_ref().map(|cursor| cursor.as_str().to_owned());
    if let Some(cursor) = &next_cursor {
        output.note(format_args!("there is more: --cursor {cursor}"));
    }
    let view = RunsView { runs: page.items.iter().map(RunView::from).collect(), next_cursor };
    output.show(&view, |_| if page.items.is_empty() { nothing.to_owned() } else { text(&page.items) })
}

/// Shows the history of a run.
pub async fn steps(args: &StepsArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let explain = connection.explain_read("could not list the steps of the run");
    let attempts = connection.client().attempts(args.run).await.map_err(explain)?;
    let payloads = payloads(args.show_payloads);
    let view = AttemptsView {
        run_id: args.run.to_string(),
        attempts: attempts.iter().map(|attempt| AttemptView::new(attempt, payloads)).collect(),
    };
    output.show(&view, |_| {
        if attempts.is_empty() {
            "no step was begun yet".to_owned()
        } else {
            table(view::ATTEMPT_HEADER, attempts.iter().map(view::attempt_row))
        }
    })
}

/// Shows how full the queues are.
pub async fn queues(connection: &Connection, output: Output) -> Result<(), CliError> {
    let explain = connection.explain_read("could not look at the queues");
    let depths = connection.client().queue_depths().await.map_err(explain)?;
    let view = QueuesView { queues: depths.iter().map(QueueView::from).collect() };
    output.show(&view, |_| {
        if depths.is_empty() {
            "no queue holds live runs or is paused".to_owned()
        } else {
            table(view::QUEUE_HEADER, depths.iter().map(view::queue_row))
        }
    })
}
