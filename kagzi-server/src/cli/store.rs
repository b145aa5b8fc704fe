//! Which store a command works on by itself, without a server.

use std::path::{Path, PathBuf};

use clap::Args;
use kagzi_server::{ConfigError, ServeArgs, ServerConfig, Settings, without_password};
use serde::Serialize;

use super::error::CliError;
use super::host::server_failed;

/// Where the store is: said as `kagzi serve` is told it.
#[derive(Args, Debug)]
pub struct StoreArgs {
    /// The store: `sqlite://path` or `postgres://user@host/database`. [default: `sqlite://kagzi.db`]
    #[arg(long, env = "KAGZI_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// How many connections each server opens to it, at least 2. [default: the backend's own]
    #[arg(long, env = "KAGZI_STORE_CONNECTIONS", value_name = "N", allow_hyphen_values = true)]
    store_connections: Option<u32>,
    /// Over how many partitions a new Postgres store spreads its runs, for a cluster: 1 to 4096. A store keeps
    /// the number that it was made with. [default: as `?partitions=` in the URL says, else 1]
    #[arg(long, env = "KAGZI_STORE_PARTITIONS", value_name = "P", allow_hyphen_values = true)]
    store_partitions: Option<u32>,
    /// The configuration file of the server, which may say both.
    #[arg(long, env = "KAGZI_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Where the store is of a command that changes or copies it, and where that is put on record.
#[derive(Args, Debug)]
pub struct ChangeArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The file to which this command is added, announced before it is done, as what operators do by a server is.
    /// [default: the one of the configuration file, if it names one]
    #[arg(long, env = "KAGZI_AUDIT_LOG", value_name = "FILE")]
    audit_log: Option<PathBuf>,
}

impl ChangeArgs {
    /// The configuration alone of [`StoreArgs::into_told`].
    ///
    /// # Errors
    ///
    /// As of [`StoreArgs::into_told`].
    pub fn into_config(self, what: &str) -> Result<ServerConfig, CliError> {
        Ok(self.into_told(what)?.config)
    }

    /// As [`StoreArgs::into_told`].
    ///
    /// # Errors
    ///
    /// As of [`StoreArgs::into_told`].
    pub fn into_told(self, what: &str) -> Result<ToldStore, CliError> {
        let told = self.store.into_told(what)?;
        let audit_log = self.audit_log.or(told.config.audit_log.clone());
        Ok(ToldStore { config: ServerConfig { audit_log, ..told.config }, ..told })
    }
}

/// Which store a command works on, and who says so.
#[derive(Debug)]
pub struct ToldStore {
    /// The configuration that a server would have.
    pub config: ServerConfig,
    /// Whether the store was named.
    pub source: StoreSource,
}

/// Who says which store is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreSource {
    /// An option, a variable or the configuration file.
    Named,
    /// Nobody: it is the default.
    Default,
}

impl ToldStore {
    /// The store as people are told it: without its password, and if nobody named it, with where it is.
    pub fn shown(&self) -> String {
        let store = without_password(&self.config.store);
        if self.source == StoreSource::Named {
            return store;
        }
        let place = self.file().and_then(|file| std::path::absolute(file).ok());
        let place = place.map(|file| format!(", {}", file.display())).unwrap_or_default();
        format!(
            "{store}{place}: the default, since neither --store, KAGZI_STORE nor a file of --config names one"
        )
    }

    /// Whether its file is not there yet. What is no file is nowhere missing.
    pub fn is_new(&self) -> bool {
        self.file().is_some_and(|file| !file.exists())
    }

    fn file(&self) -> Option<&Path> {
        let path = self.config.store.strip_prefix("sqlite://")?;
        Some(Path::new(path.split_once('?').map_or(path, |(path, _)| path)))
    }
}

impl StoreArgs {
    /// The configuration that a server would have, and whether the store is named in it; `what` is what cannot be done
    /// without.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or a value is outside its rule.
    pub fn into_told(self, what: &str) -> Result<ToldStore, CliError> {
        let settings = Settings {
            store: self.store,
            store_connections: self.store_connections,
            store_partitions: self.store_partitions,
            ..Settings::default()
        };
        let args = ServeArgs { config: self.config, settings };
        let refused = |error: ConfigError| server_failed(what, &error.into());
        let settings = args.into_settings().map_err(refused)?;
        let source = if settings.store.is_some() { StoreSource::Named } else { StoreSource::Default };
        Ok(ToldStore { config: settings.into_config().map_err(refused)?, source })
    }
}
