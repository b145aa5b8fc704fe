//! A start while the store is away: the server takes its addresses all the same, says that it is alive and not ready,
//! refuses calls with a delay, and tries again until the store is there or `start_timeout` has passed. Whoever restarts
//! servers that end would only make them, and those who wait for them, later.
//!
//! What waiting cannot mend ends the start at once: a wrong password, a schema that this program does not know, a setting
//! that is refused.

mod awaited;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::SharedStore;
use tokio::time::{Instant, sleep};

use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::open::{backend, open_store};
use awaited::Awaited;

/// The pauses between two tries: the first, and the longest. A random part of up to a half is taken off, so that several
/// servers do not try at the same moment.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A store that a server works over, opened or still waited for.
pub(crate) struct Opened {
    pub(crate) store: SharedStore,
    pub(crate) waiting: Option<Waiting>,
}

/// Who waits for a store.
#[derive(Debug)]
pub(crate) struct Waiting {
    config: ServerConfig,
    store: Arc<Awaited>,
    began: Instant,
    /// Why it did not open the last time.
    last: ServerError,
}

/// Opens the store, or begins to wait for one that is away.
pub(crate) async fn open_or_wait(config: &ServerConfig) -> Result<Opened, ServerError> {
    let began = Instant::now();
    match Box::pin(open_store(config)).await {
        Ok(store) => Ok(Opened { store, waiting: None }),
        Err(last) if last.is_for_now() && !config.start_timeout.is_zero() => {
            let store = Arc::new(Awaited::new(backend(config)?, last.reason()));
            let waiting = Waiting { config: config.clone(), store: Arc::clone(&store), began, last };
            Ok(Opened { store, waiting: Some(waiting) })
        }
        Err(error) => Err(error),
    }
}

impl Waiting {
    /// Tries until the store is there; then it never returns. Dropped, it stops trying.
    ///
    /// # Errors
    ///
    /// [`ServerError::StoreStayedAway`] when `start_timeout` has passed, and at once what waiting cannot mend.
    pub(crate) async fn run(mut self) -> Result<Infallible, ServerError> {
        let mut pause = FIRST_PAUSE;
        for tried in 1_u32.. {
            let left = self.config.start_timeout.saturating_sub(self.began.elapsed());
            if left.is_zero() {
                break;
            }
            let retry_in = pause.mul_f64(1.0 - fastrand::f64() / 2.0).min(left);
            tracing::warn!(
                error = %self.last,
                tried,
                ?retry_in,
                ?left,
                "the store does not open yet: NOT_SERVING, calls are refused until it does"
            );
            sleep(retry_in).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match Box::pin(open_store(&self.config)).await {
                Ok(store) => {
                    tracing::info!(waited = ?self.began.elapsed(), "the store has opened");
                    self.store.is(store);
                    return pending().await;
                }
                Err(error) if error.is_for_now() => {
                    self.store.is_away(error.reason());
                    self.last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(self.last.for_so_long(self.config.start_timeout))
    }
}
