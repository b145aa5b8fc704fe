//! End to end: `kagzi serve` and workers as real processes, over real databases, killed with SIGKILL
//! and paused with SIGSTOP. Nothing here waits by the clock: a case goes on when a process says a line
//! or a call answers.
//!
//! The test program is its own worker: started with `KAGZI_E2E_WORKER` it becomes one.

mod cases;
mod clock;
mod collector;
mod disk;
mod log;
mod process;
mod worker;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use world::Database;

fn main() -> ExitCode {
    if std::env::var_os(worker::ROLE).is_some() {
        return worker::main();
    }
    let arguments = Arguments::from_args();
    let trials = [Database::Sqlite, Database::Postgres]
        .into_iter()
        .flat_map(|database| {
            cases::ALL.iter().filter(move |case| case.runs_on(database)).map(move |case| {
                Trial::ignorable_test(format!("{}::{}", database.name(), case.name), move || {
                    case.play(database)
                })
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
