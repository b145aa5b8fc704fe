//! Retention: finished runs are removed when their time is over.
//!
//! Off unless a setting says how long runs of a state are kept. One task looks every `interval` and
//! removes what is too old in bounded batches, taking turns over namespaces and states, and after each
//! batch it leaves the store alone for four times as long as the batch took: whatever there is to remove,
//! a fifth of the store's time goes into it at most. Any number of servers may do so at once; what one
//! has removed, the others do not find.

#[cfg(test)]
mod tests;

use std::time::Duration;

use kagzi_core::{DeleteFinished, Namespace, RunState, SharedStore, StoreError};
use tokio::time::{Instant, sleep};

use crate::config::Retention;
use crate::metrics::Metrics;

/// How many times as long as a batch took the next one waits.
const PAUSE_FACTOR: u32 = 4;

/// The shortest pause between two batches.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// Runs of one namespace in one state, and how long they are kept.
#[derive(Clone, Debug)]
struct Rule {
    namespace: Namespace,
    state: RunState,
    keep: Duration,
}

/// Who removes runs whose time is over.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: SharedStore,
    metrics: Metrics,
    rules: Vec<Rule>,
    batch: u32,
    interval: Duration,
}

impl Keeper {
    pub(crate) fn new(
        store: SharedStore,
        metrics: Metrics,
        namespaces: &[Namespace],
        retention: &Retention,
    ) -> Self {
        let states = [
            (RunState::Completed, retention.completed),
            (RunState::Failed, retention.failed),
            (RunState::Cancelled, retention.cancelled),
        ];
        let rules = namespaces.iter().flat_map(|namespace| {
            let rule = |(state, keep): (RunState, Option<Duration>)| {
                keep.map(|keep| Rule { namespace: namespace.clone(), state, keep })
            };
            states.into_iter().filter_map(rule)
        });
        Self { store, metrics, rules: rules.collect(), batch: retention.batch, interval: retention.interval }
    }

    /// Removes what is too old, every `interval`. An error is reported, and the rest waits for the next
    /// time. Never returns.
    ///
    /// Cancel safe: a dropped keeper leaves every run removed or not, never half.
    pub(crate) async fn run(&self) {
        if self.rules.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Err(error) = self.sweep().await {
                tracing::warn!(reason = error.reason(), %error, "finished runs were not removed; trying again later");
            }
            sleep(spread(self.interval)).await;
        }
    }

    /// Removes what is too old now.
    async fn sweep(&self) -> Result<(), StoreError> {
        // What becomes too old meanwhile is for the next time: so each sweep ends.
        let now = self.store.now().await?;
        let mut removed = vec![0_u64; self.rules.len()];
        let mut left: Vec<usize> = (0..self.rules.len()).collect();
        let mut swept = Ok(());
        while swept.is_ok() && !left.is_empty() {
            let mut more = Vec::with_capacity(left.len());
            for at in left {
                let rule = &self.rules[at];
                let delete = DeleteFinished {
                    namespace: Some(rule.namespace.clone()),
                    states: vec![rule.state],
                    before: now.saturating_sub(rule.keep),
                    limit: self.batch,
                };
                let began = Instant::now();
                match self.store.delete_finished(&delete).await {
                    Ok(0) => {}
                    Ok(deleted) => {
                        self.metrics.expired(rule.state, deleted);
                        removed[at] += deleted;
                        // Less than a batch may be one piece of a store that works in pieces.
                        more.push(at);
                    }
                    Err(error) => swept = Err(error),
                }
                sleep(pause(began.elapsed())).await;
                if swept.is_err() {
                    break;
                }
            }
            left = more;
        }
        self.report(&removed);
        swept
    }

    fn report(&self, removed: &[u64]) {
        for (rule, removed) in self.rules.iter().zip(removed).filter(|(_, removed)| **removed > 0) {
            tracing::info!(
                namespace = %rule.namespace,
                state = rule.state.as_str(),
                removed,
                older_than = ?rule.keep,
                "finished runs whose time was over were removed"
            );
        }
    }
}

/// When to look again: up to a quarter earlier, by chance, so that servers that began together do not stay together.
fn spread(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - fastrand::f64() / 4.0)
}

/// How long the store is left alone after a batch that took so long.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(PAUSE_FACTOR).max(SHORTEST_PAUSE)
}
