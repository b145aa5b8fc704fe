//! What is said in the log of calls that fail by their callers' doing.
//!
//! Anybody who may call can ask for what is not there, or send what is refused, thousands of times a second. So that
//! nobody fills a disk by it, so many a second of each principal are told of; the others are told of to those who want to
//! hear every detail, and how many they were to everybody.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::RateLimit;
use crate::rates::Rates;

/// How often calls of one principal that failed are told of.
const AS_OFTEN_AS: RateLimit = RateLimit { per_second: 10, burst: 100 };

/// How long others gather until it is said how many they were.
const SUMMED_UP_AFTER: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Failures {
    rates: Rates<String>,
    left_out: Arc<Mutex<Option<LeftOut>>>,
}

/// Those that were not told of since it was last said how many they were.
#[derive(Debug)]
struct LeftOut {
    calls: NonZeroU64,
    last_principal: String,
    last_reason: &'static str,
}

impl Default for Failures {
    fn default() -> Self {
        Self { rates: Rates::up_to(AS_OFTEN_AS), left_out: Arc::default() }
    }
}

impl Failures {
    /// Whether it is told to everybody that a call of a principal failed for a reason. If not, it is counted among
    /// those that are summed up later. To be asked within a runtime.
    pub(super) fn may_tell(&self, principal: &str, reason: &'static str) -> bool {
        let within = self.rates.count(principal.to_owned()).is_ok();
        if !within {
            self.leave_out(principal, reason);
        }
        within
    }

    fn leave_out(&self, principal: &str, reason: &'static str) {
        // Never left half changed, so a panic elsewhere does not spoil it.
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        let before = left_out.take();
        if before.is_none() {
            tokio::spawn(sum_up(Arc::clone(&self.left_out)));
        }
        let calls = before.map_or(NonZeroU64::MIN, |before| before.calls.saturating_add(1));
        *left_out = Some(LeftOut { calls, last_principal: principal.to_owned(), last_reason: reason });
    }
}

/// Says after a while how many were left out until then.
async fn sum_up(left_out: Arc<Mutex<Option<LeftOut>>>) {
    tokio::time::sleep(SUMMED_UP_AFTER).await;
    let gathered = left_out.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(LeftOut { calls, last_principal, last_reason }) = gathered {
        tracing::info!(
            calls,
            last_principal,
            last_reason,
            "more calls failed than are told of one by one; level debug tells of each"
        );
    }
}
