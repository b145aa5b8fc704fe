//! The project's own stores, by name. Any other is benched through [`Benched`].

use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore, SystemClock};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use kagzi_testkit::TestDatabase;
use tempfile::TempDir;

use crate::benched::{Bed, Benched};

/// The database file of a place.
const SQLITE_FILE: &str = "kagzi.db";

/// Finished runs of one queue, with ids in the order of time as real ones have.
const FILL_POSTGRES: &str = "
    INSERT INTO runs (run_id, partition, namespace, queue, workflow_type, state, priority, due_at, claim_rank,
                      fencing_token, claims, lost_leases, failures, budget_token, created_at, updated_at, finished_at)
    SELECT (lpad(to_hex(1700000000000 + n), 12, '0') || '7' || substr(md5(n::text), 1, 3)
               || '8' || substr(md5(n::text), 4, 15))::uuid,
           0, 'bench', 'growth', 'five-steps', 'COMPLETED', 0, at, 0, 1, 1, 0, 0, 0, at, at, at
    FROM generate_series({from}, {to}) n, LATERAL (SELECT timestamptz '2025-01-01' + n * interval '1 ms') AS t (at);
    ANALYZE runs;";
const FILL_SQLITE: &str = "
    PRAGMA busy_timeout = 10000;
    WITH RECURSIVE n (n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM n WHERE n < {to})
    INSERT INTO runs (run_id, namespace, queue, workflow_type, state, priority, due_at, claim_rank,
                      fencing_token, claims, lost_leases, failures, budget_token, created_at, updated_at, finished_at)
    SELECT unhex(format('%012x7%03x8%015x', 1700000000000 + n, n % 4096, n)),
           'bench', 'growth', 'five-steps', 'COMPLETED', 0, n * 1000, 0, 1, 1, 0, 0, 0, n * 1000, n * 1000, n * 1000
    FROM n;";

/// Whatever stood in the way; the text is shown.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// The reference store; nothing is durable.
    Memory,
    /// A file of its own in the temporary directory.
    Sqlite,
    /// A database of its own on the server that tests use.
    Postgres,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Sqlite, Self::Postgres];

    /// As it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

#[async_trait]
impl Benched for Backend {
    fn name(&self) -> &str {
        Self::name(*self)
    }

    async fn open(&self, clock: Option<Arc<dyn Clock>>) -> Result<Box<dyn Bed>, Failed> {
        let place = Place::fresh(*self).await?;
        let store = place.open_by(clock).await?;
        Ok(Box::new(Opened { store, place }))
    }

    fn most_finished_runs(&self) -> u32 {
        // A store in memory is not meant to grow.
        if *self == Self::Memory { 0 } else { u32::MAX }
    }
}

/// A place with one store open on it.
#[derive(Debug)]
struct Opened {
    store: SharedStore,
    place: Place,
}

#[async_trait]
impl Bed for Opened {
    fn store(&self) -> SharedStore {
        Arc::clone(&self.store)
    }

    async fn fill_with_finished_runs(&self, from: u32, to: u32) -> Result<(), Failed> {
        self.place.fill_with_finished_runs(from, to).await
    }
}

/// An empty place for a store. Dropping it removes the data.
#[derive(Debug)]
pub struct Place {
    backend: Backend,
    url: String,
    database: Option<TestDatabase>,
    directory: TempDir,
}

impl Place {
    /// A fresh place.
    ///
    /// # Errors
    ///
    /// No directory, or no Postgres.
    pub async fn fresh(backend: Backend) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let mut database = None;
        let url = match backend {
            Backend::Memory => "memory:".to_owned(),
            Backend::Sqlite => format!("sqlite://{}", directory.path().join(SQLITE_FILE).display()),
            Backend::Postgres => {
                let fresh = kagzi_testkit::postgres().await?.fresh_database().await?;
                database.insert(fresh).url()
            }
        };
        Ok(Self { backend, url, database, directory })
    }

    /// The URL that a server opens it by.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory that goes with it.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The Postgres database, if it is one.
    pub const fn database(&self) -> Option<&TestDatabase> {
        self.database.as_ref()
    }

    /// Puts finished runs, numbered `from` to `to`, into the tables of an opened store, past its
    /// interface: through it they would take hours.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn fill_with_finished_runs(&self, from: u32, to: u32) -> Result<(), Failed> {
        let numbered =
            |script: &str| script.replace("{from}", &from.to_string()).replace("{to}", &to.to_string());
        match (self.backend, &self.database) {
            (Backend::Postgres, Some(database)) => {
                database.run(numbered(FILL_POSTGRES)).await?;
            }
            (Backend::Sqlite, _) => {
                let database = self.directory.path().join(SQLITE_FILE);
                let script = numbered(FILL_SQLITE);
                let fill = move || rusqlite::Connection::open(database)?.execute_batch(&script);
                tokio::task::spawn_blocking(fill).await??;
            }
            _ => return Err("only a database can be filled".into()),
        }
        Ok(())
    }

    /// Opens a store on it.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub async fn open(&self) -> Result<SharedStore, Failed> {
        self.open_by(None).await
    }

    /// Opens a store on it that tells the time by `clock`.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub async fn open_with(&self, clock: Arc<dyn Clock>) -> Result<SharedStore, Failed> {
        self.open_by(Some(clock)).await
    }

    async fn open_by(&self, clock: Option<Arc<dyn Clock>>) -> Result<SharedStore, Failed> {
        let or_the_systems = || clock.clone().unwrap_or_else(|| Arc::new(SystemClock));
        Ok(match self.backend {
            Backend::Memory => Arc::new(MemoryStore::new(or_the_systems(), Rules::default())),
            Backend::Sqlite => {
                let options = SqliteOptions::from_url(&self.url)?.clock(or_the_systems());
                Arc::new(SqliteStore::open(options).await?)
            }
            Backend::Postgres => {
                let mut options = PostgresOptions::new(&self.url);
                options.clock = clock;
                Arc::new(PostgresStore::connect(options).await?)
            }
        })
    }
}
