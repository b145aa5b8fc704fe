//! The settings as people give them, each with one name everywhere.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::duration::Length;
use super::{ConfigError, LogFormat, MigrateWhen, ServerConfig, file};
use crate::shown::without_password;

/// Everything that can be set, as far as it was. The same names serve as flags, variables and keys.
#[derive(Args, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one. [default: 127.0.0.1:7474]
    #[arg(long, env = "KAGZI_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where `/metrics`, `/livez` and `/readyz` are answered over plain HTTP. [default: nowhere]
    #[arg(long, env = "KAGZI_HTTP_LISTEN", value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// Let other machines reach `--http-listen`, which has neither authentication nor TLS. [default: false]
    #[arg(long, env = "KAGZI_HTTP_INSECURE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub http_insecure: Option<bool>,
    /// How often queues are looked at for the metrics. [default: 15s]
    #[arg(long, env = "KAGZI_METRICS_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub metrics_interval: Option<Length>,
    /// The store: `sqlite://path`, `postgres://user@host/database` or `memory:`. [default: `sqlite://kagzi.db`]
    #[arg(long, env = "KAGZI_STORE", value_name = "URL", hide_env_values = true)]
    pub store: Option<String>,
    /// How many connections the store may open, at least 2. [default: the backend's own]
    #[arg(long, env = "KAGZI_STORE_CONNECTIONS", value_name = "N", allow_hyphen_values = true)]
    pub store_connections: Option<u32>,
    /// Over how many partitions a new Postgres store spreads its runs, for a cluster: 1 to 4096. A store keeps
    /// the number that it was made with. [default: as `?partitions=` in the URL says, else 1]
    #[arg(long, env = "KAGZI_STORE_PARTITIONS", value_name = "P", allow_hyphen_values = true)]
    pub store_partitions: Option<u32>,
    /// When the schema of the store is brought up to date; with `never` the server does not start over an
    /// older one, and `kagzi migrate` does it. [default: on-start]
    #[arg(long, env = "KAGZI_MIGRATE", value_name = "WHEN", value_enum)]
    pub migrate: Option<MigrateWhen>,
    /// For how long a server that starts waits for a store that is away, with its health `NOT_SERVING`; with 0s it
    /// ends at once. [default: 1m]
    #[arg(long, env = "KAGZI_START_TIMEOUT", value_name = "DURATION", allow_hyphen_values = true)]
    pub start_timeout: Option<Length>,
    /// The namespaces that are served, separated by commas (a list in the file). [default: default]
    #[arg(long, env = "KAGZI_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    pub namespaces: Option<Vec<String>>,
    /// The longest payload. [default: 2097152, 2 MiB]
    #[arg(long, env = "KAGZI_MAX_PAYLOAD_BYTES", value_name = "BYTES", allow_hyphen_values = true)]
    pub max_payload_bytes: Option<usize>,
    /// The longest failure message or reason. [default: 65536, 64 KiB]
    #[arg(long, env = "KAGZI_MAX_FAILURE_MESSAGE_BYTES", value_name = "BYTES", allow_hyphen_values = true)]
    pub max_failure_message_bytes: Option<usize>,
    /// The longest request that is read. [default: 16777216, 16 MiB]
    #[arg(long, env = "KAGZI_MAX_MESSAGE_BYTES", value_name = "BYTES", allow_hyphen_values = true)]
    pub max_message_bytes: Option<usize>,
    /// What one answer holds at most: claimed runs, steps of each, items of a page. [default: 1000]
    #[arg(long, env = "KAGZI_MAX_BATCH", value_name = "N", allow_hyphen_values = true)]
    pub max_batch: Option<u32>,
    /// How long a lease lasts if the worker does not say. [default: 30s]
    #[arg(long, env = "KAGZI_DEFAULT_LEASE", value_name = "DURATION", allow_hyphen_values = true)]
    pub default_lease: Option<Length>,
    /// The shortest lease accepted. [default: 100ms]
    #[arg(long, env = "KAGZI_MIN_LEASE", value_name = "DURATION", allow_hyphen_values = true)]
    pub min_lease: Option<Length>,
    /// The longest lease accepted. [default: 1h]
    #[arg(long, env = "KAGZI_MAX_LEASE", value_name = "DURATION", allow_hyphen_values = true)]
    pub max_lease: Option<Length>,
    /// No long poll waits longer. [default: 60s]
    #[arg(long, env = "KAGZI_MAX_POLL_WAIT", value_name = "DURATION", allow_hyphen_values = true)]
    pub max_poll_wait: Option<Length>,
    /// Who waits for work looks again after this long without a hint. [default: 1s]
    #[arg(long, env = "KAGZI_POLL_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub poll_interval: Option<Length>,
    /// After how many lost leases in a row a run becomes a dead letter. [default: 5]
    #[arg(long, env = "KAGZI_POISON_AFTER", value_name = "N", allow_hyphen_values = true)]
    pub poison_after: Option<u32>,
    /// Default retry policy: how many failures end a step or run. [default: 5]
    #[arg(long, env = "KAGZI_RETRY_MAX_ATTEMPTS", value_name = "N", allow_hyphen_values = true)]
    pub retry_max_attempts: Option<u32>,
    /// Default retry policy: the delay after the first failure. [default: 1s]
    #[arg(long, env = "KAGZI_RETRY_FIRST_DELAY", value_name = "DURATION", allow_hyphen_values = true)]
    pub retry_first_delay: Option<Length>,
    /// Default retry policy: what each further delay is multiplied by. [default: 2]
    #[arg(long, env = "KAGZI_RETRY_FACTOR", value_name = "FACTOR", allow_hyphen_values = true)]
    pub retry_factor: Option<f64>,
    /// Default retry policy: no delay is longer. [default: 60s]
    #[arg(long, env = "KAGZI_RETRY_MAX_DELAY", value_name = "DURATION", allow_hyphen_values = true)]
    pub retry_max_delay: Option<Length>,
    /// Default retry policy: which part of the delay is left to chance, 0 to 1. [default: 0.1]
    #[arg(long, env = "KAGZI_RETRY_JITTER", value_name = "PART", allow_hyphen_values = true)]
    pub retry_jitter: Option<f64>,
    /// How many runs one reap treats at most. [default: 500]
    #[arg(long, env = "KAGZI_REAP_BATCH", value_name = "N", allow_hyphen_values = true)]
    pub reap_batch: Option<u32>,
    /// The reaper looks at least this often. [default: 5s]
    #[arg(long, env = "KAGZI_REAP_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub reap_interval: Option<Length>,
    /// The longest wait of the reaper after errors in a row. [default: 30s]
    #[arg(long, env = "KAGZI_REAP_BACKOFF", value_name = "DURATION", allow_hyphen_values = true)]
    pub reap_backoff: Option<Length>,
    /// How long a shutdown waits for calls in flight. [default: 10s]
    #[arg(long, env = "KAGZI_DRAIN_TIMEOUT", value_name = "DURATION", allow_hyphen_values = true)]
    pub drain_timeout: Option<Length>,
    /// How often the store is asked whether it is well. [default: 5s]
    #[arg(long, env = "KAGZI_HEALTH_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub health_interval: Option<Length>,
    /// How often a silent connection is asked for a sign of life. [default: 20s]
    #[arg(long, env = "KAGZI_KEEPALIVE_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub keepalive_interval: Option<Length>,
    /// How many calls one connection may have in flight. [default: 512]
    #[arg(long, env = "KAGZI_MAX_CONCURRENT_STREAMS", value_name = "N", allow_hyphen_values = true)]
    pub max_concurrent_streams: Option<u32>,
    /// How many calls a second one principal may make, heartbeats and writes of workers not counted, each start
    /// of a batch by itself. [default: any number]
    #[arg(long, env = "KAGZI_RATE_PER_PRINCIPAL", value_name = "N", allow_hyphen_values = true)]
    pub rate_per_principal: Option<u32>,
    /// How many of them at once, after a quiet time. [default: as many as in a second]
    #[arg(long, env = "KAGZI_RATE_PER_PRINCIPAL_BURST", value_name = "N", allow_hyphen_values = true)]
    pub rate_per_principal_burst: Option<u32>,
    /// How many such calls a second all callers of one namespace may make. [default: any number]
    #[arg(long, env = "KAGZI_RATE_PER_NAMESPACE", value_name = "N", allow_hyphen_values = true)]
    pub rate_per_namespace: Option<u32>,
    /// How many of them at once, after a quiet time. [default: as many as in a second]
    #[arg(long, env = "KAGZI_RATE_PER_NAMESPACE_BURST", value_name = "N", allow_hyphen_values = true)]
    pub rate_per_namespace_burst: Option<u32>,
    /// How many calls a second from one address may show credentials that nobody knows. [default: 10]
    #[arg(long, env = "KAGZI_RATE_AUTH_FAILURES", value_name = "N", allow_hyphen_values = true)]
    pub rate_auth_failures: Option<u32>,
    /// How many of them at once, after a quiet time. [default: 100]
    #[arg(long, env = "KAGZI_RATE_AUTH_FAILURES_BURST", value_name = "N", allow_hyphen_values = true)]
    pub rate_auth_failures_burst: Option<u32>,
    /// How many calls a second that go on record (cancellations, say) one principal may make where it is neither operator
    /// nor admin. [default: 10]
    #[arg(long, env = "KAGZI_RATE_ON_RECORD", value_name = "N", allow_hyphen_values = true)]
    pub rate_on_record: Option<u32>,
    /// How many of them at once, after a quiet time. [default: 200]
    #[arg(long, env = "KAGZI_RATE_ON_RECORD_BURST", value_name = "N", allow_hyphen_values = true)]
    pub rate_on_record_burst: Option<u32>,
    /// How many connections may be open; more are closed at once. [default: 10000]
    #[arg(long, env = "KAGZI_MAX_CONNECTIONS", value_name = "N", allow_hyphen_values = true)]
    pub max_connections: Option<u32>,
    /// How many of them from one address. [default: a tenth of them, 100 at least]
    #[arg(long, env = "KAGZI_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", allow_hyphen_values = true)]
    pub max_connections_per_address: Option<u32>,
    /// How many starts may be in flight. [default: 2048]
    #[arg(long, env = "KAGZI_MAX_STARTS_IN_FLIGHT", value_name = "N", allow_hyphen_values = true)]
    pub max_starts_in_flight: Option<u32>,
    /// How many reads and other calls that neither wait nor finish work may be in flight. [default: 4096]
    #[arg(long, env = "KAGZI_MAX_READS_IN_FLIGHT", value_name = "N", allow_hyphen_values = true)]
    pub max_reads_in_flight: Option<u32>,
    /// How many calls may wait for work or for the end of a run. [default: 50000]
    #[arg(long, env = "KAGZI_MAX_WAITS", value_name = "N", allow_hyphen_values = true)]
    pub max_waits: Option<u32>,
    /// How many streams may be open: of workers, of clients, watches of the health, reflections. [default: 10000]
    #[arg(long, env = "KAGZI_MAX_STREAMS", value_name = "N", allow_hyphen_values = true)]
    pub max_streams: Option<u32>,
    /// How many bytes of requests that are not done and of answers that were not sent may be held; more is refused.
    /// [default: 536870912, 512 MiB]
    #[arg(long, env = "KAGZI_MAX_BYTES_IN_FLIGHT", value_name = "BYTES", allow_hyphen_values = true)]
    pub max_bytes_in_flight: Option<usize>,
    /// How long a request, or a message of a stream, has to arrive whole. [default: 30s]
    #[arg(long, env = "KAGZI_REQUEST_BODY_TIMEOUT", value_name = "DURATION", allow_hyphen_values = true)]
    pub request_body_timeout: Option<Length>,
    /// Which part of those five one principal may take, up to 1; all of them without an access file.
    /// [default: 0.5]
    #[arg(long, env = "KAGZI_PRINCIPAL_SHARE", value_name = "PART", allow_hyphen_values = true)]
    pub principal_share: Option<f64>,
    /// Which part of them, streams and bytes aside, the callers of one namespace may take, up to 1; all of them if it is the
    /// only one. [default: 0.5]
    #[arg(long, env = "KAGZI_NAMESPACE_SHARE", value_name = "PART", allow_hyphen_values = true)]
    pub namespace_share: Option<f64>,
    /// No runs are handed out while so many heartbeats and writes of workers are in flight. [default: 1024]
    #[arg(long, env = "KAGZI_MAX_WRITES_WHILE_CLAIMING", value_name = "N", allow_hyphen_values = true)]
    pub max_writes_while_claiming: Option<u32>,
    /// How many requests of one worker's stream may be in flight or have an answer that was not taken.
    /// [default: 1024]
    #[arg(long, env = "KAGZI_MAX_STREAM_REQUESTS", value_name = "N", allow_hyphen_values = true)]
    pub max_stream_requests: Option<u32>,
    /// A worker's stream is not read from while its requests hold so much. [default: 8388608, 8 MiB]
    #[arg(long, env = "KAGZI_MAX_STREAM_BYTES", value_name = "BYTES", allow_hyphen_values = true)]
    pub max_stream_bytes: Option<usize>,
    /// COMPLETED runs are removed so long after their end. [default: never]
    #[arg(long, env = "KAGZI_RETENTION_COMPLETED", value_name = "DURATION", allow_hyphen_values = true)]
    pub retention_completed: Option<Length>,
    /// FAILED runs, the dead letters, are removed so long after their end. [default: never]
    #[arg(long, env = "KAGZI_RETENTION_FAILED", value_name = "DURATION", allow_hyphen_values = true)]
    pub retention_failed: Option<Length>,
    /// CANCELLED runs are removed so long after their end. [default: never]
    #[arg(long, env = "KAGZI_RETENTION_CANCELLED", value_name = "DURATION", allow_hyphen_values = true)]
    pub retention_cancelled: Option<Length>,
    /// How many runs one such removal takes at most. [default: 500]
    #[arg(long, env = "KAGZI_RETENTION_BATCH", value_name = "N", allow_hyphen_values = true)]
    pub retention_batch: Option<u32>,
    /// How often it is looked for runs to remove. [default: 1m]
    #[arg(long, env = "KAGZI_RETENTION_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub retention_interval: Option<Length>,
    /// The access file: who may come, and what they may do (a TOML file; docs/security.md describes it,
    /// `kagzi token new` makes tokens for it). [default: anybody may do anything]
    #[arg(long, env = "KAGZI_ACCESS_FILE", value_name = "FILE")]
    pub access_file: Option<PathBuf>,
    /// The server's TLS certificate with its chain, a PEM file. [default: no TLS]
    #[arg(long, env = "KAGZI_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the TLS certificate, a PEM file.
    #[arg(long, env = "KAGZI_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The authorities that vouch for clients' certificates, a PEM file. [default: clients show none]
    #[arg(long, env = "KAGZI_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// The keys that JWTs are verified by, a JSON Web Key Set: a file, or an https:// URL. [default: no JWTs]
    #[arg(long, env = "KAGZI_JWT_KEYS", value_name = "FILE|URL", hide_env_values = true)]
    pub jwt_keys: Option<String>,
    /// Who must have issued JWTs, their `iss`.
    #[arg(long, env = "KAGZI_JWT_ISSUER", value_name = "ISSUER")]
    pub jwt_issuer: Option<String>,
    /// Whom JWTs must be for, their `aud`.
    #[arg(long, env = "KAGZI_JWT_AUDIENCE", value_name = "AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// Which claim of a JWT is the subject that the access file names. [default: sub]
    #[arg(long, env = "KAGZI_JWT_SUBJECT_CLAIM", value_name = "CLAIM")]
    pub jwt_subject_claim: Option<String>,
    /// How far the clocks of the JWTs' issuer and of this machine may be apart. [default: 30s]
    #[arg(long, env = "KAGZI_JWT_LEEWAY", value_name = "DURATION", allow_hyphen_values = true)]
    pub jwt_leeway: Option<Length>,
    /// How often JWT keys behind a URL are asked for. [default: 5m]
    #[arg(long, env = "KAGZI_JWT_REFRESH_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub jwt_refresh_interval: Option<Length>,
    /// How often the files of access, keys and TLS are looked at for changes. [default: 5s]
    #[arg(long, env = "KAGZI_AUTH_RELOAD_INTERVAL", value_name = "DURATION", allow_hyphen_values = true)]
    pub auth_reload_interval: Option<Length>,
    /// Listen beyond loopback although callers are not authenticated or connections not encrypted:
    /// something before this server does it. [default: false]
    #[arg(
        long,
        env = "KAGZI_INSECURE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub insecure: Option<bool>,
    /// A file to which the actions of operators are added, one JSON object a line, beside the log.
    /// [default: the log alone]
    #[arg(long, env = "KAGZI_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Export spans to this OpenTelemetry collector, by OTLP over gRPC; the standard `OTEL_*` variables say
    /// the rest. [default: the one that `OTEL_EXPORTER_OTLP_ENDPOINT` names, else none]
    #[arg(long, env = "KAGZI_OTLP_ENDPOINT", value_name = "URL", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
    /// How log lines look. [default: text]
    #[arg(long, env = "KAGZI_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// What is logged: a level, or directives such as `info,kagzi_core=debug`. [default: info]
    #[arg(long, env = "KAGZI_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// Shows which store, without its password, and nothing more.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = self.store.as_deref().map(without_password);
        f.debug_struct("Settings").field("store", &store).finish_non_exhaustive()
    }
}

