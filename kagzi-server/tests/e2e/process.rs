//! A child process whose lines can be awaited, and which does not outlive the test.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::log::Log;
use crate::world::Failed;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    log: Option<Log>,
    name: String,
    /// The second that it took for now when it started, if it said so.
    pub clock: Option<i64>,
}

impl Process {
    /// Starts `command` with its standard input and output as pipes.
    pub fn start(name: &str, command: &mut Command) -> Result<Self, Failed> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("a child without standard output")?;
        // Read from the first line on: what is said before the process is ready may be more than a pipe holds.
        let log = child.stderr.take().map(Log::of);
        Ok(Self { child, stdin, stdout: BufReader::new(stdout), log, name: name.to_owned(), clock: None })
    }

    /// Waits for the next line that begins with `prefix` and gives the rest of it.
    pub fn line(&mut self, prefix: &str) -> Result<String, Failed> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line)? == 0 {
                let status = self.child.wait()?;
                return Err(format!("{} ended ({status}) without a line {prefix:?}", self.name).into());
            }
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// Its standard error, if it was started with a pipe there.
    pub fn log(&mut self) -> Result<Log, Failed> {
        Ok(self.log.take().ok_or("a child without standard error")?)
    }

    /// Says a line to it.
    pub fn say(&mut self, line: &str) -> Result<(), Failed> {
        let stdin = self.stdin.as_mut().ok_or("its standard input is closed")?;
        writeln!(stdin, "{line}")?;
        Ok(stdin.flush()?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), Failed> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) -> Result<(), Failed> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for its end, which must be a good one.
    pub fn terminate(mut self) -> Result<(), Failed> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        self.ended(status)
    }

    /// Waits for its end, which must be a good one, for so long at most.
    pub async fn ends_within(mut self, limit: Duration) -> Result<(), Failed> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return self.ended(status);
            }
            tokio::task::yield_now().await;
        }
        Err(format!("{} goes on {limit:?} after it was told to end", self.name).into())
    }

    fn ended(&self, status: ExitStatus) -> Result<(), Failed> {
        if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", self.name).into()) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; either way nothing of it is left.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
