//! How much of the server one caller may take.

use std::time::Duration;

use kagzi_core::{MAX_BATCH, MAX_DURATION};

use super::{ConfigError, Length, Settings, refuse};

/// No rate or burst is higher: a million a second.
const MAX_RATE: u32 = 1_000_000;

/// So many connections one address may open on however small a server, unless it says otherwise.
const LEAST_CONNECTIONS_OF_ONE_ADDRESS: u32 = 100;

/// How often somebody may call: so many a second on the average, and so many at once after a quiet time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many calls a second, from 1 to 1,000,000.
    pub per_second: u32,
    /// How many at once, from 1 to 1,000,000. By default as many as in a second.
    pub burst: u32,
}

/// How much of the server callers may take, together and each.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadLimits {
    /// How often one principal may start, read and poll; nothing: as often as they like, the default.
    pub rate_per_principal: Option<RateLimit>,
    /// The same for all callers of one namespace together. No limit by default.
    pub rate_per_namespace: Option<RateLimit>,
    /// How often calls from one address may show credentials that nobody knows. Default 10 a second, 100 at once.
    pub rate_auth_failures: RateLimit,
    /// How often one principal may make calls that go on record (cancellations, say) where it is neither operator nor
    /// admin. Default 10 a second, 200 at once: what one principal adds to the audit log is 1 GB a day at most, or 3 GB
    /// with reasons as long as stand there.
    pub rate_on_record: RateLimit,
    /// How many connections may be open. Default 10,000.
    pub max_connections: u32,
    /// How many of them from one address (a /64 of IPv6); nothing: a tenth of them, and 100 at least, the default.
    /// Where all clients come through one proxy, as many as `max_connections`.
    pub max_connections_per_address: Option<u32>,
    /// How many starts may be in flight. Default 2048.
    pub max_starts_in_flight: u32,
    /// How many reads and other calls that neither wait nor finish work may be in flight. Default 4096.
    pub max_reads_in_flight: u32,
    /// How many calls may wait for work or for a run's end. Default 50,000.
    pub max_waits: u32,
    /// How many streams of workers and clients, watches of the health and reflections may be open. Default 10,000.
    pub max_streams: u32,
    /// How many bytes the server holds of requests that are read or not done yet and of answers that were not sent yet,
    /// at least twice `max_message_bytes`, each call 16 KiB at least. One principal has its share of them, and room for one
    /// message at least; an eighth is for those who hold little. Default 512 MiB.
    pub max_bytes_in_flight: usize,
    /// Which part of these places one principal may take, above 0 to 1; without an access file there is
    /// one principal, who may take all. Default 0.5.
    pub principal_share: f64,
    /// Which part of these places the callers of one namespace may take, above 0 to 1; a server of one
    /// namespace gives it all. Default 0.5.
    pub namespace_share: f64,
    /// No runs are claimed while so many heartbeats and writes of workers are in flight. Default 1024.
    pub max_writes_while_claiming: u32,
    /// How many requests of one worker's stream may be in flight or have an answer that was not taken.
    /// Default 1024.
    pub max_stream_requests: u32,
    /// A worker's stream is not read from while its requests hold so many bytes. Default 8 MiB.
    pub max_stream_bytes: usize,
}

impl Default for LoadLimits {
    fn default() -> Self {
        Self {
            rate_per_principal: None,
            rate_per_namespace: None,
            rate_auth_failures: RateLimit { per_second: 10, burst: 100 },
            rate_on_record: RateLimit { per_second: 10, burst: 200 },
            max_connections: 10_000,
            max_connections_per_address: None,
            max_starts_in_flight: 2048,
            max_reads_in_flight: 4096,
            max_waits: 50_000,
            max_streams: 10_000,
            max_bytes_in_flight: 512 * 1024 * 1024,
            principal_share: 0.5,
            namespace_share: 0.5,
            max_writes_while_claiming: 1024,
            max_stream_requests: 1024,
            max_stream_bytes: 8 * 1024 * 1024,
        }
    }
}

