//! Long polls: a claim that waits until there is something to claim.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Engine;
use crate::error::StoreError;
use crate::id::OperationId;
use crate::op::{Claim, ClaimedRun};
use crate::wake::Topic;

impl Engine {
    /// Claims, and if nothing is due waits up to `wait` for something to become due. Nothing claimed
    /// by then is an empty answer, not an error.
    ///
    /// Cancel safety: dropping the future may leave runs claimed that nobody hears of. They come back
    /// when their lease expires, or at once when the same claim is sent again.
    ///
    /// # Errors
    ///
    /// Those of [`Store::claim`](crate::Store::claim).
    pub async fn poll(&self, claim: Claim, wait: Duration) -> Result<Vec<ClaimedRun>, StoreError> {
        claim.validate()?;
        let until = Instant::now() + wait.min(Duration::from_hours(24));
        let topics = claim.queues.iter().map(|queue| Topic::Queue(claim.namespace.clone(), queue.clone()));
        // Subscribed before the first look, so that a start in between is not missed.
        let mut wake = self.store.wake_hub().subscribe(topics);
        let mut claim = claim;
        loop {
            let claimed = self.store.claim(claim.clone()).await?;
            let now = Instant::now();
            if !claimed.is_empty() || now >= until {
                return Ok(claimed);
            }
            // An empty claim took nothing, so the next look is an operation of its own.
            claim.operation = OperationId::generate();
            let look_again = until.min(now + self.options.poll_interval);
            // Woken or not, the next step is the same: look again.
            timeout_at(look_again, wake.wait()).await.ok();
        }
    }
}
