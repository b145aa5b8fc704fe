//! The suite over the Postgres store behind a real PgBouncer that pools by the transaction.

mod fixture;

fn main() -> std::process::ExitCode {
    fixture::play(1, fixture::Between::Pooler)
}
