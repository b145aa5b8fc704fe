//! What a command answers when it cannot do what it was asked: exit codes and the message.

use std::fmt;
use std::process::ExitCode;

/// How a command ends. The numbers are part of the command line's contract; `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The operation failed, or the run that was waited for did.
    Failed = 1,
    /// The command line asks for something that makes no sense. `clap` uses the same number.
    Usage = 2,
    /// There is no such run.
    NotFound = 3,
    /// The server or its store cannot be reached now.
    Unavailable = 4,
    /// The run that was waited for has not finished in time, or the queue has not drained.
    TimedOut = 5,
    /// The server does not know who asks, or does not let them do this.
    Refused = 6,
    /// Stopped by Ctrl-C, as shells number it.
    Interrupted = 130,
    /// Stopped by SIGTERM, as shells number it.
    Terminated = 143,
}

impl Exit {
    /// What the end of a child, which is this same program, means for its parent.
    pub const fn of_child(code: Option<i32>) -> Self {
        match code {
            Some(2) => Self::Usage,
            Some(4) => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The part of `--help` that scripts are written against, and a word to newcomers.
pub const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    the operation failed, or the run that was waited for did
  2    the command line is wrong, or a value is outside its rule
  3    there is no such run
  4    the server or its store cannot be reached, or cannot work, now; try again later
  5    --timeout has passed before the run has finished, or the queue has drained; both go on
  6    the server does not know you, or does not let you do this
  130  stopped by Ctrl-C; `serve` and `dev` drain and end with 0
  143  stopped by SIGTERM; likewise

New here? `kagzi demo` backs up the directory you stand in, kills its own worker half way,
and proves from the records that nothing was lost and nothing was done twice.";

/// A failure as people need it: what failed, why, and what to do.
#[derive(Debug)]
pub struct CliError {
    /// How the process ends.
    pub exit: Exit,
    /// What could not be done.
    pub what: String,
    /// Why not.
    pub why: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl CliError {
    /// A failure of the operation itself.
    pub fn failed(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { exit: Exit::Failed, what: what.into(), why: why.to_string(), remedy: None }
    }

    /// A command line that makes no sense.
    pub fn usage(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(what, why) }
    }

    /// The same with something to do about it.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  why: {}", self.what, self.why)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  try: {remedy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_and_what_to_do() {
        let error = CliError::usage("could not read --input", "it is not JSON").remedy("quote it");
        assert_eq!(
            error.to_string(),
            "error: could not read --input\n  why: it is not JSON\n  try: quote it"
        );
    }
}
