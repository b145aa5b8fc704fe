//! `cargo xtask bench`: the end-to-end load, over both databases.

use crate::postgres;
use crate::shell::{self, cargo};

/// Builds the load generator with optimisation and runs it.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let source = postgres::find_or_install()?;
    let server = ["build", "--release", "--locked", "--package", "kagzi-server", "--bin", "kagzi"];
    shell::run("build the server", &mut cargo(&server))?;
    let mut load = cargo(&["run", "--release", "--locked", "--quiet", "--package", "kagzi-benches"]);
    load.args(["--bin", "load"]).args(source.cargo_features()).arg("--").args(arguments);
    shell::run("end-to-end load", &mut load)
}
