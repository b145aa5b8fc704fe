//! The suite over the SQLite store.

use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;

#[derive(Debug)]
struct Sqlite;

#[derive(Debug)]
struct Opened {
    store: SharedStore,
    options: SqliteOptions,
    _directory: TempDir,
}

async fn handle(options: &SqliteOptions) -> Result<SharedStore, FixtureError> {
    Ok(Arc::new(SqliteStore::open(options.clone()).await?))
}

#[async_trait::async_trait]
impl Fixture for Sqlite {
    fn name(&self) -> String {
        "sqlite".to_owned()
    }

    fn capabilities(&self) -> Vec<Capability> {
        vec![Capability::SecondHandle, Capability::Reopen]
    }

    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        let directory = tempfile::tempdir()?;
        let options = SqliteOptions::new(directory.path().join("kagzi.db")).clock(clock).rules(rules);
        Ok(Box::new(Opened { store: handle(&options).await?, options, _directory: directory }))
    }
}

#[async_trait::async_trait]
impl Instance for Opened {
    fn store(&self) -> SharedStore {
        Arc::clone(&self.store)
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        handle(&self.options).await
    }

    async fn reopen(&mut self) -> Result<(), FixtureError> {
        // Let go of before the file is opened again.
        self.store = Arc::new(MemoryStore::default());
        self.store = handle(&self.options).await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    kagzi_conformance::test_main(Sqlite)
}
