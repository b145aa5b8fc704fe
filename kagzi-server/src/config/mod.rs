//! Configuration: flags, then `KAGZI_*` variables, then a TOML file, then defaults.
//!
//! Every value has one name, written `--max-batch` as a flag, `KAGZI_MAX_BATCH` in the environment and
//! `max_batch` in the file; see [`Settings`] for all of them. Durations are numbers with units
//! (`250ms`, `30s`, `5m`, `1h30m`): see [`Length`].

mod address;
mod duration;
mod file;
mod limits;
mod mistake;
mod settings;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use kagzi_core::engine::EngineOptions;
use kagzi_core::{Namespace, RetryPolicy, Rules, SchemaPolicy};
use kagzi_proto::DEFAULT_MAX_MESSAGE_BYTES;
use serde::Deserialize;

use crate::shown::without_password;
pub use duration::{Length, NotALength};
pub use limits::{LoadLimits, RateLimit, Retention};
pub(crate) use mistake::{Values, mistake};
pub use settings::{ServeArgs, Settings};
use validate::{refuse, renamed};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// When a server brings the schema of its store up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrateWhen {
    /// When it starts.
    #[default]
    OnStart,
    /// Never: it does not start over an older schema, which `kagzi migrate` brings up to date.
    Never,
}

/// Who may reach an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Programs on this machine: only a loopback address is taken.
    #[default]
    ThisMachine,
    /// Whoever can.
    Anyone,
}

/// Whether a server may be reached from other machines although it does not ask who calls, or does not
/// encrypt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// It may not: such a server listens on loopback or not at all.
    #[default]
    Guarded,
    /// It may: something before it, such as a proxy or a closed network, does both.
    Insecure,
}

/// Everything that a server is told, checked and complete.
#[derive(Clone, PartialEq)]
pub struct ServerConfig {
    /// Where to listen, `host:port`; port 0 takes a free one. Default `127.0.0.1:7474`.
    pub listen: String,
    /// Where `/metrics`, `/livez` and `/readyz` are answered over plain HTTP, `host:port`; port 0 takes a
    /// free one. Default: nowhere.
    pub http_listen: Option<String>,
    /// Whether [`http_listen`](Self::http_listen), which has neither authentication nor TLS, may be an
    /// address that other machines reach. Default: only this machine.
    pub http_reach: Reach,
    /// How often queues are looked at for the metrics. Default 15 s.
    pub metrics_interval: Duration,
    /// Which store: `sqlite://path`, `postgres://...` or `memory:`. Default `sqlite://kagzi.db`.
    pub store: String,
    /// How many connections the store may open, at least 2; nothing: the backend's own default.
    pub store_connections: Option<u32>,
    /// Over how many partitions a new Postgres store spreads its runs, for a cluster; one that is there must
    /// have this many. Nothing: as the URL says, else 1 for a new store, and whatever an old one has.
    pub store_partitions: Option<u32>,
    /// What is done about a schema of an older version, or none. Default: it is brought up to date.
    pub schema: SchemaPolicy,
    /// For how long a server that starts waits for a store that is away; zero: it does not. Default 1 min.
    pub start_timeout: Duration,
    /// The namespaces that are served. Default `["default"]`.
    pub namespaces: Vec<Namespace>,
    /// The longest payload, the longest failure message, the default retry policy, the poison limit.
    pub rules: Rules,
    /// The longest request that is read, in bytes. Default 16 MiB.
    pub max_message_bytes: usize,
    /// What one answer holds at most: claimed runs, steps of each, items of a page. Who asks for more
    /// gets this many. Default 1000.
    pub max_batch: u32,
    /// How long a lease lasts if the worker does not say. Default 30 s.
    pub default_lease: Duration,
    /// The shortest lease accepted. Default 100 ms.
    pub min_lease: Duration,
    /// The longest lease accepted. Default 1 h.
    pub max_lease: Duration,
    /// No long poll waits longer. Default 60 s.
    pub max_poll_wait: Duration,
    /// How the engine waits and reaps.
    pub engine: EngineOptions,
    /// How long a shutdown waits for calls in flight. Default 10 s.
    pub drain_timeout: Duration,
    /// How often the store is asked whether it is well. Default 5 s.
    pub health_interval: Duration,
    /// How often a silent connection is asked for a sign of life, so that polls of dead workers end.
    /// Default 20 s.
    pub keepalive_interval: Duration,
    /// How long a request, or a message of a stream, has to arrive whole. Default 30 s.
    pub request_body_timeout: Duration,
    /// How many calls one connection may have in flight, long polls included. Default 512.
    pub max_concurrent_streams: u32,
    /// How much of the server callers may take, together and each.
    pub load: LoadLimits,
    /// For how long finished runs are kept. Default for ever.
    pub retention: Retention,
    /// Who may come and what they may do; nothing: anybody, anything.
    pub access_file: Option<PathBuf>,
    /// The server's certificate with its chain, in PEM; nothing: no TLS.
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    pub tls_key: Option<PathBuf>,
    /// The authorities that vouch for certificates of clients, in PEM; nothing: clients show none.
    pub tls_client_ca: Option<PathBuf>,
    /// The keys that JWTs are verified by, a JSON Web Key Set: a file, or a URL; nothing: no JWTs.
    pub jwt_keys: Option<String>,
    /// Who must have issued JWTs (`iss`).
    pub jwt_issuer: Option<String>,
    /// Whom JWTs must be for (`aud`).
    pub jwt_audience: Option<String>,
    /// Which claim of a JWT is the subject that the access file names. Default `sub`.
    pub jwt_subject_claim: String,
    /// How far the clocks of the issuer and of this machine may be apart. Default 30 s.
    pub jwt_leeway: Duration,
    /// How often keys behind a URL are asked for. Default 5 min.
    pub jwt_refresh_interval: Duration,
    /// How often the files of access, keys and TLS are looked at for changes. Default 5 s.
    pub auth_reload_interval: Duration,
    /// Whether it may be reached from other machines without authentication and TLS. Default: it may not.
    pub exposure: Exposure,
    /// Where the actions of operators are put on record, beside the log.
    pub audit_log: Option<PathBuf>,
    /// The collector that spans are exported to, by OTLP over gRPC: a URL. Nothing: the one that the
    /// standard variable `OTEL_EXPORTER_OTLP_ENDPOINT` names, if any.
    pub otlp_endpoint: Option<String>,
    /// How log lines look. Default text.
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as `info,kagzi_core=debug`. Default `info`.
    pub log_level: String,
}

