//! What the operator allows in one call, beyond what the store checks by itself.

use std::collections::HashSet;
use std::time::Duration;

use kagzi_core::{MAX_BATCH, Namespace, PageRequest, Rules, StoreError};

use crate::config::ServerConfig;

/// What the operator allows.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) namespaces: HashSet<Namespace>,
    pub(super) rules: Rules,
    pub(super) max_message_bytes: usize,
    pub(super) max_batch: u32,
    pub(super) max_poll_wait: Duration,
    pub(super) default_lease: Duration,
    pub(super) min_lease: Duration,
    pub(super) max_lease: Duration,
    pub(super) max_stream_requests: usize,
    pub(super) max_stream_bytes: usize,
}

impl Limits {
    pub(super) fn of(config: &ServerConfig) -> Self {
        Self {
            namespaces: config.namespaces.iter().cloned().collect(),
            rules: config.rules.clone(),
            max_message_bytes: config.max_message_bytes,
            max_batch: config.max_batch,
            max_poll_wait: config.max_poll_wait,
            default_lease: config.default_lease,
            min_lease: config.min_lease,
            max_lease: config.max_lease,
            max_stream_requests: usize::try_from(config.load.max_stream_requests).unwrap_or(usize::MAX),
            max_stream_bytes: config.load.max_stream_bytes,
        }
    }

    /// A page request, its limit cut to what one answer holds at most.
    pub(super) fn page(&self, asked: &PageRequest) -> PageRequest {
        PageRequest { limit: asked.limit.min(self.max_batch), cursor: asked.cursor.clone() }
    }

    /// Checks a lease length against the server's bounds.
    pub(super) fn check_lease_length(&self, field: &str, length: Duration) -> Result<(), StoreError> {
        if (self.min_lease..=self.max_lease).contains(&length) {
            return Ok(());
        }
        let expected = format!(
            "from {:?} to {:?}, the server's min_lease and max_lease",
            self.min_lease, self.max_lease
        );
        Err(invalid(field, expected, format!("{length:?}")))
    }

    /// A wait, cut to the longest that is allowed.
    pub(super) fn wait(&self, asked: Duration) -> Duration {
        asked.min(self.max_poll_wait)
    }
}

/// Checks how many things a call brings.
pub(super) fn check_batch(field: &str, count: usize) -> Result<(), StoreError> {
    if count >= 1 && count <= MAX_BATCH as usize {
        return Ok(());
    }
    Err(invalid(field, format!("from 1 to {MAX_BATCH}"), count.to_string()))
}

fn invalid(field: &str, expected: String, got: String) -> StoreError {
    StoreError::InvalidArgument { field: field.to_owned(), expected, got }
}
