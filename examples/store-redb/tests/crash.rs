//! Crash rounds over the redb store.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{CrashFixture, CrashPlace, DatabaseProcess, FixtureError};
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_redb::RedbStore;
use tempfile::TempDir;

#[derive(Debug)]
struct Redb;

#[derive(Debug)]
struct Directory(TempDir);

#[async_trait::async_trait]
impl CrashFixture for Redb {
    fn name(&self) -> String {
        "redb".to_owned()
    }

    fn database(&self) -> DatabaseProcess {
        DatabaseProcess::Embedded
    }

    async fn place(&self) -> Result<Box<dyn CrashPlace>, FixtureError> {
        // SIGKILL takes nothing that the kernel has, so that memory serves as well as a disk, and leaves
        // the time to the writes.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        Ok(Box::new(Directory(directory)))
    }

    async fn open(
        &self,
        address: &str,
        clock: Arc<dyn Clock>,
        rules: Rules,
    ) -> Result<SharedStore, FixtureError> {
        Ok(Arc::new(RedbStore::open(address, clock, rules).await?))
    }
}

impl CrashPlace for Directory {
    fn address(&self) -> String {
        self.0.path().join("kagzi.redb").display().to_string()
    }
}

fn main() -> ExitCode {
    kagzi_conformance::crash_main(Redb)
}
