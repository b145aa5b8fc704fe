//! The engine over a store: what a server, or an application without one, adds to bare operations.
//! Long polls that wait for work, waiting for a run's end, and the reaper.

mod finished;
mod fresh;
mod group;
mod looks;
mod poll;
mod reaper;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::error::StoreError;
use crate::limits::{MAX_BATCH, check_positive_duration};
use crate::store::SharedStore;

/// How an engine waits and reaps. Every value has a stated default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Those who wait for the same work look again together after this long without a hint. Hints make
    /// it rare that such a look finds something; this bounds the delay when one was lost. 1 s by default.
    pub poll_interval: Duration,
    /// The reaper asks for the next due moment at least this often, since another process may have
    /// written an earlier one. 5 s by default.
    pub reap_interval: Duration,
    /// How many runs one reap treats at most, from 1 to 10,000. 500 by default.
    pub reap_batch: u32,
    /// The longest wait of the reaper after errors in a row. 30 s by default.
    pub reap_backoff: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(1),
            reap_interval: Duration::from_secs(5),
            reap_batch: 500,
            reap_backoff: Duration::from_secs(30),
        }
    }
}

impl EngineOptions {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        check_positive_duration("poll_interval", self.poll_interval)?;
        check_positive_duration("reap_interval", self.reap_interval)?;
        check_positive_duration("reap_backoff", self.reap_backoff)?;
        if (1..=MAX_BATCH).contains(&self.reap_batch) {
            return Ok(());
        }
        Err(StoreError::InvalidArgument {
            field: "reap_batch".to_owned(),
            expected: format!("from 1 to {MAX_BATCH}"),
            got: self.reap_batch.to_string(),
        })
    }
}

/// A store with the waiting that servers and embedded applications need. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Engine {
    store: SharedStore,
    options: EngineOptions,
    groups: Arc<group::Groups>,
    fresh: Arc<fresh::Fresh>,
    looks: Arc<looks::Looks>,
}

impl Engine {
    /// An engine over `store`. Somebody must run its [`reaper`](Engine::run_reaper).
    pub fn new(store: SharedStore, options: EngineOptions) -> Self {
        Self { store, options, groups: Arc::default(), fresh: Arc::default(), looks: Arc::default() }
    }

    /// The store below.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// How it waits and reaps.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }
}
