//! Opening a store by its URL: the one place that knows which backends are built in.

use std::path::Path;
use std::sync::Arc;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{Migration, SharedStore, StoreError, SystemClock};
use kagzi_store_postgres::{Moved, PostgresOptions, PostgresStore};
use kagzi_store_sqlite::{Copied, Existing, Restored, SqliteOptions, SqliteStore};

use crate::auth::on_record;
use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::shown::without_password;

/// The URLs that this program opens, for people.
pub const BUILT_IN: &str = "sqlite://path, postgres://user@host/database, postgresql://..., memory:";

/// Opens the store that a configuration names.
///
/// `memory:` keeps nothing: it is for tests and trials.
///
/// # Errors
///
/// [`ServerError::UnknownStore`] for a URL of another scheme, [`ServerError::OpenStore`] if the backend
/// cannot open it.
pub async fn open_store(config: &ServerConfig) -> Result<SharedStore, ServerError> {
    match Opening::of(config)? {
        Opening::Memory => Ok(Arc::new(MemoryStore::new(Arc::new(SystemClock), config.rules.clone()))),
        Opening::Sqlite(options) => Ok(Arc::new(SqliteStore::open(options).await.map_err(failed(config))?)),
        Opening::Postgres(options) => {
            Ok(Arc::new(PostgresStore::connect(*options).await.map_err(failed(config))?))
        }
    }
}

/// What the backend of a configuration calls itself, whether its store can be had or not.
pub(crate) fn backend(config: &ServerConfig) -> Result<&'static str, ServerError> {
    Ok(match Opening::of(config)? {
        Opening::Memory => "memory",
        Opening::Sqlite(_) => "sqlite",
        Opening::Postgres(_) => "postgres",
    })
}

/// How many pages and counts the store of a configuration reads at once; nothing if it bounds them not, or cannot be opened.
pub(crate) fn scans_at_once(config: &ServerConfig) -> Option<u32> {
    match Opening::of(config).ok()? {
        Opening::Memory => None,
        Opening::Sqlite(options) => u32::try_from(options.scans_at_once()).ok(),
        Opening::Postgres(options) => Some(options.scans_at_once()),
    }
}

/// What bringing the schema of a store up to date would take; nothing is changed.
///
/// # Errors
///
/// As of [`open_store`].
pub async fn plan_migration(config: &ServerConfig) -> Result<Migration, ServerError> {
    match Opening::of(config)? {
        Opening::Memory => Ok(WITHOUT_SCHEMA),
        Opening::Sqlite(options) => SqliteStore::plan_migration(options).await.map_err(failed(config)),
        Opening::Postgres(options) => PostgresStore::plan_migration(*options).await.map_err(failed(config)),
    }
}

/// Brings the schema of a store up to date, on record if the configuration names an audit log.
///
/// # Errors
///
/// As of [`open_store`], and [`ServerError::NotOnRecord`].
pub async fn migrate_store(config: &ServerConfig) -> Result<Migration, ServerError> {
    let opening = Opening::of(config)?;
    on_record(config, "kagzi migrate", "", async {
        match opening {
            Opening::Memory => Ok(WITHOUT_SCHEMA),
            Opening::Sqlite(options) => SqliteStore::migrate(options).await.map_err(failed(config)),
            Opening::Postgres(options) => PostgresStore::migrate(*options).await.map_err(failed(config)),
        }
    })
    .await
}

/// Copies a SQLite store to the new file `to`, while servers go on working on it; nothing if the
/// configuration names another backend, which has tools of its own for that. On record if it names an audit log.
///
/// # Errors
///
/// As of [`open_store`], and [`ServerError::NotOnRecord`].
pub async fn back_up_store(config: &ServerConfig, to: &Path) -> Result<Option<Copied>, ServerError> {
    match Opening::of(config)? {
        Opening::Sqlite(options) => {
            let copying = async { SqliteStore::back_up(options, to).await.map(Some).map_err(failed(config)) };
            on_record(config, "kagzi backup", &to.display().to_string(), copying).await
        }
        Opening::Memory | Opening::Postgres(_) => Ok(None),
    }
}

