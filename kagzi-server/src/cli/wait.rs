//! Waiting for the end of a run, without leaving people in the dark.

use std::time::Duration;

use kagzi_core::{Pause, Run, RunRecord, RunState};
use kagzi_sdk::{ClientError, RunHandle};

use super::connection::Connection;
use super::error::{CliError, Exit};
use super::host::stop_signal;
use super::output::{complain, one_line};
use super::view::{moment, pause_text};

/// For how long a wait bears a server that does not answer.
const PATIENCE: Duration = Duration::from_mins(2);

/// After how long a wait says why nothing happens, if nothing does.
const REMARK_AFTER: Duration = Duration::from_secs(3);

/// Waits for the end of a run, also while the server is away for a while: a restart of it does not end
/// the wait. If no worker takes the run, it says so and goes on waiting.
///
/// # Errors
///
/// If `timeout` passes, the wait is broken off, or the server stays away.
pub async fn wait(
    run: &RunHandle,
    timeout: Option<Duration>,
    connection: &Connection,
) -> Result<RunRecord, CliError> {
    let run_id = run.run_id();
    let patient = connection.client().clone().with_patience(PATIENCE).handle(run_id);
    let given_up = |exit, why: &str| CliError {
        exit,
        what: format!("run {run_id} has not finished"),
        why: why.to_owned(),
        remedy: Some(format!("it goes on; look at it with `kagzi get {run_id}`")),
    };
    let out_of_time = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = finished(&patient, connection) => ended.map_err(connection.explain_read("could not wait for the run")),
        () = out_of_time => Err(given_up(Exit::TimedOut, "--timeout has passed")),
        signal = stop_signal() => Err(given_up(signal.into(), "the wait was broken off")),
    }
}

/// Waits for the end, and says why nothing happens if nothing does.
async fn finished(run: &RunHandle, connection: &Connection) -> Result<RunRecord, ClientError> {
    let mut end = std::pin::pin!(run.finished());
    if let Ok(ended) = tokio::time::timeout(REMARK_AFTER, &mut end).await {
        return ended;
    }
    let look = async {
        // If the server is away just now, the wait itself will tell.
        if let Ok(record) = run.record().await
            && let Some(remark) =
                why_nothing_happens(&record.run, pause(&record.run, connection).await.as_ref())
        {
            complain(one_line(&remark));
        }
        std::future::pending().await
    };
    tokio::select! {
        ended = end => ended,
        never = look => never,
    }
}

/// The pause of a run's queue, if it is paused and the caller may see that. Only a run that is due waits for it, and
/// only for such a one are the queues looked at, which costs a count of the live runs.
async fn pause(run: &Run, connection: &Connection) -> Option<Pause> {
    if run.state != RunState::Pending {
        return None;
    }
    let depths = connection.client().queue_depths().await.ok()?;
    depths.into_iter().find(|depth| depth.queue == run.queue)?.pause
}

fn why_nothing_happens(run: &Run, pause: Option<&Pause>) -> Option<String> {
    match (run.state, pause) {
        (RunState::Pending, Some(pause)) => Some(format!(
            "queue {:?} is paused {}; the run waits until `kagzi queue resume`",
            run.queue,
            pause_text(pause)
        )),
        (RunState::Pending, None) if run.claims == 0 => Some(format!(
            "no worker has claimed this run yet: is a worker for queue {:?} with workflow type {:?} running?",
            run.queue, run.workflow_type
        )),
        (RunState::Sleeping, _) if run.claims == 0 => {
            Some(format!("it is due at {} (UTC)", moment(run.due_at)))
        }
        _ => None,
    }
}
