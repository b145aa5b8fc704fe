//! The log of a process: its standard error, line by line.

use std::io::{BufRead as _, BufReader};
use std::process::ChildStderr;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use crate::world::Failed;

/// So long a case waits for a line before it has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Lines of JSON, read as they come, so that the process never waits for its reader.
#[derive(Debug)]
pub struct Log {
    coming: mpsc::UnboundedReceiver<String>,
    read: Vec<Value>,
}

impl Log {
    pub fn of(stderr: ChildStderr) -> Self {
        let (sender, coming) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The case may have enough.
                sender.send(line).ok();
            }
        });
        Self { coming, read: Vec::new() }
    }

    /// Waits for a line with this message.
    pub async fn wait_for(&mut self, message: &str) -> Result<(), Failed> {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.coming.recv()).await;
            let line = line.ok().flatten().ok_or_else(|| format!("no line {message:?}"))?;
            let line = read(&line)?;
            let found = line["message"].as_str().is_some_and(|said| said.contains(message));
            self.read.push(line);
            if found {
                return Ok(());
            }
        }
    }

    /// All lines, up to the end of the process.
    pub async fn all(mut self) -> Result<Vec<Value>, Failed> {
        while let Some(line) = self.coming.recv().await {
            self.read.push(read(&line)?);
        }
        Ok(self.read)
    }
}

fn read(line: &str) -> Result<Value, Failed> {
    serde_json::from_str(line).map_err(|error| format!("a line that is no JSON ({error}): {line}").into())
}
