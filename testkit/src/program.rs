//! Running the programs of servers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::TestkitError;

/// Who servers run as: they refuse to run as root.
#[derive(Debug)]
pub(crate) struct Unprivileged(Option<String>);

impl Unprivileged {
    /// Nobody special unless we are root.
    pub(crate) fn find() -> Result<Self, TestkitError> {
        let output = run(Command::new("id").arg("-u"))?;
        if String::from_utf8_lossy(&output.stdout).trim() != "0" {
            return Ok(Self(None));
        }
        ["postgres", "nobody"]
            .into_iter()
            .find(|user| id_of(user, "-u").is_ok())
            .map(|user| Self(Some(user.to_owned())))
            .ok_or_else(|| TestkitError::Program {
                program: "postgres".to_owned(),
                detail: "it refuses to run as root, and there is no user `postgres` or `nobody`".to_owned(),
            })
    }

    /// Makes a file or directory theirs.
    pub(crate) fn own(&self, path: &Path) -> Result<(), TestkitError> {
        if let Some(user) = &self.0 {
            std::os::unix::fs::chown(path, Some(id_of(user, "-u")?), Some(id_of(user, "-g")?))?;
        }
        Ok(())
    }

    /// The words to put in front of a program so that it runs as them.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let Some(user) = &self.0 else { return Vec::new() };
        if find_in_path("setpriv").is_some() {
            let words =
                ["setpriv", &format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", "--"]
                    .map(Into::into);
            // `nobody` has a group of another name on some systems.
            if run(Command::new(&words[0]).args(&words[1..]).arg("true")).is_ok() {
                return words.into();
            }
        }
        ["runuser", "-u", user, "--"].map(Into::into).into()
    }
}

pub(crate) fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn id_of(user: &str, which: &str) -> Result<u32, TestkitError> {
    let output = run(Command::new("id").arg(which).arg(user))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| TestkitError::Program {
        program: "id".to_owned(),
        detail: format!("expected a number, got {:?}", text.trim()),
    })
}

pub(crate) fn run(command: &mut Command) -> Result<Output, TestkitError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| TestkitError::Program { program: program.clone(), detail: error.to_string() })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(TestkitError::Program { program, detail: format!("{}: {said}", output.status) })
}

/// The end of the log that a server writes into its directory.
pub(crate) fn log_end(directory: &Path) -> String {
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().fold(String::new(), |text, line| text + "\n" + line)
}
