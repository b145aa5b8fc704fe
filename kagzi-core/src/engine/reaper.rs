//! The reaper: sleeps until something is due, then repairs in bounded batches until nothing is.
//!
//! Any number of processes may run one over the same store (invariant 14). There is no fixed beat:
//! the reaper asks for the next due moment, sleeps until then, and is woken earlier only when this
//! process writes an earlier deadline. Every `reap_interval` it asks again, for what others wrote.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

use super::Engine;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::op::{MoreDue, Reaped};
use crate::wake::Topic;

impl Engine {
    /// Reaps until `shutdown` is ready. An error is reported and tried again, later and later up to
    /// `reap_backoff`.
    ///
    /// Cancel safe: a dropped reaper leaves every run repaired or not, never half.
    pub async fn run_reaper(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut errors: u32 = 0;
        loop {
            let mut nudge = self.store.wake_hub().subscribe([Topic::Deadlines]);
            let pause = match self.reap_all_due().await {
                Ok(pause) => {
                    errors = 0;
                    pause
                }
                Err(error) => {
                    errors = errors.saturating_add(1);
                    let pause = self.backoff(errors);
                    tracing::warn!(reason = error.reason(), %error, ?pause, "reaping failed");
                    pause
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = nudge.wait(), if errors == 0 => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Reaps until nothing is due; answers how long there is nothing to do.
    async fn reap_all_due(&self) -> Result<Duration, StoreError> {
        loop {
            // Before the look, so that a deadline written meanwhile is heard.
            self.store.wake_hub().arm(Timestamp::MAX);
            let next = self.store.next_due().await?;
            let pause = next.due_at.map_or(self.options.reap_interval, |at| {
                at.saturating_since(next.now).min(self.options.reap_interval)
            });
            if !pause.is_zero() {
                if let Some(at) = next.due_at {
                    self.store.wake_hub().arm(at);
                }
                return Ok(pause);
            }
            let reaped = self.store.reap(self.options.reap_batch).await?;
            report(&reaped);
            if reaped.total() == 0 && reaped.more == MoreDue::No {
                // What was due is being treated by another reaper: let it finish.
                return Ok(Duration::from_millis(10).min(self.options.reap_interval));
            }
        }
    }

    fn backoff(&self, errors: u32) -> Duration {
        let ceiling =
            Duration::from_millis(100).saturating_mul(1 << errors.min(16)).min(self.options.reap_backoff);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

fn report(reaped: &Reaped) {
    if reaped.total() > 0 {
        tracing::debug!(
            woken = reaped.woken,
            leases_expired = reaped.leases_expired,
            poisoned = reaped.poisoned,
            runs_timed_out = reaped.runs_timed_out,
            steps_timed_out = reaped.steps_timed_out,
            "reaped"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::engine::EngineOptions;
    use crate::limits::Rules;
    use crate::memory::MemoryStore;
    use crate::name::{Namespace, QueueName, WorkerId, WorkflowType};
    use crate::op::{Claim, StartAt, StartRun};
    use crate::payload::Payload;
    use crate::run::RunState;
    use crate::{OperationId, RunId, SharedStore};

    fn namespace() -> Namespace {
        Namespace::new("n").unwrap()
    }

    fn queue() -> QueueName {
        QueueName::new("q").unwrap()
    }

    fn engine() -> (Engine, ManualClock) {
        let clock = ManualClock::default();
        let store = MemoryStore::new(Arc::new(clock.clone()), Rules::default());
        (Engine::new(Arc::new(store), EngineOptions::default()), clock)
    }

    async fn start(store: &SharedStore, start_at: StartAt) -> RunId {
        let start_run = StartRun {
            start_at,
            ..StartRun::new(namespace(), queue(), WorkflowType::new("t").unwrap(), Payload::empty())
        };
        store.start(vec![start_run]).await.unwrap()[0].run_id
    }

    fn claim() -> Claim {
        Claim {
            namespace: namespace(),
            queues: vec![queue()],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("w").unwrap(),
            lease_length: Duration::from_secs(30),
            limit: 10,
            steps_limit: 100,
            operation: OperationId::generate(),
        }
    }

    /// With paused time, tokio moves its clock only when everything waits; so a poll of a day that
    /// ends at the start shows that it was woken.
    #[tokio::test(start_paused = true)]
    async fn a_start_wakes_a_poll_at_once() {
        let (engine, _) = engine();
        let engine = Engine {
            options: EngineOptions { poll_interval: Duration::from_hours(1), ..engine.options },
            ..engine
        };
        let polling = engine.clone();
        let poll = tokio::spawn(async move { polling.poll(claim(), Duration::from_hours(2)).await });
        tokio::task::yield_now().await;
        let before = tokio::time::Instant::now();
        let run_id = start(engine.store(), StartAt::Now).await;
        let claimed = poll.await.unwrap().unwrap();
        assert_eq!(claimed[0].run.run_id, run_id);
        assert_eq!(before.elapsed(), Duration::ZERO, "woken, not timed out");
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_without_work_ends_empty_after_its_wait() {
        let (engine, _) = engine();
        let before = tokio::time::Instant::now();
        assert!(engine.poll(claim(), Duration::from_secs(20)).await.unwrap().is_empty());
        assert_eq!(before.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn the_reaper_wakes_a_sleeper_whose_start_came_after_it_went_to_sleep() {
        let (engine, clock) = engine();
        let reaping = engine.clone();
        let reaper = tokio::spawn(async move { reaping.run_reaper(std::future::pending()).await });
        tokio::task::yield_now().await;
        let run_id = start(engine.store(), StartAt::After(Duration::from_millis(50))).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        clock.advance(Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(45)).await;
        let record = engine.store().get_run(&namespace(), run_id).await.unwrap();
        assert_eq!(record.run.state, RunState::Pending);
        assert!(clock.now() >= record.run.due_at);
        reaper.abort();
    }
}
