//! `cargo xtask bench`: the figures of both databases, beside their yardsticks and targets.

use crate::postgres;
use crate::shell::{self, cargo};

/// Builds the server and the measuring program with optimisation and runs the latter. One command
/// builds both: features are unified over what a command names, so that two commands would build
/// the stores and their databases twice.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let source = postgres::find_or_install()?;
    let mut build = cargo(&["build", "--release", "--locked"]);
    build.args([
        "--package",
        "kagzi-server",
        "--bin",
        "kagzi",
        "--package",
        "kagzi-benches",
        "--bin",
        "figures",
    ]);
    build.args(source.cargo_features());
    shell::run("build the server and the figures", &mut build)?;
    shell::run("figures", shell::released("figures")?.args(arguments))
}