/// Shows no password.
impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("listen", &self.listen)
            .field("store", &without_password(&self.store))
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7474".to_owned(),
            http_listen: None,
            http_reach: Reach::ThisMachine,
            metrics_interval: Duration::from_secs(15),
            store: "sqlite://kagzi.db".to_owned(),
            store_connections: None,
            store_partitions: None,
            schema: SchemaPolicy::Migrate,
            start_timeout: Duration::from_mins(1),
            namespaces: Namespace::new("default").into_iter().collect(),
            rules: Rules::default(),
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            max_batch: 1000,
            default_lease: Duration::from_secs(30),
            min_lease: Duration::from_millis(100),
            max_lease: Duration::from_hours(1),
            max_poll_wait: Duration::from_mins(1),
            engine: EngineOptions::default(),
            drain_timeout: Duration::from_secs(10),
            health_interval: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(20),
            request_body_timeout: Duration::from_secs(30),
            max_concurrent_streams: 512,
            load: LoadLimits::default(),
            retention: Retention::default(),
            access_file: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            jwt_keys: None,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_subject_claim: "sub".to_owned(),
            jwt_leeway: Duration::from_secs(30),
            jwt_refresh_interval: Duration::from_mins(5),
            auth_reload_interval: Duration::from_secs(5),
            exposure: Exposure::Guarded,
            audit_log: None,
            otlp_endpoint: None,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {source}; give the path of a readable TOML file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong kind. The text of the file is
    /// not repeated, since it may hold a password.
    #[error("configuration file {}, line {line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line at fault, from 1.
        line: usize,
        /// What is wrong with it; for an unknown key, the key and the known ones.
        message: String,
    },
    /// A value is outside its range.
    #[error("{key}: expected {expected}, got {got}; set it with a flag, a KAGZI_ variable or the file")]
    Invalid {
        /// The name of the value, as in the file.
        key: String,
        /// The rule.
        expected: String,
        /// What came.
        got: String,
    },
}