/// Makes a SQLite store from the backup `from`; nothing if the configuration names another backend. On record
/// if it names an audit log.
///
/// # Errors
///
/// As of [`open_store`], and [`ServerError::NotOnRecord`].
pub async fn restore_store(
    config: &ServerConfig,
    from: &Path,
    existing: Existing,
) -> Result<Option<Restored>, ServerError> {
    match Opening::of(config)? {
        Opening::Sqlite(options) => {
            let making = async {
                SqliteStore::restore(from, options, existing).await.map(Some).map_err(failed(config))
            };
            on_record(config, "kagzi restore", &from.display().to_string(), making).await
        }
        Opening::Memory | Opening::Postgres(_) => Ok(None),
    }
}

/// Moves a Postgres store that nobody uses into the schema that the URL `to` names, with the number of partitions that it
/// says; nothing if the configuration names another backend. On record if it names an audit log.
///
/// # Errors
///
/// As of [`open_store`], [`ServerError::NotOnRecord`], and what [`PostgresStore::move_to_partitions`] refuses.
pub async fn move_to_partitions(config: &ServerConfig, to: &str) -> Result<Option<Moved>, ServerError> {
    let there = ServerConfig { store: to.to_owned(), store_partitions: None, ..config.clone() };
    match (Opening::of(config)?, Opening::of(&there)?) {
        (Opening::Postgres(from), Opening::Postgres(to)) => {
            let moving = async {
                PostgresStore::move_to_partitions(*from, *to).await.map(Some).map_err(failed(config))
            };
            on_record(config, "kagzi migrate-partitions", &without_password(&there.store), moving).await
        }
        _ => Ok(None),
    }
}

/// What the memory has of a schema.
const WITHOUT_SCHEMA: Migration = Migration { from: 0, to: 0, steps: Vec::new() };

/// Which backend a configuration names, and what it is opened with.
enum Opening {
    Memory,
    Sqlite(SqliteOptions),
    Postgres(Box<PostgresOptions>),
}

impl Opening {
    fn of(config: &ServerConfig) -> Result<Self, ServerError> {
        let url = config.store.as_str();
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        match scheme.as_str() {
            "memory" => undivided(config).map(|()| Self::Memory).map_err(failed(config)),
            "sqlite" => sqlite(config).map(Self::Sqlite).map_err(failed(config)),
            "postgres" | "postgresql" => {
                postgres(config).map(Box::new).map(Self::Postgres).map_err(failed(config))
            }
            _ => Err(unknown_store()),
        }
    }
}

/// The error for a URL that no backend of this program opens. It is not repeated: without a scheme that is known,
/// nobody can tell where a password stands in it.
pub fn unknown_store() -> ServerError {
    ServerError::UnknownStore {
        built_in: BUILT_IN.to_owned(),
        got: "a text that begins otherwise".to_owned(),
    }
}

/// Refuses to spread runs where a store has one place for all of them.
fn undivided(config: &ServerConfig) -> Result<(), StoreError> {
    match config.store_partitions {
        None | Some(1) => Ok(()),
        Some(other) => Err(StoreError::InvalidArgument {
            field: "partitions".to_owned(),
            expected: "1, or none: only a postgres:// store spreads its runs over partitions".to_owned(),
            got: other.to_string(),
        }),
    }
}

fn sqlite(config: &ServerConfig) -> Result<SqliteOptions, StoreError> {
    undivided(config)?;
    let options = SqliteOptions::from_url(&config.store)?.rules(config.rules.clone()).schema(config.schema);
    Ok(match config.store_connections {
        // One more connection writes.
        Some(connections) => options.readers(connections.saturating_sub(1).max(1) as usize),
        None => options,
    })
}

fn postgres(config: &ServerConfig) -> Result<PostgresOptions, StoreError> {
    let mut options = PostgresOptions::new(&config.store);
    if let Some(partitions) = config.store_partitions {
        options.partitions = Some(u16::try_from(partitions).map_err(|_| StoreError::InvalidArgument {
            field: "partitions".to_owned(),
            expected: format!("from 1 to {}", PostgresOptions::MAX_PARTITIONS),
            got: partitions.to_string(),
        })?);
    }
    options.rules = config.rules.clone();
    options.schema_policy = config.schema;
    if let Some(connections) = config.store_connections {
        options.max_connections = connections;
    }
    Ok(options)
}

