//! The binary `kagzi`: server, client, demo and bench in one.

mod bench;
mod cli;
mod demo;
mod lifeline;
mod scratch;

fn main() -> std::process::ExitCode {
    cli::run()
}
