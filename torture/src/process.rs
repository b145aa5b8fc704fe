//! A child process, which does not outlive this one.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::Failed;
use crate::roles::READY;

/// How long a child may take to be ready.
const LIMIT: Duration = Duration::from_secs(20);

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts this program in another role; waits until it is ready, and gives what it said then.
    ///
    /// What it complains of goes to a file of its name in `directory`.
    pub async fn start(name: &str, directory: &Path, arguments: &[&str]) -> Result<(Self, String), Failed> {
        let complaints = directory.join(format!("{}.err", name.replace(' ', "-")));
        let complaints = OpenOptions::new().create(true).append(true).open(complaints)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .kill_on_drop(true);
        // Ctrl-C is for the parent, with whom they die.
        let mut child = command.process_group(0).spawn()?;
        let stdout = child.stdout.take().ok_or("a child without standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(LIMIT, lines.next_line()).await??;
        let said = first.as_deref().and_then(|line| line.strip_prefix(READY));
        let said = said.ok_or_else(|| format!("{name} did not become ready"))?.to_owned();
        Ok((Self { child, name: name.to_owned() }, said))
    }

    /// Sends it a signal. One that has ended by itself gets none.
    pub fn signal(&self, signal: Signal) -> Result<(), Failed> {
        match self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            Some(id) => Ok(kill_process(id, signal)?),
            None => Ok(()),
        }
    }

    /// SIGKILL, and waits until it is gone. Gives whether it lived still.
    pub async fn kill(mut self) -> Result<bool, Failed> {
        let alive = self.is_alive()?;
        if alive {
            self.signal(Signal::KILL)?;
            self.child.wait().await?;
        }
        Ok(alive)
    }

    /// Whether it runs still.
    pub fn is_alive(&mut self) -> Result<bool, Failed> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
