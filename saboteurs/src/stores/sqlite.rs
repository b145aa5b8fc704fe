//! The SQLite store, as it is or over a file that somebody has tampered with.

use std::path::Path;
use std::sync::Arc;

use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::patch::{Patch, patched};

/// The schema that the store makes for itself.
const SCHEMA: &str = include_str!("../../../kagzi-store-sqlite/src/migrations/0001_runs_and_steps.sql");

/// What is done to the file of a store.
#[derive(Clone, Copy, Debug)]
pub enum Tampering {
    /// Nothing.
    None,
    /// This is run on it once the store has made its schema.
    Script(&'static str),
    /// Its schema is made with this change, before the store opens it.
    Schema(&'static [Patch]),
    /// When it is opened again, the last commit in its log was never flushed.
    TornLog,
}

/// The store over a file that was tampered with.
#[derive(Debug)]
pub struct Sqlite(pub Tampering);

#[derive(Debug)]
struct Opened {
    store: SharedStore,
    options: SqliteOptions,
    clock: Arc<dyn Clock>,
    rules: Rules,
    tampering: Tampering,
    directory: TempDir,
}

async fn handle(options: &SqliteOptions) -> Result<SharedStore, FixtureError> {
    Ok(Arc::new(SqliteStore::open(options.clone()).await?))
}

fn options(directory: &TempDir, clock: &Arc<dyn Clock>, rules: &Rules) -> SqliteOptions {
    SqliteOptions::new(directory.path().join("kagzi.db")).clock(Arc::clone(clock)).rules(rules.clone())
}

/// Makes the schema as the store would, but for the patches.
fn make_schema(path: &Path, patches: &[Patch]) -> Result<(), FixtureError> {
    let schema = patches.iter().try_fold(SCHEMA.to_owned(), |schema, patch| patched(&schema, patch))?;
    let connection = Connection::open(path)?;
    connection.execute_batch(&schema)?;
    // How the store knows its own file, and its version.
    connection.execute_batch("PRAGMA application_id = 0x6b61677a; PRAGMA user_version = 1;")?;
    Ok(())
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
        let options = options(&directory, &clock, &rules);
        let path = directory.path().join("kagzi.db");
        if let Tampering::Schema(patches) = self.0 {
            make_schema(&path, patches)?;
        }
        let store = handle(&options).await?;
        if let Tampering::Script(script) = self.0 {
            Connection::open(&path)?.execute_batch(script)?;
        }
        Ok(Box::new(Opened { store, options, clock, rules, tampering: self.0, directory }))
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
        if matches!(self.tampering, Tampering::TornLog) {
            // What a machine finds that lost its power now: the file and its log, less what was not flushed.
            let directory = tempfile::tempdir()?;
            std::fs::copy(self.directory.path().join("kagzi.db"), directory.path().join("kagzi.db"))?;
            let mut log = std::fs::read(self.directory.path().join("kagzi.db-wal"))?;
            log.truncate(before_the_last_commit(&log));
            std::fs::write(directory.path().join("kagzi.db-wal"), log)?;
            self.options = options(&directory, &self.clock, &self.rules);
            self.directory = directory;
        }
        // Let go of before the file is opened again.
        self.store = Arc::new(MemoryStore::default());
        self.store = handle(&self.options).await?;
        Ok(())
    }
}

/// The length of a write-ahead log without its last commit. Frames of a page each follow a header of 32
/// bytes; a frame's own header of 24 bytes holds, in its second word, the size of the database if the
/// frame ends a commit, else zero.
fn before_the_last_commit(log: &[u8]) -> usize {
    const HEADER: usize = 32;
    const FRAME_HEADER: usize = 24;
    let word = |at: usize| {
        log.get(at..at + 4).map_or(0, |word| word.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let frame = FRAME_HEADER + word(8);
    let commits: Vec<usize> = (HEADER..log.len()).step_by(frame).filter(|at| word(at + 4) != 0).collect();
    match commits.as_slice() {
        [.., before, _] => before + frame,
        _ => HEADER.min(log.len()),
    }
}
