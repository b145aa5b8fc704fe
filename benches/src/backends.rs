//! The stores that are benched, by name. A new backend is benched by adding it here.

use std::sync::Arc;

use kagzi_core::SharedStore;
use kagzi_core::memory::MemoryStore;
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use kagzi_testkit::TestDatabase;
use tempfile::TempDir;

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
            Backend::Sqlite => format!("sqlite://{}", directory.path().join("kagzi.db").display()),
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

    /// Opens a store on it.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub async fn open(&self) -> Result<SharedStore, Failed> {
        Ok(match self.backend {
            Backend::Memory => Arc::new(MemoryStore::default()),
            Backend::Sqlite => Arc::new(SqliteStore::open(SqliteOptions::from_url(&self.url)?).await?),
            Backend::Postgres => Arc::new(PostgresStore::connect(PostgresOptions::new(&self.url)).await?),
        })
    }
}
