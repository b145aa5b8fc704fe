//! The reaper: sleeps until something is due, then repairs in bounded batches until nothing is.
//!
//! Any number of processes may run one over the same store (invariant 14). There is no fixed beat:
//! the reaper asks for the next due moment, sleeps until then, and is woken earlier only when this
//! process writes an earlier deadline. Every `reap_interval` it asks again, for what others wrote.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::Engine;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::op::{MoreDue, Reaped};
use crate::trace_context::SPANS;
use crate::wake::Topic;

/// What a reaper has left to do.
enum Due {
    /// Nothing for this long.
    Later(Duration),
    /// What is due is being treated by another reaper, or held by somebody else.
    WithOthers,
}

impl Engine {
    /// Reaps until `shutdown` is ready. An error is reported and tried again, later and later up to
    /// `reap_backoff`.
    ///
    /// Cancel safe: a dropped reaper leaves every run repaired or not, never half.
    pub async fn run_reaper(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let (mut errors, mut in_vain): (u32, u32) = (0, 0);
        loop {
            let mut nudge = self.store.wake_hub().subscribe([Topic::Deadlines]);
            let pause = match self.reap_all_due().await {
                Ok(Due::Later(pause)) => {
                    (errors, in_vain) = (0, 0);
                    pause
                }
                Ok(Due::WithOthers) => {
                    (errors, in_vain) = (0, in_vain.saturating_add(1));
                    self.let_others_finish(in_vain)
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

    /// Reaps until there is nothing left to do here.
    async fn reap_all_due(&self) -> Result<Due, StoreError> {
        loop {
            self.fresh.forget_old();
            // Before the look, so that a deadline written meanwhile is heard.
            self.store.wake_hub().arm(Timestamp::MAX);
            let next = self.store.next_due().await?;
            let interval = self.options.reap_interval.max(self.store.wake_hub().longest_rest());
            let pause = next.due_at.map_or(interval, |at| at.saturating_since(next.now).min(interval));
            if !pause.is_zero() {
                if let Some(at) = next.due_at {
                    self.store.wake_hub().arm(at);
                }
                return Ok(Due::Later(pause));
            }
            let reaped = self.reap_round().await?;
            if reaped.total() == 0 && reaped.more == MoreDue::No {
                return Ok(Due::WithOthers);
            }
        }
    }

    /// One batch, within a span: a trace of its own, since it is about many runs.
    async fn reap_round(&self) -> Result<Reaped, StoreError> {
        let round = tracing::info_span!(
            target: SPANS, parent: None, "reap_round",
            kagzi.runs = Empty, otel.status_code = Empty, error.type = Empty,
        );
        let reaped = self.store.reap(self.options.reap_batch).instrument(round.clone()).await;
        match &reaped {
            Ok(reaped) => {
                round.record("kagzi.runs", i64::from(reaped.total()));
                report(reaped);
            }
            Err(error) => {
                round.record("error.type", error.reason()).record("otel.status_code", "ERROR");
            }
        }
        reaped
    }

    /// 10 ms at first, since another reaper is quick, up to a second for one that got stuck.
    fn let_others_finish(&self, in_vain: u32) -> Duration {
        let pause = Duration::from_millis(10).saturating_mul(1 << in_vain.saturating_sub(1).min(7));
        pause.min(Duration::from_secs(1)).min(self.options.reap_interval)
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
            steps_given_up = reaped.steps_given_up.total(),
            "reaped"
        );
    }
}
