//! The binary `kagzi`: server, client and demo in one.

mod cli;
mod demo;

fn main() -> std::process::ExitCode {
    cli::run()
}
