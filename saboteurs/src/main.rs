//! Stores broken on purpose, one bug each, and the proof that the suite catches every one of them.
//!
//! `cargo xtask saboteurs` runs this. A suite that passes says little about a store unless it is known
//! what it would have caught; each saboteur here names the cases that are there for its bug, and this
//! program fails when one gets away, or when a case fails over a store that nobody broke.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that people run")]

mod alone;
mod arguments;
mod judge;
mod list;
mod patch;
mod reasons;
mod soak;
mod stores;
mod wrapped;

use std::process::ExitCode;

use arguments::{Arguments, Chore};
use kagzi_conformance::Settings;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no tokio runtime: {error}");
            return ExitCode::from(2);
        }
    };
    let good = runtime.block_on(async {
        match &arguments.chore {
            Chore::Judge(extent) => judge::run(*extent, settings, &arguments.filters).await,
            Chore::Soak { rounds, store } => soak::run(*rounds, *store, settings, &arguments.filters).await,
            Chore::Alone => alone::run(settings, &arguments.filters).await,
            Chore::Reasons(table) => reasons::run(*table).await,
        }
    });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