/// A backend's error as the server's, with options under the names of the settings.
fn failed(config: &ServerConfig) -> impl Fn(StoreError) -> ServerError {
    let url = without_password(&config.store);
    // A number in the URL goes by its name there.
    let partitions = if config.store_partitions.is_some() { "store_partitions" } else { "partitions" };
    move |error| {
        let names = [
            ("readers", "store_connections"),
            ("max_connections", "store_connections"),
            ("partitions", partitions),
        ];
        ServerError::OpenStore { url: url.clone(), source: names.into_iter().fold(error, as_setting) }
    }
}

/// An error about the option of a backend that a setting sets, under the setting's name.
fn as_setting(error: StoreError, (option, setting): (&str, &str)) -> StoreError {
    match error {
        StoreError::InvalidArgument { field, expected, got } if field == option => {
            StoreError::InvalidArgument { field: setting.to_owned(), expected, got }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_scheme_is_answered_with_the_ones_built_in() {
        for url in
            ["mysql://u:secret@h/db", "u:secret@h/db", "host=h password=secret", "kagzi.db", "", "://x"]
        {
            let config = ServerConfig { store: url.to_owned(), ..ServerConfig::default() };
            let error = open_store(&config).await.unwrap_err().to_string();
            for scheme in ["sqlite://", "postgres://", "memory:"] {
                assert!(error.contains(scheme), "{error}");
            }
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_store_that_does_not_open_is_named_without_its_password() {
        let cases = [
            ("postgres://u:secret@127.0.0.1:1/db", "postgres://u:***@127.0.0.1:1/db"),
            ("postgres://u:secret@h/db?partitions=0", "partitions: expected from 1 to 4096"),
            ("postgres://u:ab/secret@127.0.0.1:1/db", "postgres://u:***@127.0.0.1:1/db"),
            ("postgres://u:12/secret@127.0.0.1:1/db", "written as %xx"),
            ("postgres://u:ab?secret@127.0.0.1:1/db", "postgres://u:***@127.0.0.1:1/db"),
            ("postgres://h/db?pass=secret", "parameter: expected one of"),
            ("postgres:u:secret@h", "postgres:***"),
            ("sqlite:///no/such/directory/kagzi.db", "/no/such/directory"),
        ];
        for (url, expected) in cases {
            let config = ServerConfig { store: url.to_owned(), ..ServerConfig::default() };
            let error = open_store(&config).await.unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn partitions_are_refused_by_the_name_of_the_setting_with_both_numbers_and_where_there_are_none() {
        let refused = async |store: &str, partitions| {
            let config = ServerConfig {
                store: store.to_owned(),
                store_partitions: Some(partitions),
                ..ServerConfig::default()
            };
            open_store(&config).await.unwrap_err().to_string()
        };
        for (store, partitions, expected) in [
            ("memory:", 7, "store_partitions: expected 1, or none: only a postgres:// store"),
            ("sqlite://never-made.db", 7, "store_partitions: expected 1, or none: only a postgres:// store"),
            ("postgres://u@127.0.0.1:1/db", 0, "store_partitions: expected from 1 to 4096, got 0"),
            ("postgres://u@127.0.0.1:1/db", 4097, "store_partitions: expected from 1 to 4096, got 4097"),
            ("postgres://u@127.0.0.1:1/db", 70_000, "store_partitions: expected from 1 to 4096, got 70000"),
            ("postgres://u@127.0.0.1:1/db?partitions=8", 7, "store_partitions: expected 7"),
        ] {
            let told = refused(store, partitions).await;
            assert!(told.contains(expected), "{store} {partitions}: {told}");
        }
    }

    #[tokio::test]
    async fn too_many_connections_are_refused_under_the_name_of_the_setting() {
        for store in ["sqlite://never-made.db", "postgres://u@127.0.0.1:1/db"] {
            let config = ServerConfig {
                store: store.to_owned(),
                store_connections: Some(5000),
                ..ServerConfig::default()
            };
            let error = open_store(&config).await.unwrap_err().to_string();
            assert!(error.contains("store_connections: "), "{error}");
        }
    }
}
