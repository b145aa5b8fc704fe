//! Fresh stores beside a user's data, all of which are removed at the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kagzi_conformance::{Capability, Fixture, FixtureError, Instance};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore, StoreError, SystemClock};
use kagzi_server::{ServerError, unknown_store, without_password};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};

use crate::cli::error::CliError;
use crate::cli::host::server_failed;
use crate::scratch::unique_name;

/// How many connections one handle may open. Four cases run at a time, some with two handles, and a
/// server allows 100 connections unless configured otherwise.
const CONNECTIONS: u32 = 8;

const WHAT: &str = "could not judge the store";

/// A fixture that makes every store in a place of its own within one that is its own.
#[derive(Debug)]
pub struct Scratch {
    url: String,
    kind: Kind,
    cases: AtomicU32,
    /// The places that were made and not yet removed.
    made: Arc<Mutex<BTreeSet<Place>>>,
    /// Whether the command ends: nothing is opened any more.
    ends: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Kind {
    Memory,
    /// The directory of all cases.
    Sqlite(PathBuf),
    /// The options without a schema, and what the names of all schemas begin with.
    Postgres(Box<PostgresOptions>, String),
}

/// Where one case has its data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Directory(PathBuf),
    Schema(String),
}

impl Scratch {
    /// A fixture for the store at `url`. Makes nothing yet, except the directory for SQLite.
    ///
    /// # Errors
    ///
    /// [`CliError`] for a URL that no backend knows, or a directory that cannot be made.
    pub fn new(url: &str) -> Result<Self, CliError> {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        let kind = match scheme.as_str() {
            "memory" => Kind::Memory,
            "sqlite" => {
                let options = SqliteOptions::from_url(url).map_err(|error| CliError::usage(WHAT, error))?;
                Kind::Sqlite(directory_beside(options.path())?)
            }
            "postgres" | "postgresql" => {
                let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
                if parameters.split('&').any(|parameter| parameter.starts_with("schema=")) {
                    return Err(CliError::usage(WHAT, "schema: every case has a schema of its own")
                        .remedy("leave the parameter `schema` out of the URL"));
                }
                let prefix = unique_name("kagzi_conformance").replace('-', "_");
                Kind::Postgres(
                    Box::new(PostgresOptions { max_connections: CONNECTIONS, ..PostgresOptions::new(url) }),
                    prefix,
                )
            }
            _ => return Err(server_failed(WHAT, &unknown_store())),
        };
        let (cases, made, ends) = (AtomicU32::new(0), Arc::default(), Arc::default());
        Ok(Self { url: without_password(url), kind, cases, made, ends })
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<Place>> {
        lock(&self.made)
    }

    /// Opens one store and removes it, to learn whether the URL is right.
    ///
    /// # Errors
    ///
    /// [`CliError`] if it cannot be opened.
    pub async fn try_out(&self) -> Result<(), CliError> {
        let source = match self.make(Arc::new(SystemClock), Rules::default()).await {
            Ok(made) => match made.finish().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            Err(error) => error,
        };
        Err(server_failed(WHAT, &ServerError::OpenStore { url: self.url.clone(), source }))
    }

    async fn make(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Made, StoreError> {
        let case = self.cases.fetch_add(1, Ordering::Relaxed);
        let (opener, place) = match &self.kind {
            Kind::Memory => (Opener::Memory(MemoryStore::new(clock, rules)), None),
            Kind::Sqlite(directory) => {
                let directory = directory.join(format!("case-{case}"));
                let options = SqliteOptions::new(directory.join("kagzi.db")).clock(clock).rules(rules);
                (Opener::Sqlite(options), Some(Place::Directory(directory)))
            }
            Kind::Postgres(options, prefix) => {
                let schema = format!("{prefix}_{case}");
                let (clock, schema_of) = (Some(clock), Some(schema.clone()));
                let options = PostgresOptions { clock, rules, schema: schema_of, ..(**options).clone() };
                (Opener::Postgres(Box::new(options)), Some(Place::Schema(schema)))
            }
        };
        if let Some(place) = &place {
            // Noted before it is made, so that nothing is forgotten whenever the command ends.
            self.made().insert(place.clone());
            if let Place::Directory(directory) = place {
                std::fs::create_dir(directory).map_err(|error| not_made(directory, &error))?;
            }
        }
        let ends = Arc::clone(&self.ends);
        let store = opener.open(&ends).await?;
        Ok(Made { store, opener, place, all_places: Arc::clone(&self.made), ends })
    }

    /// Removes whatever is left. Nothing is opened any more from here on.
    ///
    /// # Errors
    ///
    /// [`CliError`] naming what could not be removed.
    pub async fn remove_all(&self) -> Result<(), CliError> {
        self.ends.store(true, Ordering::SeqCst);
        let left: Vec<Place> = self.made().iter().cloned().collect();
        let mut failed = Vec::new();
        for place in left {
            let removed = match (&place, &self.kind) {
                (Place::Schema(schema), Kind::Postgres(options, _)) => {
                    remove_schema(options, schema).await.map_err(|error| format!("{schema}: {error}"))
                }
                // The directories go with the one that holds them.
                _ => Ok(()),
            };
            match removed {
                Ok(()) => {
                    self.made().remove(&place);
                }
                Err(why) => failed.push(why),
            }
        }
        if let Kind::Sqlite(directory) = &self.kind {
            remove_directory(directory).unwrap_or_else(|error| failed.push(error.to_string()));
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(CliError::failed("could not remove everything that was made", failed.join("; "))
            .remedy("remove it by hand; nothing else is of that name"))
    }
}

/// A directory of its own beside the file at `path`.
fn directory_beside(path: &Path) -> Result<PathBuf, CliError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let directory = parent.join(unique_name(".kagzi-conformance"));
    std::fs::create_dir(&directory).map_err(|error| {
        CliError::usage(WHAT, format!("{}: {error}", directory.display()))
            .remedy("name a file in a directory that exists and can be written")
    })?;
    Ok(directory)
}

fn not_made(directory: &Path, error: &std::io::Error) -> StoreError {
    StoreError::unavailable(format!("{}: {error}", directory.display()), std::time::Duration::from_secs(1))
}

fn remove_directory(directory: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(not_made(directory, &error)),
        _ => Ok(()),
    }
}

async fn remove_schema(options: &PostgresOptions, schema: &str) -> Result<(), StoreError> {
    let schema = Some(schema.to_owned());
    PostgresStore::remove_schema(PostgresOptions { schema, ..options.clone() }).await
}

fn lock(made: &Mutex<BTreeSet<Place>>) -> MutexGuard<'_, BTreeSet<Place>> {
    // Places come and go whole, so a panic elsewhere leaves nothing half changed.
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Fixture for Scratch {
    fn name(&self) -> String {
        self.url.clone()
    }

    fn capabilities(&self) -> Vec<Capability> {
        match self.kind {
            Kind::Memory => vec![Capability::SecondHandle],
            Kind::Sqlite(_) | Kind::Postgres(..) => vec![Capability::SecondHandle, Capability::Reopen],
        }
    }

    async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        Ok(Box::new(self.make(clock, rules).await?))
    }
}

