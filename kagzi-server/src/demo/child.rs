//! The demo's hand on a worker process.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kagzi_core::{Namespace, QueueName, RunId};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::hold::Hold;
use super::worker::{HELD, TROUBLE};
use crate::cli::one_line;

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
    /// The end of what it logs; ready when it has ended.
    last_words: JoinHandle<String>,
    // Held open: the worker dies when it closes.
    _stdin: Option<ChildStdin>,
}

/// What a worker process did.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A step of this run waits to be killed.
    Held(RunId),
    /// Something failed, which it tries again.
    Trouble(String),
    /// It ended, which it was not asked to.
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of what it logged.
        last_words: String,
    },
}

impl WorkerProcess {
    /// Starts a worker.
    ///
    /// # Errors
    ///
    /// If the program cannot be started again.
    pub fn spawn(plan: &WorkerPlan) -> io::Result<Self> {
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
            .stderr(Stdio::piped())
            // Ctrl-C is for the demo, which then ends its workers itself.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(hold) = &plan.hold {
            command.arg("--hold").arg(hold.to_string());
        }
        let mut child = command.spawn()?;
        let missing = || io::Error::other("a pipe to the worker is missing");
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let stdin = child.stdin.take();
        let last_words = tokio::spawn(last_lines(stderr));
        Ok(Self { child, events: BufReader::new(stdout).lines(), last_words, _stdin: stdin })
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
            if let Some(what) = line.strip_prefix(TROUBLE) {
                return Ok(WorkerEvent::Trouble(what.to_owned()));
            }
        }
        let status = self.child.wait().await?;
        let last_words = (&mut self.last_words).await.unwrap_or_default();
        Ok(WorkerEvent::Ended { status, last_words })
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
}

/// Reads to the end, and answers the last lines. They are not written to a file, since a full disk may
/// be what the worker complains about.
async fn last_lines(stderr: ChildStderr) -> String {
    const KEPT: usize = 5;
    let mut lines = BufReader::new(stderr).lines();
    let mut last = VecDeque::with_capacity(KEPT + 1);
    while let Ok(Some(line)) = lines.next_line().await {
        last.push_back(one_line(&line));
        if last.len() > KEPT {
            last.pop_front();
        }
    }
    Vec::from(last).join("\n")
}
