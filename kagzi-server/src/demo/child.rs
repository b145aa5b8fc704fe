//! The demo's hand on a worker process.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kagzi_core::{Namespace, QueueName, RunId};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::hold::Hold;
use super::worker::HELD;

/// What a worker of a demo is told.
#[derive(Debug)]
pub struct WorkerPlan {
    /// Where the server is.
    pub server: String,
    /// The demo's namespace.
    pub namespace: Namespace,
    /// The demo's queue.
    pub queue: QueueName,
    /// The directory that is backed up.
    pub root: PathBuf,
    /// The output of the demo.
    pub output: PathBuf,
    /// How long leases last.
    pub lease: Duration,
    /// How many files a worker has in work at a time.
    pub concurrency: u32,
    /// Where it waits to be killed, if it is to be.
    pub hold: Option<Hold>,
}

/// A worker process. Dropping it kills it.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    // Held open: the worker dies when it closes.
    _stdin: Option<ChildStdin>,
}

/// What a worker process did.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A step of this run waits to be killed.
    Held(RunId),
    /// It ended, which it was not asked to.
    Ended(ExitStatus),
}

impl WorkerProcess {
    /// Starts the `number`-th worker. What it logs goes to a file in the output directory.
    ///
    /// # Errors
    ///
    /// If the program cannot be started again.
    pub fn spawn(plan: &WorkerPlan, number: u32) -> io::Result<Self> {
        let log = plan.output.join(format!("worker-{number}.log"));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["demo-worker", "--server", &plan.server, "--namespace", plan.namespace.as_str()])
            .args(["--queue", plan.queue.as_str(), "--lease-ms", &plan.lease.as_millis().to_string()])
            .args(["--concurrency", &plan.concurrency.to_string()])
            .arg("--root")
            .arg(&plan.root)
            .arg("--archive")
            .arg(&plan.output)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            // Ctrl-C is for the demo, which then ends its workers itself.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(hold) = &plan.hold {
            command.arg("--hold").arg(hold.to_string());
        }
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let stdout =
            child.stdout.take().ok_or_else(|| io::Error::other("the worker has no standard output"))?;
        Ok(Self { child, events: BufReader::new(stdout).lines(), log, _stdin: stdin })
    }

    /// The next thing it does. Cancel safe.
    ///
    /// # Errors
    ///
    /// If its pipe cannot be read or its end not be learned.
    pub async fn event(&mut self) -> io::Result<WorkerEvent> {
        while let Some(line) = self.events.next_line().await? {
            if let Some(run_id) = line.strip_prefix(HELD).and_then(|id| id.parse().ok()) {
                return Ok(WorkerEvent::Held(run_id));
            }
        }
        self.child.wait().await.map(WorkerEvent::Ended)
    }

    /// Its process id, for people.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub async fn kill(mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// The end of what it logged, for a message about why it ended.
    pub fn last_words(&self) -> String {
        last_lines(&self.log, 5)
    }
}

fn last_lines(log: &Path, count: usize) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
