//! The suite over the redb store.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_redb::RedbStore;
use tempfile::TempDir;

#[derive(Debug)]
struct Redb;

#[derive(Debug)]
struct Opened {
    store: SharedStore,
    path: PathBuf,
    clock: Arc<dyn Clock>,
    rules: Rules,
    _directory: TempDir,
}

#[async_trait::async_trait]
impl Fixture for Redb {
    fn name(&self) -> String {
        "redb".to_owned()
    }

    fn capabilities(&self) -> Vec<Capability> {
        vec![Capability::SecondHandle, Capability::Reopen]
    }

    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("kagzi.redb");
        let store = Arc::new(RedbStore::open(&path, Arc::clone(&clock), rules.clone()).await?);
        Ok(Box::new(Opened { store, path, clock, rules, _directory: directory }))
    }
}

#[async_trait::async_trait]
impl Instance for Opened {
    fn store(&self) -> SharedStore {
        Arc::clone(&self.store)
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        Ok(Arc::new(RedbStore::open(&self.path, Arc::clone(&self.clock), self.rules.clone()).await?))
    }

    async fn reopen(&mut self) -> Result<(), FixtureError> {
        // Let go of, without closing it, before the file is opened again.
        self.store = Arc::new(MemoryStore::default());
        self.store = self.second_handle().await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    kagzi_conformance::test_main(Redb)
}
