//! `cargo xtask saboteurs` and `cargo xtask soak`: what the suite is worth, and whether it agrees with itself.

use std::process::Command;

use crate::postgres::{self, Source};
use crate::shell::{self, cargo};

fn saboteurs(source: Source, arguments: &[&str]) -> Command {
    let mut command = cargo(&["run", "--locked", "--quiet", "--package", "kagzi-saboteurs"]);
    command.args(source.cargo_features()).arg("--").args(arguments);
    command
}

/// Lets the suite meet every broken store; gives the verdict, `saboteurs caught N of N`.
pub fn judge(source: Source, arguments: &[&str]) -> Result<String, String> {
    shell::run_to_verdict("saboteurs", &mut saboteurs(source, arguments))
}

/// `cargo xtask saboteurs`.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    judge(postgres::find_or_install()?, arguments).map(drop)
}

/// `cargo xtask soak`: the suite over each store, again and again.
pub fn soak(rounds: &str, filters: &[&str]) -> Result<(), String> {
    let source = postgres::find_or_install()?;
    let arguments: Vec<&str> = ["--soak", rounds].into_iter().chain(filters.iter().copied()).collect();
    shell::run_to_verdict("soak", &mut saboteurs(source, &arguments)).map(drop)
}
