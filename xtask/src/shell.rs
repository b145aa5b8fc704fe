//! Running programs.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// `cargo` with the arguments, at the root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// A program that was built with optimisation, at the root; cargo puts it beside the folder of this one.
pub fn released(program: &str) -> Result<Command, String> {
    let this = std::env::current_exe().map_err(|error| format!("where is xtask? {error}"))?;
    let target = this.parent().and_then(Path::parent).ok_or("xtask is not in a target directory")?;
    let mut command = Command::new(target.join("release").join(program));
    command.current_dir(root());
    Ok(command)
}

/// Runs a command that must succeed, saying what it is and how long it took.
pub fn run(what: &str, command: &mut Command) -> Result<(), String> {
    println!("\n=== {what}");
    let started = Instant::now();
    let status = command.status().map_err(|error| format!("{what}: cannot run {command:?}: {error}"))?;
    println!("=== {what}: {} s", started.elapsed().as_secs());
    if status.success() { Ok(()) } else { Err(format!("{what} failed ({status}): {command:?}")) }
}

/// Like [`run`], but gives the last line that the command wrote, which is its verdict, and adds nothing
/// below it.
pub fn run_to_verdict(what: &str, command: &mut Command) -> Result<String, String> {
    println!("\n=== {what}");
    let cannot = |error: &std::io::Error| format!("{what}: cannot run: {error}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| cannot(&error))?;
    let mut verdict = String::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            verdict = line.map_err(|error| cannot(&error))?;
            println!("{verdict}");
        }
    }
    let status = child.wait().map_err(|error| cannot(&error))?;
    if status.success() { Ok(verdict) } else { Err(format!("{what} failed ({status}): {verdict}")) }
}

/// Whether a program is there and answers.
pub fn answers(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
