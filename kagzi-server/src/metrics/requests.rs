//! Requests: how many, how long, how they were answered, and which were not let in.

use std::time::Instant;

use kagzi_sdk::wire::error::{
    LIMIT_REACHED, NAMESPACE_NOT_FOUND, OVERLOADED, PERMISSION_DENIED, REQUEST_TIMEOUT, Refusal,
    SHUTTING_DOWN, UNAUTHENTICATED,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tonic::Code;

use super::Metrics;
use super::label::{Book, Counters, Gauges, Label as _, Pair, label};
use super::operation::durations;
use crate::config::LoadLimits;

label! {
    /// Why a request was not let in. Whoever adds a reason to refuse adds it here and to [`Refused::of`].
    Refused {
        Unauthenticated => "unauthenticated",
        PermissionDenied => "permission_denied",
        Overloaded => "overloaded",
        RatePerPrincipal => "rate_per_principal",
        RatePerNamespace => "rate_per_namespace",
        RateAuthFailures => "rate_auth_failures",
        RateOnRecord => "rate_on_record",
        PrincipalShare => "principal_share",
        NamespaceShare => "namespace_share",
        BytesInFlight => "max_bytes_in_flight",
        BodyTimeout => "request_body_timeout",
        Connections => "connections",
        ShuttingDown => "shutting_down",
        UnknownNamespace => "unknown_namespace",
    }
}

impl Refused {
    fn of(refusal: &Refusal) -> Option<Self> {
        match refusal.reason() {
            UNAUTHENTICATED => Some(Self::Unauthenticated),
            PERMISSION_DENIED => Some(Self::PermissionDenied),
            OVERLOADED => Some(Self::Overloaded),
            LIMIT_REACHED => {
                let limit = refusal.limit()?;
                Self::ALL.iter().copied().find(|reason| reason.as_str() == limit)
            }
            REQUEST_TIMEOUT => Some(Self::BodyTimeout),
            SHUTTING_DOWN => Some(Self::ShuttingDown),
            NAMESPACE_NOT_FOUND => Some(Self::UnknownNamespace),
            _ => None,
        }
    }
}

label! {
    /// What a request waits for that was not refused.
    Wait {
        Rate => "rate",
        Calm => "fewer_writes",
        Turn => "turn",
        Scan => "scan",
        Look => "look",
        Room => "room",
    }
}

/// Requests, be they calls or messages of a worker's stream.
#[derive(Debug)]
pub(super) struct Requests {
    answered: Family<[Pair; 2], Counter>,
    durations: Family<[Pair; 1], Histogram>,
    in_flight: Gauge,
    waiting: Gauges<Wait>,
    refused: Counters<Refused>,
    worker_streams: Gauge,
    client_streams: Gauge,
    connections: Gauge,
    connections_limit: Gauge,
    bytes: Gauge,
    bytes_limit: Gauge,
}

impl Requests {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            answered: book.register(
                "requests",
                &["method", "code"],
                "Requests by method and gRPC code, each message of a worker's stream by itself; CANCELLED: the caller went away",
                Family::default(),
            ),
            durations: book.register(
                "request_duration_seconds",
                &["method"],
                "How long requests took, the waits of long polls included",
                Family::new_with_constructor(durations as fn() -> Histogram),
            ),
            in_flight: book.register(
                "requests_in_flight",
                &[],
                "Requests that were not answered yet, long polls included",
                Gauge::default(),
            ),
            waiting: book.gauges(
                "requests_waiting",
                &["for"],
                "Requests that wait to be let in: rate, fewer_writes (claims), turn (writes beyond principal_share), scan (pages and counts beyond what the store reads at once, or a share of it), look (at a run that this server did not hand out), room (max_bytes_in_flight)",
            ),
            refused: book.counters("refusals", &["reason"], "Requests that were not let in, by reason"),
            worker_streams: book.register(
                "worker_streams",
                &[],
                "Streams of workers that are open",
                Gauge::default(),
            ),
            client_streams: book.register(
                "client_streams",
                &[],
                "Streams of clients that are open",
                Gauge::default(),
            ),
            connections: book.register("connections", &[], "Connections that are open", Gauge::default()),
            connections_limit: book.register(
                "connections_limit",
                &[],
                "How many connections may be open (max_connections)",
                Gauge::default(),
            ),
            bytes: book.register(
                "bytes_in_flight",
                &[],
                "Bytes of requests that were not done yet and of answers that were not sent yet",
                Gauge::default(),
            ),
            bytes_limit: book.register(
                "bytes_in_flight_limit",
                &[],
                "How many of these bytes the server holds at most (max_bytes_in_flight)",
                Gauge::default(),
            ),
        }
    }
}

