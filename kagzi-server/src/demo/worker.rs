//! The worker of a demo: a process of its own, so that it can be killed.
//!
//! It talks to the demo through its pipes. On its standard output it says when it waits to be killed, and
//! what keeps failing; on its standard input it hears nothing, but when that closes the demo is gone, and
//! so is the worker.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use kagzi_core::{Namespace, QueueName, RunId};
use kagzi_sdk::{Client, Repeat, Worker};
use kagzi_server::LogFormat;

use super::archive::Archive;
use super::hold::{Countdown, Hold};
use super::workflow::{Backup, WORKFLOW_TYPE, backup_file};
use crate::cli::{CliError, one_line, print};
use crate::lifeline::end_with_the_parent;

/// What precedes the run id in the line that announces a hold.
pub const HELD: &str = "held ";

/// What precedes the text in the line that tells what keeps failing.
pub const TROUBLE: &str = "trouble ";

/// Of failures, the demo hears of one in this time.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(1);

/// How the demo tells its worker what to do.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The demo's queue.
    #[arg(long)]
    queue: QueueName,
    /// The directory that is backed up.
    #[arg(long)]
    root: PathBuf,
    /// The output of the demo.
    #[arg(long)]
    archive: PathBuf,
    /// Where to wait to be killed.
    #[arg(long)]
    hold: Option<Hold>,
    /// How long leases last, in milliseconds.
    #[arg(long)]
    lease_ms: u64,
    /// How many files to work on at a time.
    #[arg(long)]
    concurrency: u32,
}

/// Tells the demo that a step of this run waits to be killed.
pub fn announce_hold(run_id: RunId) {
    // If nobody listens, the demo is gone, and `end_with_the_parent` ends this process.
    print(&format!("{HELD}{run_id}")).ok();
}

/// Tells the demo what failed and is tried again.
#[derive(Debug, Default)]
pub struct Troubles {
    told_at: Mutex<Option<Instant>>,
}

impl Troubles {
    /// Tells of one, unless one was told of just now.
    pub fn tell(&self, what: impl fmt::Display) {
        let now = Instant::now();
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_some_and(|at| now.duration_since(at) < TROUBLE_INTERVAL) {
            return;
        }
        *told_at = Some(now);
        // As for a hold: if nobody listens, this process is about to end.
        print(&format!("{TROUBLE}{}", one_line(&what.to_string()))).ok();
    }
}

/// Works until it is killed or the demo is gone.
///
/// # Errors
///
/// If the server cannot be reached, or refuses to hand out work.
pub async fn work(args: WorkerArgs, server: &str, namespace: &Namespace) -> Result<(), CliError> {
    end_with_the_parent();
    kagzi_server::telemetry::init(LogFormat::Text, "warn")
        .map_err(|why| CliError::failed("could not log", why))?;
    let troubles = Arc::new(Troubles::default());
    let backup = Arc::new(Backup {
        root: args.root,
        archive: Archive::open(args.archive),
        hold: args.hold.map(Countdown::to),
        troubles: Arc::clone(&troubles),
    });
    let client = Client::connect(server).await.and_then(|client| client.in_namespace(namespace));
    let client = client.map_err(|why| CliError::failed("the worker could not reach the server", why))?;
    Worker::builder(client)
        .queue(args.queue.as_str())
        .register(WORKFLOW_TYPE, move |context, job| backup_file(context, job, Arc::clone(&backup)))
        .worker_id(format!("demo-{}", std::process::id()))
        .max_concurrent_runs(args.concurrency)
        .lease(Duration::from_millis(args.lease_ms))
        .on_failed_call(move |call| {
            if call.repeat == Repeat::Yes {
                troubles.tell(format_args!("{}: {}", call.operation, call.error));
            }
        })
        .build()
        .map_err(|why| CliError::failed("the worker could not be set up", why))?
        .run()
        .await
        .map_err(|why| CliError::failed("the worker had to stop", why))
}
