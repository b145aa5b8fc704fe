//! A way by stream that outlives its streams: opened when it is needed, and again when it broke.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::StoreError;
use tokio::time::Instant;

use super::connection::{Connection, Opened};
use super::protocol::Protocol;
use crate::backoff::Backoff;
use crate::calls::asked_for;

/// See the module.
#[derive(Debug)]
pub(super) struct Line<P: Protocol> {
    connection: Mutex<Option<Arc<Connection<P>>>>,
    /// Whoever opens the stream holds it.
    opening: tokio::sync::Mutex<Failures>,
    backoff: Backoff,
    /// The server has no such stream.
    unary: AtomicBool,
}

/// The attempts to open the stream since it last succeeded.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    not_before: Option<Instant>,
    /// The server had no place for the stream: meanwhile requests go by calls.
    by_calls: bool,
}

impl<P: Protocol> Line<P> {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            connection: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            backoff,
            unary: AtomicBool::new(false),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection<P>>>> {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Connection<P>>> {
        self.slot().as_ref().filter(|connection| !connection.is_broken()).cloned()
    }

    /// The stream, opened within `timeout` by `open` if need be; nothing if the server has none, or none for us for now.
    ///
    /// # Errors
    ///
    /// Those of `open`, and [`StoreError::Unavailable`] while the backoff lasts after one of them.
    pub(super) async fn connection<F>(
        &self,
        timeout: Duration,
        open: impl FnOnce() -> F,
    ) -> Result<Option<Arc<Connection<P>>>, StoreError>
    where
        F: Future<Output = Result<Opened<P>, StoreError>>,
    {
        if let Some(connection) = self.current() {
            return Ok(Some(connection));
        }
        if self.unary.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut failures = self.opening.lock().await;
        // Meanwhile another request may have found out.
        if self.unary.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some(connection) = self.current() {
            return Ok(Some(connection));
        }
        if let Some(retry_after) = failures.wait() {
            if failures.by_calls {
                return Ok(None);
            }
            let reason = format!("{} is down and not opened again yet", P::NAME);
            return Err(StoreError::unavailable(reason, retry_after));
        }
        let opened = tokio::time::timeout(timeout, open())
            .await
            .unwrap_or_else(|_| Err(StoreError::outcome_unknown(format!("no stream within {timeout:?}"))));
        let error = match opened {
            Ok(Opened::Accepted(connection)) => {
                *failures = Failures::default();
                let connection = Arc::new(connection);
                *self.slot() = Some(Arc::clone(&connection));
                return Ok(Some(connection));
            }
            Ok(Opened::Unknown) => {
                tracing::info!("the server does not know {}: going by calls", P::NAME);
                self.unary.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Ok(Opened::Full(error)) => {
                if !failures.by_calls {
                    tracing::warn!(%error, "the server has no place for {}: going by calls for now", P::NAME);
                }
                failures.note(&error, self.backoff, true);
                return Ok(None);
            }
            Err(error) => error,
        };
        failures.note(&error, self.backoff, false);
        Err(error)
    }
}

impl Failures {
    /// How long it is until the stream may be opened again.
    fn wait(&self) -> Option<Duration> {
        let left = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero())
    }

    fn note(&mut self, error: &StoreError, backoff: Backoff, by_calls: bool) {
        self.count += 1;
        self.not_before = Some(Instant::now() + backoff.delay(self.count, asked_for(error)));
        self.by_calls = by_calls;
    }
}