/// A request in flight; counted when it ends, or when its caller goes away.
#[derive(Debug)]
pub(crate) struct InFlight {
    metrics: Metrics,
    method: &'static str,
    began: Instant,
    code: Code,
}

/// Counts a stream, or a request that waits, while it lives.
#[derive(Debug)]
pub(crate) struct Shown(Gauge);

/// Counts a connection while it lives.
#[derive(Debug)]
pub(crate) struct OpenConnection(Metrics);

impl Metrics {
    /// Shows the bounds that some of these figures have.
    pub(crate) fn show_limits(&self, limits: &LoadLimits) {
        self.0.requests.connections_limit.set(limits.max_connections.into());
        self.0.requests.bytes_limit.set(i64::try_from(limits.max_bytes_in_flight).unwrap_or(i64::MAX));
    }

    /// Counts a connection, until what this gives is dropped.
    pub(crate) fn connection(&self) -> OpenConnection {
        self.0.requests.connections.inc();
        OpenConnection(self.clone())
    }

    /// Counts a connection that was closed because there were as many as may be.
    pub(crate) fn refused_connection(&self) {
        self.0.requests.refused.of(Refused::Connections).inc();
    }

    /// Shows more bytes that are held.
    pub(crate) fn bytes_held(&self, more: usize) {
        self.0.requests.bytes.inc_by(i64::try_from(more).unwrap_or(i64::MAX));
    }

    /// Shows that so many bytes are held no more.
    pub(crate) fn bytes_released(&self, fewer: usize) {
        self.0.requests.bytes.dec_by(i64::try_from(fewer).unwrap_or(i64::MAX));
    }

    /// Begins to count a request.
    pub(crate) fn request(&self, method: &'static str) -> InFlight {
        self.0.requests.in_flight.inc();
        InFlight { metrics: self.clone(), method, began: Instant::now(), code: Code::Cancelled }
    }

    /// Counts a request that was not let in. [`InFlight::end`] does it for those that got so far.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Some(reason) = Refused::of(refusal) {
            self.0.requests.refused.of(reason).inc();
        }
    }

    /// Counts a request that waits, until what this gives is dropped.
    pub(crate) fn waits(&self, what_for: Wait) -> Shown {
        Shown::counted_by(self.0.requests.waiting.of(what_for))
    }

    /// Counts a request while it waits.
    pub(crate) async fn waiting<T>(&self, what_for: Wait, until: impl Future<Output = T>) -> T {
        let _counted = self.waits(what_for);
        until.await
    }

    /// Counts a stream of a worker, until what this gives is dropped.
    pub(crate) fn worker_stream(&self) -> Shown {
        Shown::counted_by(&self.0.requests.worker_streams)
    }

    /// The same of a client.
    pub(crate) fn client_stream(&self) -> Shown {
        Shown::counted_by(&self.0.requests.client_streams)
    }
}

impl InFlight {
    /// The request has its answer.
    pub(crate) fn end<T>(mut self, answer: &Result<T, Refusal>) {
        self.code = match answer {
            Ok(_) => Code::Ok,
            Err(refusal) => {
                self.metrics.refused(refusal);
                refusal.code()
            }
        };
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let requests = &self.metrics.0.requests;
        requests.in_flight.dec();
        requests.answered.get_or_create(&[("method", self.method), ("code", name(self.code))]).inc();
        let took = self.began.elapsed().as_secs_f64();
        requests.durations.get_or_create(&[("method", self.method)]).observe(took);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.requests.connections.dec();
    }
}

impl Shown {
    fn counted_by(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A code as the protocol spells it.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
