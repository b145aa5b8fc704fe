//! The suite over the Postgres store on a Citus cluster, where there is one.

mod fixture;

fn main() -> std::process::ExitCode {
    fixture::play(7, fixture::Between::Citus)
}
