//! `cargo xtask bench`: the figures of both databases, beside their yardsticks and targets.

use crate::postgres;
use crate::shell::{self, cargo};

/// Builds the server and the measuring program with optimisation and runs the latter.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let source = postgres::find_or_install()?;
    let server = ["build", "--release", "--locked", "--package", "kagzi-server", "--bin", "kagzi"];
    shell::run("build the server", &mut cargo(&server))?;
    let mut figures = cargo(&["run", "--release", "--locked", "--quiet", "--package", "kagzi-benches"]);
    figures.args(["--bin", "figures"]).args(source.cargo_features()).arg("--").args(arguments);
    shell::run("figures", &mut figures)
}
