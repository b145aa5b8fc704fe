//! Opening a store by its URL: the one place that knows which backends are built in.

use std::sync::Arc;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{SharedStore, StoreError, SystemClock};
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
        _ => Err(ServerError::UnknownStore { built_in: BUILT_IN.to_owned(), got: without_password(url) }),
    }
}

async fn open_sqlite(config: &ServerConfig) -> Result<SqliteStore, StoreError> {
    let mut options = SqliteOptions::from_url(&config.store)?.rules(config.rules.clone());
    if let Some(connections) = config.store_connections {
        // One more connection writes.
        options = options.readers(connections.saturating_sub(1).max(1) as usize);
    }
    SqliteStore::open(options).await
}

/// A URL as it may be shown: what stands between user and host is left out.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // The last `@` of the authority: a password may hold one that nobody encoded.
    let Some(at) = rest[..authority_ends].rfind('@') else { return url.to_owned() };
    let user = rest[..at].split(':').next().unwrap_or_default();
    format!("{scheme}://{user}:***{}", &rest[at..])
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

    #[test]
    fn passwords_are_not_shown() {
        let cases = [
            ("postgres://u:p@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgres://u:p@w@h/db", "postgres://u:***@h/db"),
            ("postgres://h/db?user=a@b", "postgres://h/db?user=a@b"),
            ("sqlite:///data/a@b.db", "sqlite:///data/a@b.db"),
            ("memory:", "memory:"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_password(url), shown);
        }
    }
}
