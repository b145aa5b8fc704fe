//! The project's own stores alone. `cargo bench -p kagzi-benches --bench store -- sqlite` benches one.

use kagzi_benches::backends::{Backend, Failed};
use kagzi_benches::suite;

fn main() -> Result<(), Failed> {
    suite::bench(&[&Backend::Memory, &Backend::Sqlite, &Backend::Postgres])
}