impl LoadLimits {
    pub(super) fn of(settings: &Settings) -> Result<Self, ConfigError> {
        let default = Self::default();
        let rate = |key: &str, rate: Option<u32>, burst: Option<u32>| match (rate, burst) {
            (Some(per_second), burst) => {
                Ok(Some(RateLimit { per_second, burst: burst.unwrap_or(per_second) }))
            }
            (None, None) => Ok(None),
            (None, Some(_)) => {
                refuse(&format!("{key}_burst"), format!("{key} beside it"), format!("no {key}"))
            }
        };
        Ok(Self {
            rate_per_principal: rate(
                "rate_per_principal",
                settings.rate_per_principal,
                settings.rate_per_principal_burst,
            )?,
            rate_per_namespace: rate(
                "rate_per_namespace",
                settings.rate_per_namespace,
                settings.rate_per_namespace_burst,
            )?,
            rate_auth_failures: RateLimit {
                per_second: settings.rate_auth_failures.unwrap_or(default.rate_auth_failures.per_second),
                burst: settings.rate_auth_failures_burst.unwrap_or(default.rate_auth_failures.burst),
            },
            rate_on_record: RateLimit {
                per_second: settings.rate_on_record.unwrap_or(default.rate_on_record.per_second),
                burst: settings.rate_on_record_burst.unwrap_or(default.rate_on_record.burst),
            },
            max_connections: settings.max_connections.unwrap_or(default.max_connections),
            max_connections_per_address: settings.max_connections_per_address,
            max_starts_in_flight: settings.max_starts_in_flight.unwrap_or(default.max_starts_in_flight),
            max_reads_in_flight: settings.max_reads_in_flight.unwrap_or(default.max_reads_in_flight),
            max_waits: settings.max_waits.unwrap_or(default.max_waits),
            max_streams: settings.max_streams.unwrap_or(default.max_streams),
            max_bytes_in_flight: settings.max_bytes_in_flight.unwrap_or(default.max_bytes_in_flight),
            principal_share: settings.principal_share.unwrap_or(default.principal_share),
            namespace_share: settings.namespace_share.unwrap_or(default.namespace_share),
            max_writes_while_claiming: settings
                .max_writes_while_claiming
                .unwrap_or(default.max_writes_while_claiming),
            max_stream_requests: settings.max_stream_requests.unwrap_or(default.max_stream_requests),
            max_stream_bytes: settings.max_stream_bytes.unwrap_or(default.max_stream_bytes),
        })
    }

    /// How many connections may be open from one address.
    pub(crate) fn connections_of_one_address(&self) -> u32 {
        let share = (self.max_connections / 10).max(LEAST_CONNECTIONS_OF_ONE_ADDRESS);
        self.max_connections_per_address.unwrap_or(share)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let rates = [
            ("rate_per_principal", self.rate_per_principal),
            ("rate_per_namespace", self.rate_per_namespace),
            ("rate_auth_failures", Some(self.rate_auth_failures)),
            ("rate_on_record", Some(self.rate_on_record)),
        ];
        for (key, rate) in rates {
            let Some(RateLimit { per_second, burst }) = rate else { continue };
            if !(1..=MAX_RATE).contains(&per_second) {
                return refuse(key, format!("from 1 to {MAX_RATE}"), per_second);
            }
            if !(1..=MAX_RATE).contains(&burst) {
                return refuse(&format!("{key}_burst"), format!("from 1 to {MAX_RATE}"), burst);
            }
        }
        let counts = [
            ("max_connections", self.max_connections),
            ("max_connections_per_address", self.max_connections_per_address.unwrap_or(1)),
            ("max_starts_in_flight", self.max_starts_in_flight),
            ("max_reads_in_flight", self.max_reads_in_flight),
            ("max_waits", self.max_waits),
            ("max_streams", self.max_streams),
            ("max_writes_while_claiming", self.max_writes_while_claiming),
            ("max_stream_requests", self.max_stream_requests),
        ];
        if let Some((key, none)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return refuse(key, "at least 1", none);
        }
        if self.max_stream_bytes == 0 {
            return refuse("max_stream_bytes", "at least 1", 0);
        }
        let shares = [("principal_share", self.principal_share), ("namespace_share", self.namespace_share)];
        match shares.into_iter().find(|(_, share)| !(*share > 0.0 && *share <= 1.0)) {
            Some((key, share)) => refuse(key, "above 0, at most 1", share),
            None => Ok(()),
        }
    }
}

/// For how long finished runs are kept, and how they are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long COMPLETED runs are kept after their end; nothing: for ever, the default.
    pub completed: Option<Duration>,
    /// How long FAILED runs, the dead letters, are kept; nothing: for ever, the default.
    pub failed: Option<Duration>,
    /// How long CANCELLED runs are kept; nothing: for ever, the default.
    pub cancelled: Option<Duration>,
    /// How many runs one removal takes at most, from 1 to 10,000. Default 500.
    pub batch: u32,
    /// How often it is looked for runs whose time is over. Default 1 min.
    pub interval: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { completed: None, failed: None, cancelled: None, batch: 500, interval: Duration::from_mins(1) }
    }
}

impl Retention {
    pub(super) fn of(settings: &Settings) -> Self {
        let default = Self::default();
        let length = |said: Option<Length>| said.map(Into::into);
        Self {
            completed: length(settings.retention_completed),
            failed: length(settings.retention_failed),
            cancelled: length(settings.retention_cancelled),
            batch: settings.retention_batch.unwrap_or(default.batch),
            interval: length(settings.retention_interval).unwrap_or(default.interval),
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let lengths = [
            ("retention_completed", self.completed),
            ("retention_failed", self.failed),
            ("retention_cancelled", self.cancelled),
            ("retention_interval", Some(self.interval)),
        ];
        for (key, length) in lengths {
            let Some(length) = length else { continue };
            if length < Duration::from_millis(1) || length > MAX_DURATION {
                return refuse(key, "from 1ms to 100 years", format!("{length:?}"));
            }
        }
        if !(1..=MAX_BATCH).contains(&self.batch) {
            return refuse("retention_batch", format!("from 1 to {MAX_BATCH}"), self.batch);
        }
        Ok(())
    }
}
