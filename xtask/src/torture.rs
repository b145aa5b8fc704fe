//! `cargo xtask torture`: everything at once, for as long as one likes.

use crate::postgres;
use crate::shell::{self, cargo};

/// Builds the torture without optimisation, so that debug assertions and overflow checks judge too, and
/// runs it.
pub fn run(arguments: &[&str]) -> Result<(), String> {
    let source = postgres::find_or_install()?;
    let mut torture = cargo(&["run", "--locked", "--quiet", "--package", "kagzi-torture"]);
    torture.args(source.cargo_features()).arg("--").args(arguments);
    shell::run("torture", &mut torture)
}
