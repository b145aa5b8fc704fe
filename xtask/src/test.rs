//! `cargo xtask test`: everything that CI checks, on a machine with Rust alone.

use crate::deny;
use crate::postgres;
use crate::report;
use crate::saboteurs;
use crate::shell::{self, cargo};

/// How much to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    Full,
    /// Tests only.
    Quick,
}

/// The programs in `examples/` that run to their end by themselves.
const EXAMPLES: &[&str] = &["hello", "order", "parallel", "reminder", "tracing"];

/// Checks everything, stops at the first failure, and closes with the cases per store and the saboteurs
/// that they caught.
pub fn run(extent: Extent) -> Result<(), String> {
    if extent == Extent::Full {
        shell::run("format", &mut cargo(&["fmt", "--all", "--check"]))?;
        deny::check()?;
        let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
        shell::run("lints", &mut cargo(&lints))?;
        let docs = ["doc", "--workspace", "--no-deps", "--locked", "--quiet"];
        shell::run("docs", cargo(&docs).env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    let source = postgres::find_or_install()?;
    postgres::find_or_install_pooler()?;
    postgres::find_or_install_clocks()?;
    let report = report::fresh_file()?;

    let mut tests = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    tests.args(source.cargo_features()).env("KAGZI_CONFORMANCE_REPORT", &report);
    shell::run("unit tests, conformance suite, end-to-end tests", &mut tests)?;

    for example in EXAMPLES {
        let arguments = ["run", "--locked", "--quiet", "--package", "kagzi-examples", "--example", example];
        shell::run(&format!("example {example}"), &mut cargo(&arguments))?;
    }
    let verdict = saboteurs::judge(source, &[]);
    report::print(&report)?;
    println!("{}", verdict?);
    Ok(())
}
