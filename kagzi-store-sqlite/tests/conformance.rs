//! The suite over the SQLite store.

use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;

#[derive(Debug)]
struct Sqlite;

#[derive(Debug)]
struct Opened {
    store: Option<SharedStore>,
    options: SqliteOptions,
    _directory: TempDir,
}

impl Opened {
    async fn handle(&self) -> Result<SharedStore, FixtureError> {
        Ok(Arc::new(SqliteStore::open(self.options.clone()).await?))
    }
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
        let mut opened = Opened { store: None, options, _directory: directory };
        opened.store = Some(opened.handle().await?);
        Ok(Box::new(opened))
    }
}

#[async_trait::async_trait]
impl Instance for Opened {
    fn store(&self) -> SharedStore {
        self.store.clone().unwrap()
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        self.handle().await
    }

    async fn reopen(&mut self) -> Result<(), FixtureError> {
        self.store = None;
        self.store = Some(self.handle().await?);
        Ok(())
    }
}

fn main() -> ExitCode {
    kagzi_conformance::test_main(Sqlite)
}
