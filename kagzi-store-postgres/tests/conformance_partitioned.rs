//! The suite over the Postgres store, with the runs spread over seven partitions.

mod fixture;

fn main() -> std::process::ExitCode {
    fixture::play(7, fixture::Between::Nothing)
}
