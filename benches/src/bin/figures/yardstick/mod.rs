//! The yardsticks: what the databases do without kagzi, in the same round on the same machine.

mod pgbench;
mod sqlite;

use kagzi_benches::backends::{Backend, Failed};

use crate::metrics::Metrics;

/// Those of a backend.
pub async fn measure(backend: Backend, metrics: &mut Metrics) -> Result<(), Failed> {
    match backend {
        Backend::Memory => Ok(()),
        Backend::Sqlite => sqlite::measure(metrics),
        Backend::Postgres => pgbench::measure(metrics).await,
    }
}
