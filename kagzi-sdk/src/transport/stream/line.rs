//! A way by stream that outlives its streams: opened when it is needed, and again when it broke.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::StoreError;
use tokio::time::Instant;

use super::connection::Connection;
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

    /// The stream, opened within `timeout` by `open` if need be; nothing if the server has none.
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
        F: Future<Output = Result<Option<Connection<P>>, StoreError>>,
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
        failures.wait_over(P::NAME)?;
        let opened = tokio::time::timeout(timeout, open())
            .await
            .unwrap_or_else(|_| Err(StoreError::outcome_unknown(format!("no stream within {timeout:?}"))));
        let error = match opened {
            Ok(Some(connection)) => {
                *failures = Failures::default();
                let connection = Arc::new(connection);
                *self.slot() = Some(Arc::clone(&connection));
                return Ok(Some(connection));
            }
            Ok(None) => {
                tracing::info!("the server does not know {}: going by calls", P::NAME);
                self.unary.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Err(error) => error,
        };
        failures.count += 1;
        let delay = self.backoff.delay(failures.count, asked_for(&error));
        failures.not_before = Some(Instant::now() + delay);
        Err(error)
    }
}

impl Failures {
    /// Refuses to open the stream again before its time.
    fn wait_over(&self, name: &str) -> Result<(), StoreError> {
        let left = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        match left.filter(|left| !left.is_zero()) {
            None => Ok(()),
            Some(retry_after) => {
                let reason = format!("{name} is down and not opened again yet");
                Err(StoreError::unavailable(reason, retry_after))
            }
        }
    }
}
