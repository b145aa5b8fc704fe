//! The binary `kagzi`: server, client, demo and bench in one.

mod bench;
mod cli;
mod demo;
mod lifeline;
mod scratch;

/// Every call allocates and frees on different threads, which is where the C library's allocator is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
