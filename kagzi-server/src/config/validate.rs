//! What values may be, each by itself and beside the others.

use std::fmt;
use std::time::Duration;

use kagzi_core::{MAX_BATCH, MAX_DURATION, Rules, StoreError};

use super::{ConfigError, Reach, ServerConfig, address};
use crate::telemetry;

/// No payload may be longer: 512 MiB. One message holds three of them, in less than what a length in the
/// protocol and a row of the databases can tell.
const MAX_PAYLOAD_BYTES: usize = 512 * 1024 * 1024;

impl ServerConfig {
    /// Checks every value, also against each other.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] naming the first value at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_names()?;
        self.validate_durations()?;
        self.validate_sizes()?;
        self.validate_security()?;
        self.load.validate()?;
        self.retention.validate()?;
        if !(1..=MAX_BATCH).contains(&self.max_batch) {
            return refuse("max_batch", format!("from 1 to {MAX_BATCH}"), self.max_batch);
        }
        if self.rules.poison_after == 0 {
            return refuse("poison_after", "at least 1", 0);
        }
        if self.max_concurrent_streams == 0 {
            return refuse("max_concurrent_streams", "at least 1", 0);
        }
        if let Some(too_few @ 0..=1) = self.store_connections {
            return refuse("store_connections", "at least 2", too_few);
        }
        self.rules.default_retry.validate().map_err(|error| renamed(error, "retry_policy.", "retry_"))?;
        self.engine.validate().map_err(|error| renamed(error, "", ""))
    }

    fn validate_names(&self) -> Result<(), ConfigError> {
        address::check("listen", &self.listen)?;
        if let Some(address) = &self.http_listen {
            address::check("http_listen", address)?;
            if self.http_reach == Reach::ThisMachine && !address::is_loopback(address) {
                let expected = "a loopback address such as 127.0.0.1:7475, or http_insecure = true, since \
                                this endpoint has neither authentication nor TLS";
                return refuse("http_listen", expected, format!("{address:?}"));
            }
        }
        if let Some(url) = &self.otlp_endpoint {
            telemetry::check_endpoint("otlp_endpoint", url)?;
        }
        if self.namespaces.is_empty() {
            return refuse("namespaces", "at least one namespace", "none");
        }
        let twice =
            self.namespaces.iter().enumerate().find(|(at, name)| self.namespaces[..*at].contains(name));
        match twice {
            Some((_, name)) => refuse("namespaces", "each namespace once", format!("{name} twice")),
            None => Ok(()),
        }
    }

    fn validate_security(&self) -> Result<(), ConfigError> {
        let needs = |key: &str, other: &str| refuse(key, format!("{other} beside it"), format!("no {other}"));
        let jwt = [
            ("jwt_keys", self.jwt_keys.is_some()),
            ("jwt_issuer", self.jwt_issuer.is_some()),
            ("jwt_audience", self.jwt_audience.is_some()),
        ];
        if let Some((said, _)) = jwt.iter().find(|(_, said)| *said) {
            if let Some((missing, _)) = jwt.iter().find(|(_, said)| !said) {
                return needs(said, missing);
            }
            if self.access_file.is_none() {
                return needs(said, "access_file");
            }
        }
        match (&self.tls_cert, &self.tls_key, &self.tls_client_ca) {
            (Some(_), None, _) => needs("tls_cert", "tls_key"),
            (None, Some(_), _) => needs("tls_key", "tls_cert"),
            (None, None, Some(_)) => needs("tls_client_ca", "tls_cert"),
            // A certificate says who it is; what they may do stands in the access file.
            (Some(_), Some(_), Some(_)) if self.access_file.is_none() => {
                needs("tls_client_ca", "access_file")
            }
            _ => Ok(()),
        }
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let Rules { max_payload_bytes, max_message_bytes: max_failure_message_bytes, .. } = self.rules;
        if !(1..=MAX_PAYLOAD_BYTES).contains(&max_payload_bytes) {
            return refuse("max_payload_bytes", format!("from 1 to {MAX_PAYLOAD_BYTES}"), max_payload_bytes);
        }
        if max_failure_message_bytes == 0 {
            return refuse("max_failure_message_bytes", "at least 1", 0);
        }
        // A run with input, output and a failure's details must fit one message.
        let needed = max_payload_bytes.saturating_mul(3).saturating_add(1 << 20);
        if self.max_message_bytes < needed {
            let expected = format!("at least three times max_payload_bytes and 1 MiB: {needed}");
            return refuse("max_message_bytes", expected, self.max_message_bytes);
        }
        // The largest message of one caller leaves room for another's.
        let needed = self.max_message_bytes.saturating_mul(2);
        if self.load.max_bytes_in_flight < needed {
            let expected = format!("at least twice max_message_bytes: {needed}");
            return refuse("max_bytes_in_flight", expected, self.load.max_bytes_in_flight);
        }
        Ok(())
    }

    fn validate_durations(&self) -> Result<(), ConfigError> {
        let positive = [
            ("min_lease", self.min_lease),
            ("default_lease", self.default_lease),
            ("max_lease", self.max_lease),
            ("health_interval", self.health_interval),
            ("auth_reload_interval", self.auth_reload_interval),
            ("jwt_refresh_interval", self.jwt_refresh_interval),
            ("keepalive_interval", self.keepalive_interval),
            ("request_body_timeout", self.request_body_timeout),
            ("metrics_interval", self.metrics_interval),
        ];
        let longest = [
            ("max_poll_wait", self.max_poll_wait),
            ("drain_timeout", self.drain_timeout),
            ("start_timeout", self.start_timeout),
            ("jwt_leeway", self.jwt_leeway),
        ];
        let refuse = |key: &str, expected: &str, got: Duration| refuse(key, expected, format!("{got:?}"));
        for (key, value) in positive {
            if value < Duration::from_millis(1) || value > MAX_DURATION {
                return refuse(key, "from 1ms to 100 years", value);
            }
        }
        for (key, value) in longest {
            if value > MAX_DURATION {
                return refuse(key, "at most 100 years", value);
            }
        }
        if self.min_lease > self.max_lease {
            return refuse("min_lease", "at most max_lease", self.min_lease);
        }
        if !(self.min_lease..=self.max_lease).contains(&self.default_lease) {
            return refuse("default_lease", "from min_lease to max_lease", self.default_lease);
        }
        Ok(())
    }
}

pub(super) fn refuse<T>(
    key: &str,
    expected: impl Into<String>,
    got: impl fmt::Display,
) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { key: key.to_owned(), expected: expected.into(), got: got.to_string() })
}

/// An error of core about a value, under the name that the value has here.
pub(super) fn renamed(error: StoreError, prefix: &str, replacement: &str) -> ConfigError {
    match error {
        StoreError::InvalidArgument { field, expected, got } => {
            ConfigError::Invalid { key: field.replacen(prefix, replacement, 1), expected, got }
        }
        other => ConfigError::Invalid {
            key: "configuration".to_owned(),
            expected: "values that the engine accepts".to_owned(),
            got: other.to_string(),
        },
    }
}
