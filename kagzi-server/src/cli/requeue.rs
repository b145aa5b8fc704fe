//! `kagzi requeue`: dead letters back to work, those that are named or all that a filter finds.

use clap::Args;
use kagzi_core::{DeadLetterReason, QueueName, Run, RunFilter, RunId, RunState, WorkflowType};
use kagzi_sdk::ClientError;
use serde::Serialize;

use super::args;
use super::connection::Connection;
use super::error::{CliError, Exit};
use super::output::Output;

/// How many dead letters are listed at a time.
const PAGE: u32 = 200;

/// `kagzi requeue`.
#[derive(Debug, Args)]
pub struct RequeueArgs {
    /// The runs.
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "RUN")]
    runs: Vec<RunId>,
    /// All dead letters of the namespace, or those that the flags below leave.
    #[arg(long)]
    all: bool,
    /// Only of this queue.
    #[arg(long, requires = "all")]
    queue: Option<QueueName>,
    /// Only of this type.
    #[arg(long = "type", value_name = "TYPE", requires = "all")]
    workflow_type: Option<WorkflowType>,
    /// Only with this label; may be repeated, each key once: a run has to have all of them.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::label, requires = "all")]
    labels: Vec<(String, String)>,
    /// Only given up for this reason: `retries_exhausted`, `non_retryable`, `run_timeout` or poison; may be
    /// repeated.
    #[arg(long = "reason", value_name = "REASON", value_parser = reason, requires = "all")]
    reasons: Vec<DeadLetterReason>,
    /// Say which would be requeued, and change nothing.
    #[arg(long, requires = "all")]
    dry_run: bool,
}

/// A reason in any case.
fn reason(text: &str) -> Result<DeadLetterReason, String> {
    let found = DeadLetterReason::ALL.into_iter().find(|one| one.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names = DeadLetterReason::ALL.map(|one| one.as_str().to_ascii_lowercase());
        format!("expected one of {}, got {text:?}", names.join(", "))
    })
}

#[derive(Serialize, Default)]
struct RequeueView {
    requeued: Vec<String>,
    would_requeue: Vec<String>,
    refused: Vec<RefusedView>,
}

#[derive(Serialize)]
struct RefusedView {
    run_id: String,
    reason: &'static str,
    message: String,
}

impl RequeueView {
    fn text(&self) -> String {
        let would = self.would_requeue.iter().map(|run_id| format!("would requeue {run_id}"));
        let requeued = self.requeued.iter().map(|run_id| format!("requeued {run_id}"));
        let refused =
            self.refused.iter().map(|refused| format!("refused  {}: {}", refused.run_id, refused.message));
        let lines: Vec<String> = would.chain(requeued).chain(refused).collect();
        if lines.is_empty() { "no dead letters".to_owned() } else { lines.join("\n") }
    }
}

/// What was done so far, and the first refusal.
#[derive(Default)]
struct Progress {
    view: RequeueView,
    first_refusal: Option<CliError>,
}

impl Progress {
    /// Requeues one, and answers whether there is a point in going on.
    async fn requeue(&mut self, run_id: RunId, connection: &Connection) -> bool {
        let Err(error) = connection.client().requeue(run_id).await else {
            self.view.requeued.push(run_id.to_string());
            return true;
        };
        let reason = match &error {
            ClientError::Call(error) => error.reason(),
            _ => "UNAVAILABLE",
        };
        let message = error.to_string();
        self.view.refused.push(RefusedView { run_id: run_id.to_string(), reason, message });
        let explained = connection.explain("could not requeue every run")(error);
        let goes_on = explained.exit != Exit::Unavailable;
        self.first_refusal.get_or_insert(explained);
        goes_on
    }
}

/// Puts dead letters back to work, each by itself: one that is refused does not hold up the others.
pub async fn requeue(args: RequeueArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let mut progress = Progress::default();
    if args.all {
        if let Err(error) = requeue_all(&args, connection, output, &mut progress).await {
            progress.first_refusal.get_or_insert(error);
        }
    } else {
        for run_id in args.runs {
            if !progress.requeue(run_id, connection).await {
                break;
            }
        }
    }
    output.show(&progress.view, RequeueView::text)?;
    progress.first_refusal.map_or(Ok(()), Err)
}

/// Page by page, the youngest first: one that fails again meanwhile stands on a page that is past, so this
/// ends. Stopped half way, it can be run again.
async fn requeue_all(
    args: &RequeueArgs,
    connection: &Connection,
    output: Output,
    progress: &mut Progress,
) -> Result<(), CliError> {
    let filter = RunFilter {
        states: vec![RunState::Failed],
        workflow_type: args.workflow_type.clone(),
        queue: args.queue.clone(),
        labels: args::labels(&args.labels)?,
        ..RunFilter::default()
    };
    let wanted = |run: &Run| {
        args.reasons.is_empty() || run.dead_letter.is_some_and(|reason| args.reasons.contains(&reason))
    };
    let mut cursor = None;
    loop {
        let listed = connection.client().list(&filter, PAGE, cursor).await;
        let page = listed.map_err(connection.explain_read("could not list the dead letters"))?;
        for run in page.items.iter().filter(|run| wanted(run)) {
            if args.dry_run {
                progress.view.would_requeue.push(run.run_id.to_string());
            } else if !progress.requeue(run.run_id, connection).await {
                return Ok(());
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(());
        }
        if !args.dry_run {
            output.note(format_args!("{} requeued so far", progress.view.requeued.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_known_in_any_case() {
        assert_eq!(reason("poison").unwrap(), DeadLetterReason::Poison);
        assert_eq!(reason("RUN_TIMEOUT").unwrap(), DeadLetterReason::RunTimeout);
        assert!(reason("tired").unwrap_err().contains("retries_exhausted"));
    }
}
