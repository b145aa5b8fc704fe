//! The suite over the Postgres store.

mod fixture;

fn main() -> std::process::ExitCode {
    fixture::play(1, fixture::Between::Nothing)
}
