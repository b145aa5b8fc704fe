//! The bench's hand on the process of a part.

use std::path::Path;
use std::process::Stdio;

use kagzi_core::Namespace;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::part::{READY, Role, STORE};
use crate::cli::{CliError, Exit, ServerAccess};

/// A part in a process of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    role: Role,
    child: Child,
    // Held open: the part ends when it closes.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a server over `store`; answers once it listens, with its URL.
    ///
    /// # Errors
    ///
    /// If it does not come to listening.
    pub async fn server(
        store: &str,
        namespace: &Namespace,
        config: Option<&Path>,
    ) -> Result<(Self, String), CliError> {
        let mut command = command(Role::Server, namespace)?;
        command.env(STORE, store);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        Self::spawn(Role::Server, command).await
    }

    /// Starts a worker of the server that `access` names; answers once it is connected.
    ///
    /// # Errors
    ///
    /// If it does not come that far.
    pub async fn worker(
        access: &ServerAccess,
        namespace: &Namespace,
        concurrency: u32,
    ) -> Result<Self, CliError> {
        let mut command = command(Role::Worker, namespace)?;
        access.hand_on(&mut command);
        command.args(["--concurrency", &concurrency.to_string()]);
        Self::spawn(Role::Worker, command).await.map(|(process, _)| process)
    }

    async fn spawn(role: Role, mut command: Command) -> Result<(Self, String), CliError> {
        let failed = |why: String| {
            CliError::failed(format!("could not start the {} of the bench", role.as_str()), why)
        };
        let mut child = command.spawn().map_err(|why| failed(why.to_string()))?;
        let stdout = child.stdout.take().ok_or_else(|| failed("it has no standard output".to_owned()))?;
        let stdin = child.stdin.take();
        // It says one line and no more, so that its pipe never fills.
        let first =
            BufReader::new(stdout).lines().next_line().await.map_err(|why| failed(why.to_string()))?;
        if let Some(rest) = first.as_deref().and_then(|line| line.strip_prefix(READY)) {
            return Ok((Self { role, child, _stdin: stdin }, rest.to_owned()));
        }
        // What was wrong, it has said on the standard error, which it shares with this process.
        let status = child.wait().await.map_err(|why| failed(why.to_string()))?;
        let exit = Exit::of_child(status.code());
        Err(CliError { exit, ..failed(format!("it ended at once: {status}")) })
    }

    /// Ready when the process ends, which it is not asked to. Cancel safe.
    pub async fn ended(&mut self) -> CliError {
        let what = format!("the {} of the bench ended in the middle of it", self.role.as_str());
        match self.child.wait().await {
            Ok(status) => CliError::failed(what, status),
            Err(why) => CliError::failed(what, why),
        }
    }

    /// Its process id, unless it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub async fn kill(mut self) -> Result<(), CliError> {
        let what = format!("could not end the {} of the bench", self.role.as_str());
        self.child.kill().await.map_err(|why| CliError::failed(what, why))
    }
}

fn command(role: Role, namespace: &Namespace) -> Result<Command, CliError> {
    let program = std::env::current_exe()
        .map_err(|why| CliError::failed("could not find the program to start the bench's parts with", why))?;
    let mut command = Command::new(program);
    command
        .args(["bench-part", "--role", role.as_str(), "--namespace", namespace.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C is for the bench, which then ends its parts itself.
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}
