//! Crash rounds over the SQLite store.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use kagzi_conformance::{CrashFixture, CrashPlace, DatabaseProcess, FixtureError};
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;

#[derive(Debug)]
struct Sqlite;

#[derive(Debug)]
struct Directory(TempDir);

#[async_trait::async_trait]
impl CrashFixture for Sqlite {
    fn name(&self) -> String {
        "sqlite".to_owned()
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
        let options = SqliteOptions::new(address).clock(clock).rules(rules);
        Ok(Arc::new(SqliteStore::open(options).await?))
    }
}

impl CrashPlace for Directory {
    fn address(&self) -> String {
        self.0.path().join("kagzi.db").display().to_string()
    }
}

fn main() -> ExitCode {
    kagzi_conformance::crash_main(Sqlite)
}
