//! A backend that is not the project's own under the same benches: all that its author writes.

use std::sync::Arc;

use async_trait::async_trait;
use kagzi_benches::backends::Failed;
use kagzi_benches::benched::{Bed, Benched};
use kagzi_benches::suite;
use kagzi_core::{Clock, Rules, SharedStore, SystemClock};
use kagzi_store_redb::RedbStore;
use tempfile::TempDir;

#[derive(Debug)]
struct Redb;

#[derive(Debug)]
struct Opened {
    store: SharedStore,
    _directory: TempDir,
}

#[async_trait]
impl Benched for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    async fn open(&self, clock: Option<Arc<dyn Clock>>) -> Result<Box<dyn Bed>, Failed> {
        let directory = tempfile::tempdir()?;
        let clock = clock.unwrap_or_else(|| Arc::new(SystemClock));
        let store = RedbStore::open(directory.path().join("kagzi.redb"), clock, Rules::default()).await?;
        Ok(Box::new(Opened { store: Arc::new(store), _directory: directory }))
    }
}

impl Bed for Opened {
    fn store(&self) -> SharedStore {
        Arc::clone(&self.store)
    }
}

fn main() -> Result<(), Failed> {
    suite::bench(&[&Redb])
}