/// How the data of one case are opened.
#[derive(Clone, Debug)]
enum Opener {
    Memory(MemoryStore),
    Sqlite(SqliteOptions),
    Postgres(Box<PostgresOptions>),
}

impl Opener {
    async fn open(&self, ends: &AtomicBool) -> Result<SharedStore, StoreError> {
        if ends.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("the command is ending", std::time::Duration::ZERO));
        }
        Ok(match self {
            Self::Memory(store) => Arc::new(store.clone()),
            Self::Sqlite(options) => Arc::new(SqliteStore::open(options.clone()).await?),
            Self::Postgres(options) => Arc::new(PostgresStore::connect((**options).clone()).await?),
        })
    }
}

/// The store of one case.
#[derive(Debug)]
struct Made {
    store: SharedStore,
    opener: Opener,
    place: Option<Place>,
    all_places: Arc<Mutex<BTreeSet<Place>>>,
    ends: Arc<AtomicBool>,
}

impl Made {
    /// Closes it and removes its data.
    async fn finish(self) -> Result<(), StoreError> {
        match self.store.close().await {
            // The case closed it itself.
            Ok(()) | Err(StoreError::Unavailable { .. }) => {}
            Err(error) => return Err(error),
        }
        drop(self.store);
        match (&self.place, &self.opener) {
            (Some(Place::Schema(schema)), Opener::Postgres(options)) => {
                remove_schema(options, schema).await?;
            }
            (Some(Place::Directory(directory)), _) => remove_directory(directory)?,
            _ => {}
        }
        if let Some(place) = &self.place {
            lock(&self.all_places).remove(place);
        }
        Ok(())
    }
}

#[async_trait]
impl Instance for Made {
    fn store(&self) -> SharedStore {
        Arc::clone(&self.store)
    }

    async fn second_handle(&self) -> Result<SharedStore, FixtureError> {
        Ok(self.opener.open(&self.ends).await?)
    }

    async fn reopen(&mut self) -> Result<(), FixtureError> {
        // Let go of, without closing it, before the data are opened again.
        self.store = Arc::new(MemoryStore::default());
        self.store = self.opener.open(&self.ends).await?;
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), FixtureError> {
        Ok(self.finish().await?)
    }
}
