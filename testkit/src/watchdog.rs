//! A shell that outlives us by a moment, to clean up after us.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use crate::TestkitError;

/// A shell child that waits on a pipe from this process. Its script goes on when the pipe closes: when
/// the watchdog is dropped, or when this process ends, even by SIGKILL.
#[derive(Debug)]
pub(crate) struct Watchdog {
    child: Child,
}

impl Watchdog {
    /// Starts `script` under `sh` with `arguments`. It should begin with `read -r word`. It runs in a
    /// process group of its own, so that Ctrl-C in the terminal does not end it too early.
    pub(crate) fn start<A: AsRef<OsStr>>(script: &str, arguments: &[A]) -> Result<Self, TestkitError> {
        let child = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg("kagzi-testkit")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { child })
    }

    /// Sends `word` to the script, closes the pipe and waits until the script is done.
    pub(crate) fn finish(mut self, word: &str) -> Result<(), TestkitError> {
        if let Some(mut pipe) = self.child.stdin.take() {
            writeln!(pipe, "{word}")?;
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // An error means that it is gone already, which is what was wanted.
        self.child.wait().ok();
    }
}
