//! Turns of reads that scan: pages of runs and of attempts, counts, depths of queues.
//!
//! What such a read costs shows only when it is done, be it a page or every run there is, and meanwhile it has a connection
//! of the store. So no more are passed on than the store reads at once, of which one principal and one namespace have a part;
//! the others wait behind their own, first come, first served. Whoever counts without end is so in nobody's way but their
//! own. They wait for a moment: who asks for more than can be done is told so.
//!
//! Reads of runs by their ids have none. The store gathers those.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::Namespace;
use kagzi_sdk::wire::error::{Refusal, limit_reached, overloaded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::{Errand, Load};
use crate::auth::Caller;

/// How long a scan waits for its turn before it is refused, and how long its caller is told to wait then.
const WITHIN: Duration = Duration::from_secs(1);

/// The turns of somebody.
#[derive(Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(super) fn of(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
    }

    /// Nothing if none is free before `until`.
    async fn take(&self, until: Instant) -> Option<OwnedSemaphorePermit> {
        timeout_at(until, Arc::clone(&self.0).acquire_owned()).await.ok()?.ok()
    }
}

/// A scan that is at work, until it is dropped.
#[derive(Debug)]
pub(in crate::service) struct Scanning(
    #[expect(dead_code, reason = "held, not read")] Vec<OwnedSemaphorePermit>,
);

impl Load {
    /// Has a read that scans wait for its turn among those of its principal, of its namespace, and of all.
    ///
    /// Cancel safe: dropped, it waits no more.
    pub(in crate::service) async fn scan<'a>(
        &self,
        errand: Errand,
        caller: &Caller,
        namespaces: impl Iterator<Item = &'a Namespace>,
    ) -> Result<Option<Scanning>, Refusal> {
        let (Errand::Scan, Some(all)) = (errand, &self.0.all.scans) else { return Ok(None) };
        let until = Instant::now() + WITHIN;
        let mut turns = Vec::new();
        // Their own come first: while they wait for those, they keep nobody else.
        for (account, share) in self.sharers(caller, namespaces) {
            if let Some(own) = &account.scans {
                turns.push(own.take(until).await.ok_or_else(|| limit_reached(share, WITHIN))?);
            }
        }
        turns.push(all.take(until).await.ok_or_else(|| overloaded(WITHIN))?);
        Ok(Some(Scanning(turns)))
    }
}
