//! Opening a store by its URL: the one place that knows which backends are built in.

use std::sync::Arc;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{SharedStore, StoreError, SystemClock};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};

use crate::config::ServerConfig;
use crate::error::ServerError;

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
    let url = config.store.as_str();
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    let failed = |source| ServerError::OpenStore { url: without_password(url), source };
    match scheme.as_str() {
        "memory" => Ok(Arc::new(MemoryStore::new(Arc::new(SystemClock), config.rules.clone()))),
        "sqlite" => Ok(Arc::new(open_sqlite(config).await.map_err(failed)?)),
        "postgres" | "postgresql" => Ok(Arc::new(open_postgres(config).await.map_err(failed)?)),
        _ => Err(ServerError::UnknownStore { built_in: BUILT_IN.to_owned(), got: without_password(url) }),
    }
}

async fn open_sqlite(config: &ServerConfig) -> Result<SqliteStore, StoreError> {
    let mut options = SqliteOptions::from_url(&config.store)?.rules(config.rules.clone());
    if let Some(connections) = config.store_connections {
        // One more connection writes.
        options = options.readers(connections.saturating_sub(1).max(1) as usize);
    }
    SqliteStore::open(options).await.map_err(|error| as_setting(error, "readers"))
}

async fn open_postgres(config: &ServerConfig) -> Result<PostgresStore, StoreError> {
    let mut options = PostgresOptions::new(&config.store);
    options.rules = config.rules.clone();
    if let Some(connections) = config.store_connections {
        options.max_connections = connections;
    }
    PostgresStore::connect(options).await.map_err(|error| as_setting(error, "max_connections"))
}

/// An error about the option of a backend that `store_connections` sets, under that name.
fn as_setting(error: StoreError, option: &str) -> StoreError {
    match error {
        StoreError::InvalidArgument { field, expected, got } if field == option => {
            StoreError::InvalidArgument { field: "store_connections".to_owned(), expected, got }
        }
        other => other,
    }
}

/// A URL as it may be shown: `***` stands for a password, before the host or among the parameters.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (address, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let authority_ends = address.find('/').unwrap_or(address.len());
    // The last `@` of the authority: a password may hold one that nobody encoded.
    let address = match address[..authority_ends].rfind('@').map(|at| address.split_at(at)) {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***{host}"),
            None => address.to_owned(),
        },
        None => address.to_owned(),
    };
    let hide = |parameter: &str| match parameter.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
        _ => parameter.to_owned(),
    };
    let parameters: Vec<String> =
        parameters.split('&').filter(|parameter| !parameter.is_empty()).map(hide).collect();
    let question = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{address}{question}{}", parameters.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_scheme_is_answered_with_the_ones_built_in() {
        for url in ["mysql://u:secret@h/db", "kagzi.db", "", "://x"] {
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
            ("postgres://u:secret@h/db?partitions=0", "partitions: expected from 1 to 1024"),
            ("sqlite:///no/such/directory/kagzi.db", "/no/such/directory"),
        ];
        for (url, expected) in cases {
            let config = ServerConfig { store: url.to_owned(), ..ServerConfig::default() };
            let error = open_store(&config).await.unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
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

    #[test]
    fn passwords_are_not_shown() {
        let cases = [
            ("postgres://u:p@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgres://u:p@w@h/db", "postgres://u:***@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://h/db?user=a@b", "postgres://h/db?user=a@b"),
            (
                "postgres://h?user=u&password=p%26&sslmode=disable",
                "postgres://h?user=u&password=***&sslmode=disable",
            ),
            ("sqlite:///data/a@b.db", "sqlite:///data/a@b.db"),
            ("memory:", "memory:"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_password(url), shown);
        }
    }
}
