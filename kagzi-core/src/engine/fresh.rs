//! Runs that were started here a moment ago.
//!
//! Most callers who wait for a run have just started it, so a look before its first hint would find
//! nothing new. The engine listens for the end of a run from before its start on, and hands the
//! subscription to whoever comes to wait; so that look can be left out, and no end is missed, however
//! quick the run was.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::id::RunId;
use crate::name::Namespace;
use crate::op::{StartOutcome, StartRun, Started};
use crate::wake::{Subscription, Topic, WakeHub};

/// For how long somebody is expected to come. Who comes later looks first.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// How many starts are remembered at most.
const KEPT_MOST: usize = 10_000;

/// Larger batches are imports: nobody waits for each of them.
const LARGEST_BATCH: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_run: HashMap<RunId, (Namespace, Subscription)>,
    /// In the order in which they came.
    since: VecDeque<(Instant, RunId)>,
}

/// The subscriptions of a batch that is being started.
#[derive(Debug)]
pub(super) struct Listening(Vec<(RunId, Namespace, Subscription)>);

impl Fresh {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Both parts may differ after a panic elsewhere: an entry that is missing costs a look.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for the ends of the runs that a batch is going to start.
    pub(super) fn listen(batch: &[StartRun], hub: &WakeHub) -> Listening {
        if batch.len() > LARGEST_BATCH {
            return Listening(Vec::new());
        }
        let listen = |start: &StartRun| {
            let run_id = start.run_id();
            (run_id, start.namespace.clone(), hub.subscribe([Topic::Run(run_id)]))
        };
        Listening(batch.iter().map(listen).collect())
    }

    /// Remembers the runs that the batch made. A run that was there before may have ended long ago.
    pub(super) fn keep(&self, listening: Listening, started: &[Started]) {
        let now = Instant::now();
        let mut kept = self.kept();
        for ((run_id, namespace, subscription), started) in listening.0.into_iter().zip(started) {
            if started.outcome == StartOutcome::Created && started.run_id == run_id {
                kept.by_run.insert(run_id, (namespace, subscription));
                kept.since.push_back((now, run_id));
            }
        }
        kept.forget(now);
    }

    /// Hands over the subscription of a run that was started here a moment ago.
    pub(super) fn take(&self, namespace: &Namespace, run_id: RunId) -> Option<Subscription> {
        let mut kept = self.kept();
        // Of another namespace's run nothing is told: the look will say that there is none.
        kept.by_run.get(&run_id).filter(|(of, _)| of == namespace)?;
        kept.by_run.remove(&run_id).map(|(_, subscription)| subscription)
    }

    /// Stops listening for those that nobody came to wait for.
    pub(super) fn forget_old(&self) {
        self.kept().forget(Instant::now());
    }
}

impl Kept {
    fn forget(&mut self, now: Instant) {
        while let Some((since, run_id)) = self.since.front() {
            if self.since.len() <= KEPT_MOST && now.duration_since(*since) < KEPT_FOR {
                return;
            }
            self.by_run.remove(run_id);
            self.since.pop_front();
        }
    }
}
