//! `kagzi cancel`.

use clap::Args;
use kagzi_core::{CancelOutcome, RunId};
use serde::Serialize;

use super::connection::Connection;
use super::error::CliError;
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

#[derive(Serialize)]
struct CancelView {
    run_id: String,
    outcome: &'static str,
    state: &'static str,
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
