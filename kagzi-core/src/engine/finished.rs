//! Waiting for the end of a run.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Engine;
use crate::error::StoreError;
use crate::id::RunId;
use crate::name::Namespace;
use crate::run::RunRecord;
use crate::wake::Topic;

impl Engine {
    /// The run as it is when it finishes, or as it is after `wait`: look at its state.
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
        let mut wake = self.store.wake_hub().subscribe([Topic::Run(run_id)]);
        loop {
            let record = self.store.get_run(namespace, run_id).await?;
            let now = Instant::now();
            if record.run.state.is_terminal() || now >= until {
                return Ok(record);
            }
            let look_again = until.min(now + self.options.poll_interval);
            // Woken or not, the next step is the same: look again.
            timeout_at(look_again, wake.wait()).await.ok();
        }
    }
}