/// The retry policy of a configuration: what is not said has core's default.
fn retry_policy(settings: &Settings) -> RetryPolicy {
    let default = RetryPolicy::default();
    RetryPolicy {
        max_attempts: settings.retry_max_attempts.unwrap_or(default.max_attempts),
        first_delay: settings.retry_first_delay.map_or(default.first_delay, Into::into),
        factor: settings.retry_factor.unwrap_or(default.factor),
        max_delay: settings.retry_max_delay.map_or(default.max_delay, Into::into),
        jitter: settings.retry_jitter.unwrap_or(default.jitter),
        non_retryable_codes: default.non_retryable_codes,
    }
}

impl Settings {
    /// Fills what was not said with the defaults, and checks the whole.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] naming the first value at fault.
    pub fn into_config(self) -> Result<ServerConfig, ConfigError> {
        let default = ServerConfig::default();
        let length = |said: Option<Length>, default| said.map_or(default, Into::into);
        let rules = Rules {
            max_payload_bytes: self.max_payload_bytes.unwrap_or(default.rules.max_payload_bytes),
            max_message_bytes: self.max_failure_message_bytes.unwrap_or(default.rules.max_message_bytes),
            default_retry: retry_policy(&self),
            poison_after: self.poison_after.unwrap_or(default.rules.poison_after),
            max_claim_bytes: default.rules.max_claim_bytes,
        };
        let engine = EngineOptions {
            poll_interval: length(self.poll_interval, default.engine.poll_interval),
            reap_interval: length(self.reap_interval, default.engine.reap_interval),
            reap_batch: self.reap_batch.unwrap_or(default.engine.reap_batch),
            reap_backoff: length(self.reap_backoff, default.engine.reap_backoff),
        };
        let (load, retention) = (LoadLimits::of(&self)?, Retention::of(&self));
        let config = ServerConfig {
            listen: self.listen.unwrap_or(default.listen),
            http_listen: self.http_listen,
            http_reach: if self.http_insecure == Some(true) { Reach::Anyone } else { Reach::ThisMachine },
            metrics_interval: length(self.metrics_interval, default.metrics_interval),
            store: self.store.unwrap_or(default.store),
            schema: match self.migrate {
                Some(MigrateWhen::Never) => SchemaPolicy::Require,
                Some(MigrateWhen::OnStart) | None => default.schema,
            },
            store_connections: self.store_connections,
            start_timeout: length(self.start_timeout, default.start_timeout),
            store_partitions: self.store_partitions,
            namespaces: match self.namespaces {
                Some(names) => namespaces(&names)?,
                None => default.namespaces,
            },
            rules,
            max_message_bytes: self.max_message_bytes.unwrap_or(default.max_message_bytes),
            max_batch: self.max_batch.unwrap_or(default.max_batch),
            default_lease: length(self.default_lease, default.default_lease),
            min_lease: length(self.min_lease, default.min_lease),
            max_lease: length(self.max_lease, default.max_lease),
            max_poll_wait: length(self.max_poll_wait, default.max_poll_wait),
            engine,
            drain_timeout: length(self.drain_timeout, default.drain_timeout),
            health_interval: length(self.health_interval, default.health_interval),
            keepalive_interval: length(self.keepalive_interval, default.keepalive_interval),
            request_body_timeout: length(self.request_body_timeout, default.request_body_timeout),
            max_concurrent_streams: self.max_concurrent_streams.unwrap_or(default.max_concurrent_streams),
            load,
            retention,
            access_file: self.access_file,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            tls_client_ca: self.tls_client_ca,
            jwt_keys: self.jwt_keys,
            jwt_issuer: self.jwt_issuer,
            jwt_audience: self.jwt_audience,
            jwt_subject_claim: self.jwt_subject_claim.unwrap_or(default.jwt_subject_claim),
            jwt_leeway: length(self.jwt_leeway, default.jwt_leeway),
            jwt_refresh_interval: length(self.jwt_refresh_interval, default.jwt_refresh_interval),
            auth_reload_interval: length(self.auth_reload_interval, default.auth_reload_interval),
            exposure: match self.insecure {
                Some(true) => Exposure::Insecure,
                Some(false) | None => Exposure::Guarded,
            },
            audit_log: self.audit_log,
            otlp_endpoint: self.otlp_endpoint,
            log_format: self.log_format.unwrap_or(default.log_format),
            log_level: self.log_level.unwrap_or(default.log_level),
        };
        config.validate()?;
        Ok(config)
    }
}

fn namespaces(names: &[String]) -> Result<Vec<Namespace>, ConfigError> {
    let read =
        |name: &String| Namespace::new(name).map_err(|error| renamed(error, "namespace", "namespaces"));
    names.iter().map(read).collect()
}
