//! Crash rounds over the Postgres store: of programs that write, and of the server itself.

use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{CrashFixture, CrashPlace, DatabaseProcess, FixtureError};
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::{ClusterOptions, PostgresCluster};

#[derive(Debug)]
struct Postgres;

/// A cluster of its own, since the server is killed.
#[derive(Debug)]
struct Cluster(PostgresCluster);

#[async_trait::async_trait]
impl CrashFixture for Postgres {
    fn name(&self) -> String {
        "postgres".to_owned()
    }

    fn database(&self) -> DatabaseProcess {
        DatabaseProcess::Server
    }

    async fn place(&self) -> Result<Box<dyn CrashPlace>, FixtureError> {
        Ok(Box::new(Cluster(PostgresCluster::start(ClusterOptions::default()).await?)))
    }

    async fn open(
        &self,
        address: &str,
        clock: Arc<dyn Clock>,
        rules: Rules,
    ) -> Result<SharedStore, FixtureError> {
        let options = PostgresOptions {
            partitions: Some(3),
            clock: Some(clock),
            rules,
            ..PostgresOptions::new(address)
        };
        Ok(Arc::new(PostgresStore::connect(options).await?))
    }
}

#[async_trait::async_trait]
impl CrashPlace for Cluster {
    fn address(&self) -> String {
        self.0.url()
    }

    async fn kill_database(&mut self) -> Result<(), FixtureError> {
        self.0.kill()?;
        Ok(self.0.restart().await?)
    }
}

fn main() -> ExitCode {
    kagzi_conformance::crash_main(Postgres)
}
