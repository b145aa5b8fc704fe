//! The leases that a worker holds, and the heartbeat that keeps them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::{FencingToken, Heartbeat, Lease, MAX_BATCH, RunId};
use tokio::time::Instant;

use crate::calls::{About, Calls};
use crate::run::{Control, WhyLost};

type Key = (RunId, FencingToken);

/// The executions that run now, each with its lease.
#[derive(Debug)]
pub(crate) struct Leases(Mutex<Held>);

#[derive(Debug)]
struct Held {
    leases: HashMap<Key, (Lease, Arc<Control>)>,
    /// No lease was claimed or extended earlier than this.
    extended_at: Instant,
}

impl Default for Leases {
    fn default() -> Self {
        Self(Mutex::new(Held { leases: HashMap::new(), extended_at: Instant::now() }))
    }
}

/// Keeps a lease among those that are kept alive. Dropping it takes the lease out.
pub(crate) struct Kept {
    leases: Arc<Leases>,
    key: Key,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.leases.lock().leases.remove(&self.key);
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Values that are moved in and out whole cannot be left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `lease` alive until the answer is dropped.
    pub(crate) fn keep(self: &Arc<Self>, lease: &Lease, control: &Arc<Control>) -> Kept {
        let key = (lease.run_id, lease.fencing_token);
        self.lock().leases.insert(key, (lease.clone(), Arc::clone(control)));
        Kept { leases: Arc::clone(self), key }
    }

    /// Extends all leases again and again, three times within their length. Never returns.
    ///
    /// Errors are reported and the next beat comes all the same, sooner if the last one failed; that a
    /// lease has expired meanwhile is for the engine to say.
    pub(crate) async fn beat(&self, calls: &Calls, lease_length: Duration) -> Infallible {
        let interval = lease_length / 3;
        let mut failures = 0;
        loop {
            let pause = match failures {
                0 => interval,
                n => calls.backoff.delay(n, Duration::ZERO).min(interval),
            };
            tokio::time::sleep(pause).await;
            // A beat that outlasts the interval is as good as none: the next one is due.
            let beat = tokio::time::timeout(interval, self.extend(calls, lease_length)).await;
            failures = if beat == Ok(true) { 0 } else { failures + 1 };
        }
    }

    /// Whether all leases have more than half of their length left.
    pub(crate) fn are_fresh(&self, lease_length: Duration) -> bool {
        self.lock().extended_at.elapsed() < lease_length / 2
    }

    /// Extends all leases once, and tells the executions whose lease is lost. Answers whether the
    /// engine answered, for each of them.
    pub(crate) async fn extend(&self, calls: &Calls, lease_length: Duration) -> bool {
        let began = Instant::now();
        let held: Vec<_> = self.lock().leases.values().cloned().collect();
        let mut answered = true;
        for some in held.chunks(MAX_BATCH as usize) {
            let batch =
                some.iter().map(|(lease, _)| Heartbeat { lease: lease.clone(), lease_length }).collect();
            calls.reporter.counters.heartbeats.add(1);
            match calls.transport.heartbeat(batch).await {
                Ok(verdicts) => {
                    for ((lease, control), verdict) in some.iter().zip(verdicts) {
                        let Err(error) = verdict else { continue };
                        if let Some(why) = WhyLost::of(&error) {
                            control.lose(why);
                            continue;
                        }
                        calls.failed(&About::of("heartbeat", lease.run_id), 1, &error);
                        // Such a lease was not extended, and may be by the next beat.
                        answered &= !error.is_retryable();
                    }
                }
                Err(error) => {
                    calls.failed(&About::operation("heartbeat"), 1, &error);
                    answered = false;
                }
            }
        }
        if answered {
            let mut held = self.lock();
            held.extended_at = held.extended_at.max(began);
        }
        answered
    }
}
