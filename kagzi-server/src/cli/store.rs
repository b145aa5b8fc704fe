//! Which store a command works on by itself, without a server.

use std::path::PathBuf;

use clap::Args;
use kagzi_server::{ServeArgs, ServerConfig, Settings};

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
    /// As [`StoreArgs::into_config`].
    ///
    /// # Errors
    ///
    /// As of [`StoreArgs::into_config`].
    pub fn into_config(self, what: &str) -> Result<ServerConfig, CliError> {
        let config = self.store.into_config(what)?;
        Ok(ServerConfig { audit_log: self.audit_log.or(config.audit_log.clone()), ..config })
    }
}

impl StoreArgs {
    /// The configuration that a server would have; `what` is what cannot be done without.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or a value is outside its rule.
    pub fn into_config(self, what: &str) -> Result<ServerConfig, CliError> {
        let settings = Settings {
            store: self.store,
            store_connections: self.store_connections,
            store_partitions: self.store_partitions,
            ..Settings::default()
        };
        let args = ServeArgs { config: self.config, settings };
        args.into_config().map_err(|error| server_failed(what, &error.into()))
    }
}