impl Settings {
    /// These settings, and where they say nothing, those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            http_listen: self.http_listen.or(other.http_listen),
            http_insecure: self.http_insecure.or(other.http_insecure),
            metrics_interval: self.metrics_interval.or(other.metrics_interval),
            store: self.store.or(other.store),
            store_connections: self.store_connections.or(other.store_connections),
            store_partitions: self.store_partitions.or(other.store_partitions),
            migrate: self.migrate.or(other.migrate),
            start_timeout: self.start_timeout.or(other.start_timeout),
            namespaces: self.namespaces.or(other.namespaces),
            max_payload_bytes: self.max_payload_bytes.or(other.max_payload_bytes),
            max_failure_message_bytes: self.max_failure_message_bytes.or(other.max_failure_message_bytes),
            max_message_bytes: self.max_message_bytes.or(other.max_message_bytes),
            max_batch: self.max_batch.or(other.max_batch),
            default_lease: self.default_lease.or(other.default_lease),
            min_lease: self.min_lease.or(other.min_lease),
            max_lease: self.max_lease.or(other.max_lease),
            max_poll_wait: self.max_poll_wait.or(other.max_poll_wait),
            poll_interval: self.poll_interval.or(other.poll_interval),
            poison_after: self.poison_after.or(other.poison_after),
            retry_max_attempts: self.retry_max_attempts.or(other.retry_max_attempts),
            retry_first_delay: self.retry_first_delay.or(other.retry_first_delay),
            retry_factor: self.retry_factor.or(other.retry_factor),
            retry_max_delay: self.retry_max_delay.or(other.retry_max_delay),
            retry_jitter: self.retry_jitter.or(other.retry_jitter),
            reap_batch: self.reap_batch.or(other.reap_batch),
            reap_interval: self.reap_interval.or(other.reap_interval),
            reap_backoff: self.reap_backoff.or(other.reap_backoff),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
            health_interval: self.health_interval.or(other.health_interval),
            keepalive_interval: self.keepalive_interval.or(other.keepalive_interval),
            max_concurrent_streams: self.max_concurrent_streams.or(other.max_concurrent_streams),
            rate_per_principal: self.rate_per_principal.or(other.rate_per_principal),
            rate_per_principal_burst: self.rate_per_principal_burst.or(other.rate_per_principal_burst),
            rate_per_namespace: self.rate_per_namespace.or(other.rate_per_namespace),
            rate_per_namespace_burst: self.rate_per_namespace_burst.or(other.rate_per_namespace_burst),
            rate_auth_failures: self.rate_auth_failures.or(other.rate_auth_failures),
            rate_auth_failures_burst: self.rate_auth_failures_burst.or(other.rate_auth_failures_burst),
            rate_on_record: self.rate_on_record.or(other.rate_on_record),
            rate_on_record_burst: self.rate_on_record_burst.or(other.rate_on_record_burst),
            max_connections: self.max_connections.or(other.max_connections),
            max_connections_per_address: self
                .max_connections_per_address
                .or(other.max_connections_per_address),
            max_starts_in_flight: self.max_starts_in_flight.or(other.max_starts_in_flight),
            max_reads_in_flight: self.max_reads_in_flight.or(other.max_reads_in_flight),
            max_waits: self.max_waits.or(other.max_waits),
            max_streams: self.max_streams.or(other.max_streams),
            max_bytes_in_flight: self.max_bytes_in_flight.or(other.max_bytes_in_flight),
            request_body_timeout: self.request_body_timeout.or(other.request_body_timeout),
            principal_share: self.principal_share.or(other.principal_share),
            namespace_share: self.namespace_share.or(other.namespace_share),
            max_writes_while_claiming: self.max_writes_while_claiming.or(other.max_writes_while_claiming),
            max_stream_requests: self.max_stream_requests.or(other.max_stream_requests),
            max_stream_bytes: self.max_stream_bytes.or(other.max_stream_bytes),
            retention_completed: self.retention_completed.or(other.retention_completed),
            retention_failed: self.retention_failed.or(other.retention_failed),
            retention_cancelled: self.retention_cancelled.or(other.retention_cancelled),
            retention_batch: self.retention_batch.or(other.retention_batch),
            retention_interval: self.retention_interval.or(other.retention_interval),
            access_file: self.access_file.or(other.access_file),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            jwt_keys: self.jwt_keys.or(other.jwt_keys),
            jwt_issuer: self.jwt_issuer.or(other.jwt_issuer),
            jwt_audience: self.jwt_audience.or(other.jwt_audience),
            jwt_subject_claim: self.jwt_subject_claim.or(other.jwt_subject_claim),
            jwt_leeway: self.jwt_leeway.or(other.jwt_leeway),
            jwt_refresh_interval: self.jwt_refresh_interval.or(other.jwt_refresh_interval),
            auth_reload_interval: self.auth_reload_interval.or(other.auth_reload_interval),
            insecure: self.insecure.or(other.insecure),
            audit_log: self.audit_log.or(other.audit_log),
            otlp_endpoint: self.otlp_endpoint.or(other.otlp_endpoint),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
        }
    }
}

/// The arguments of a command that serves: every setting, and where the file is.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// A TOML file with any of these settings, under the same names with underscores.
    #[arg(long, env = "KAGZI_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings given as flags or variables.
    #[command(flatten)]
    pub settings: Settings,
}

impl ServeArgs {
    /// The configuration: flags before variables before the file before defaults.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file cannot be read or a value is refused.
    pub fn into_config(self) -> Result<ServerConfig, ConfigError> {
        self.into_settings()?.into_config()
    }

    /// What was said anywhere: flags before variables before the file. The rest is nothing, not yet a default.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file cannot be read.
    pub fn into_settings(self) -> Result<Settings, ConfigError> {
        let file = match &self.config {
            Some(path) => file::read(path)?,
            None => Settings::default(),
        };
        Ok(self.settings.or(file))
    }
}
