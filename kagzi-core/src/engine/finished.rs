//! Starting runs, and waiting for their end.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Engine;
use super::fresh::Fresh;
use crate::error::StoreError;
use crate::id::RunId;
use crate::name::Namespace;
use crate::op::{StartRun, Started};
use crate::run::RunRecord;
use crate::wake::Topic;

impl Engine {
    /// Starts runs, as [`Store::start`](crate::Store::start) does, and expects that somebody is going to
    /// wait for them: an [`await_finished`](Self::await_finished) that comes within a second asks the
    /// store only once it is told that the run has finished.
    ///
    /// # Errors
    ///
    /// Those of [`Store::start`](crate::Store::start).
    pub async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        // From before the start on, so that no end is missed.
        let listening = Fresh::listen(&batch, self.store.wake_hub());
        let started = self.store.start(batch).await?;
        self.fresh.keep(listening, &started);
        Ok(started)
    }

    /// The run as it is when it finishes, or as it is after `wait`: look at its state.
    ///
    /// Whoever waits hears of the end by a hint, and looks at least every `poll_interval`; those who
    /// look at the same time share one read.
    ///
    /// Cancel safe: it only reads.
    ///
    /// # Errors
    ///
    /// Those of [`Store::get_run`](crate::Store::get_run).
    pub async fn await_finished(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wait: Duration,
    ) -> Result<RunRecord, StoreError> {
        let until = Instant::now() + wait.min(Duration::from_hours(24));
        let fresh = self.fresh.take(namespace, run_id);
        let mut looks_first = fresh.is_none() || wait.is_zero();
        // Subscribed before the first look, so that an end in between is not missed.
        let mut wake = fresh.unwrap_or_else(|| self.store.wake_hub().subscribe([Topic::Run(run_id)]));
        loop {
            if looks_first {
                let record = self.looks.look(self.store.as_ref(), namespace, run_id).await?;
                if record.run.state.is_terminal() || Instant::now() >= until {
                    return Ok(record);
                }
            }
            looks_first = true;
            let look_again = until.min(Instant::now() + self.options.poll_interval);
            // Woken or not, the next step is the same: look.
            timeout_at(look_again, wake.wait()).await.ok();
        }
    }
}
