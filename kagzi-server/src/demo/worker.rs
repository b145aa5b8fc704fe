//! The worker of a demo: a process of its own, so that it can be killed.
//!
//! It talks to the demo through its pipes. On its standard output it says when it waits to be killed; on
//! its standard input it hears nothing, but when that closes the demo is gone, and so is the worker.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kagzi_core::{Namespace, QueueName, RunId};
use kagzi_sdk::{Client, Worker};
use kagzi_server::LogFormat;

use super::archive::Archive;
use super::hold::{Countdown, Hold};
use super::workflow::{Backup, WORKFLOW_TYPE, backup_file};
use crate::cli::{CliError, print};

/// What precedes the run id in the line that announces a hold.
pub const HELD: &str = "held ";

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
    // If nobody listens, the demo is gone, and `die_with_the_demo` ends this process.
    print(&format!("{HELD}{run_id}")).ok();
}

/// Ends the process when the demo that started it ends, however that happens: the other end of the
/// standard input closes even if the demo is killed.
fn die_with_the_demo() {
    std::thread::spawn(|| {
        // Nothing is ever sent: whatever ends the read, the demo is gone.
        io::stdin().lock().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
}

/// Works until it is killed or the demo is gone.
///
/// # Errors
///
/// If the server cannot be reached, or refuses to hand out work.
pub async fn work(args: WorkerArgs, server: &str, namespace: &Namespace) -> Result<(), CliError> {
    die_with_the_demo();
    kagzi_server::telemetry::init(LogFormat::Text, "warn")
        .map_err(|why| CliError::failed("could not log", why))?;
    let backup = Arc::new(Backup {
        root: args.root,
        archive: Archive::open(args.archive),
        hold: args.hold.map(Countdown::to),
    });
    let client = Client::connect(server).await.and_then(|client| client.in_namespace(namespace));
    let client = client.map_err(|why| CliError::failed("the worker could not reach the server", why))?;
    Worker::builder(client)
        .queue(args.queue.as_str())
        .register(WORKFLOW_TYPE, move |context, job| backup_file(context, job, Arc::clone(&backup)))
        .worker_id(format!("demo-{}", std::process::id()))
        .max_concurrent_runs(args.concurrency)
        .lease(Duration::from_millis(args.lease_ms))
        .build()
        .map_err(|why| CliError::failed("the worker could not be set up", why))?
        .run()
        .await
        .map_err(|why| CliError::failed("the worker had to stop", why))
}
