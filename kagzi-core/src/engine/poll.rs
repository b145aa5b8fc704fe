//! Long polls: a claim that waits until there is something to claim.

use std::future::{Future, pending, ready};
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Engine;
use super::group::topics;
use crate::error::StoreError;
use crate::op::{Claim, ClaimedRun};

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
        self.poll_until(claim, wait, pending()).await
    }

    /// Like [`poll`](Self::poll), but ends its wait, empty, when `stop` is ready.
    ///
    /// `stop` ends the waiting and never a claim that is being made, so whoever stops a poll instead of
    /// dropping it hears of every run that it took: a server that shuts down, or whose caller has gone.
    ///
    /// # Errors
    ///
    /// Those of [`Store::claim`](crate::Store::claim).
    pub async fn poll_until(
        &self,
        claim: Claim,
        wait: Duration,
        stop: impl Future<Output = ()>,
    ) -> Result<Vec<ClaimedRun>, StoreError> {
        self.poll_in_turn(claim, wait, stop, || ready(Ok(()))).await
    }

    /// Like [`poll_until`](Self::poll_until), but has each claim that it makes wait for its `turn` before, and keeps what
    /// that gives until the claim has been made: for whoever bounds how many claims are at work at once.
    ///
    /// # Errors
    ///
    /// Those of [`Store::claim`](crate::Store::claim), and that of a turn that was not to be had.
    pub async fn poll_in_turn<T, E, F>(
        &self,
        claim: Claim,
        wait: Duration,
        stop: impl Future<Output = ()>,
        turn: impl Fn() -> F,
    ) -> Result<Vec<ClaimedRun>, E>
    where
        E: From<StoreError>,
        F: Future<Output = Result<T, E>>,
    {
        claim.validate()?;
        let until = Instant::now() + wait.min(Duration::from_hours(24));
        let interval = self.options.poll_interval;
        let hub = self.store.wake_hub();
        let group = self.groups.join(&claim, hub);
        // Subscribed before the first look, so that a start in between is not missed.
        let mut wake = hub.subscribe(topics(&claim));

        // The first look goes side by side with those of others, since a busy queue has work for all.
        let first = {
            let mut knowledge = group.lock().await;
            (!knowledge.is_dry(interval)).then(|| knowledge.begin_look())
        };
        if let Some(look) = first {
            let claimed = self.claim_in_turn(&claim, &turn).await?;
            if !claimed.is_empty() {
                group.found_work();
                return Ok(claimed);
            }
            group.lock().await.found_dry(&look);
        }
        let mut stop = pin!(stop);
        // Later looks go one after the other: the first one that finds the queues dry spares the rest.
        loop {
            let look_again = {
                let mut knowledge = group.lock().await;
                if !knowledge.is_dry(interval) {
                    // All looks are one operation: those before took nothing, and a caller that misses
                    // the answer can send the poll again and gets the runs (invariant 8).
                    let look = knowledge.begin_look();
                    let claimed = self.claim_in_turn(&claim, &turn).await?;
                    if claimed.len() < claim.limit as usize {
                        knowledge.found_dry(&look);
                    }
                    if !claimed.is_empty() {
                        group.found_work();
                        return Ok(claimed);
                    }
                }
                knowledge.looks_again_at(interval)
            };
            if Instant::now() >= until {
                return Ok(Vec::new());
            }
            // Woken or not, the next step is the same: ask the group.
            tokio::select! {
                biased;
                () = &mut stop => return Ok(Vec::new()),
                _ = timeout_at(look_again.min(until), wake.wait()) => {}
            }
        }
    }

    async fn claim_in_turn<T, E, F>(&self, claim: &Claim, turn: impl Fn() -> F) -> Result<Vec<ClaimedRun>, E>
    where
        E: From<StoreError>,
        F: Future<Output = Result<T, E>>,
    {
        let _turn = turn().await?;
        Ok(self.store.claim(claim.clone()).await?)
    }
}
