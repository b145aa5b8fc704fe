//! The commands that change runs: `cancel`, `requeue`.

use clap::Args;
use kagzi_core::{CancelOutcome, RunId};
use kagzi_sdk::ClientError;
use serde::Serialize;

use super::connection::Connection;
use super::error::{CliError, Exit};
use super::output::Output;

/// `kagzi cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The run.
    run: RunId,
    /// Why, for those who look later.
    #[arg(long, default_value = "")]
    reason: String,
}

/// `kagzi requeue`.
#[derive(Debug, Args)]
pub struct RequeueArgs {
    /// The runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<RunId>,
}

#[derive(Serialize)]
struct CancelView {
    run_id: String,
    outcome: &'static str,
    state: &'static str,
}

#[derive(Serialize)]
struct RequeueView {
    requeued: Vec<String>,
    refused: Vec<RefusedView>,
}

#[derive(Serialize)]
struct RefusedView {
    run_id: String,
    reason: &'static str,
    message: String,
}

/// Cancels a run. One that is finished already stays as it is, which is reported and no error.
pub async fn cancel(args: CancelArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let explain = connection.explain("could not cancel the run");
    let view = match connection.client().cancel(args.run, args.reason).await.map_err(explain)? {
        CancelOutcome::Cancelled => {
            CancelView { run_id: args.run.to_string(), outcome: "CANCELLED", state: "CANCELLED" }
        }
        CancelOutcome::AlreadyFinished(state) => {
            CancelView { run_id: args.run.to_string(), outcome: "ALREADY_FINISHED", state: state.as_str() }
        }
    };
    output.show(&view, |view| match view.outcome {
        "CANCELLED" => format!("cancelled {}", view.run_id),
        _ => format!("{} had finished before: {}", view.run_id, view.state),
    })
}

/// Puts dead letters back to work, each by itself: one that is refused does not hold up the others.
pub async fn requeue(args: RequeueArgs, connection: &Connection, output: Output) -> Result<(), CliError> {
    let mut view = RequeueView { requeued: Vec::new(), refused: Vec::new() };
    let mut first_refusal = None;
    for run_id in args.runs {
        match connection.client().requeue(run_id).await {
            Ok(_) => view.requeued.push(run_id.to_string()),
            Err(error) => {
                let reason = match &error {
                    ClientError::Call(error) => error.reason(),
                    _ => "UNAVAILABLE",
                };
                view.refused.push(RefusedView {
                    run_id: run_id.to_string(),
                    reason,
                    message: error.to_string(),
                });
                let explained = connection.explain("could not requeue every run")(error);
                let stop = explained.exit == Exit::Unavailable;
                first_refusal.get_or_insert(explained);
                if stop {
                    break;
                }
            }
        }
    }
    output.show(&view, |view| {
        let requeued = view.requeued.iter().map(|run_id| format!("requeued {run_id}"));
        let refused =
            view.refused.iter().map(|refused| format!("refused  {}: {}", refused.run_id, refused.message));
        requeued.chain(refused).collect::<Vec<_>>().join("\n")
    })?;
    first_refusal.map_or(Ok(()), Err)
}
