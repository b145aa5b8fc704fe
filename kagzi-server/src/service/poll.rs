//! Polls: handing claimed runs over without losing one on the way.

use std::mem::take;
use std::sync::Arc;

use kagzi_core::{
    Attempt, AttemptScope, Claim, ClaimedRun, Lease, ListAttempts, Namespace, OperationId, PageRequest,
    ReleaseRun, SharedStore, StoreError,
};
use kagzi_sdk::wire::Poll;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::call::NotDone;
use super::claims::Hold;
use super::load::{Errand, Scanning};
use super::weight::{self, RESPONSE_BYTES};
use super::{Services, permission, told};
use crate::auth::Caller;
use crate::metrics::Wait;
use crate::shutdown::Drain;

/// Claimed runs on their way to the worker. Dropped before they were taken out, it gives their leases
/// back, so that runs whose worker has gone wait for nobody.
#[derive(Debug)]
pub(super) struct Handover {
    runs: Vec<ClaimedRun>,
    hold: Arc<Hold>,
    store: SharedStore,
    drain: Drain,
    runtime: Handle,
}

impl Handover {
    /// Runs that `services` claimed, held since before. Made within the runtime that serves.
    pub(super) fn new(runs: Vec<ClaimedRun>, hold: Hold, services: &Services) -> Self {
        let (store, drain) = (services.store().clone(), services.0.drain.clone());
        Self { runs, hold: Arc::new(hold), store, drain, runtime: Handle::current() }
    }

    /// How many bytes the runs hold, about.
    pub(super) fn bytes(&self) -> usize {
        let steps = |run: &ClaimedRun| run.steps.iter().map(weight::attempt).sum::<usize>();
        self.runs.iter().map(|run| weight::claimed(run) + steps(run)).sum()
    }

    /// Hands over what one response holds, and gives the rest back.
    pub(super) fn hand_over(mut self) -> Vec<ClaimedRun> {
        let (mut fitting, left_over) = fit(take(&mut self.runs));
        self.give_back(left_over);
        fitting.retain(|run| self.hold.hand_over(&run.lease.lease));
        fitting
    }

    fn give_back(&self, mut leases: Vec<Lease>) {
        leases.retain(|lease| self.hold.give_back(lease));
        if !leases.is_empty() {
            let giving = give_back(self.store.clone(), leases, Arc::clone(&self.hold));
            self.drain.spawn(&self.runtime, giving);
        }
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        let leases: Vec<Lease> = take(&mut self.runs).into_iter().map(|run| run.lease.lease).collect();
        if !leases.is_empty() {
            tracing::debug!(runs = leases.len(), "the poll's caller has gone: giving its runs back");
            self.give_back(leases);
        }
    }
}

/// Gives leases back; the runs are due at once. A lease that is not given back just expires. The claim is held to
/// the end, so that the same claim sent again meanwhile hands none of them over.
async fn give_back(store: SharedStore, leases: Vec<Lease>, hold: Arc<Hold>) {
    for lease in leases {
        let (namespace, run_id, worker) = (lease.namespace.clone(), lease.run_id, lease.worker_id.clone());
        let release = ReleaseRun { lease, operation: OperationId::generate() };
        if let Err(error) = store.release(release).await {
            let reason = error.reason();
            tracing::warn!(%namespace, %run_id, %worker, reason, %error, "a lease was not given back");
        }
    }
    drop(hold);
}

/// Over how many queues and types, each queue with each type, a claim may go before it is wide.
const NARROW: usize = 100;

/// A claim that costs the store as much as reading a page does, and is made in turn as those are: one over a thousand
/// queues takes it ten times as long as one over a single one.
pub(super) struct Wide(Namespace);

impl Wide {
    pub(super) fn of(claim: &Claim) -> Option<Self> {
        let ranges = claim.queues.len().saturating_mul(claim.workflow_types.len().max(1));
        (ranges > NARROW).then(|| Self(claim.namespace.clone()))
    }
}

impl Services {
    /// Has a claim that is wide wait for its turn among those of its principal and namespace.
    pub(super) async fn turn_to_claim(
        &self,
        caller: &Caller,
        wide: Option<&Wide>,
    ) -> Result<Option<Scanning>, NotDone> {
        let Some(Wide(namespace)) = wide else { return Ok(None) };
        let scan = self.0.load.scan(Errand::Scan, caller, std::iter::once(namespace));
        self.0.metrics.waiting(Wait::Scan, scan).await.map_err(NotDone::NoTurn)
    }

    /// Polls, and cuts what was claimed to what one response holds.
    ///
    /// The poll runs beside the call. If the caller goes away (its call is dropped) or a shutdown
    /// begins, it stops waiting, but a claim that is being made is made to its end, and if the caller
    /// has gone, what it took is given back. An answer that is lost later, on the network, is got by
    /// sending the poll again under its operation id; else the leases expire.
    pub(super) async fn poll(&self, caller: &Caller, poll: Poll) -> Result<Vec<ClaimedRun>, NotDone> {
        let (mut deliver, delivered) = oneshot::channel::<Result<Handover, NotDone>>();
        let (services, whose) = (self.clone(), caller.clone());
        let polling = async move {
            let stop = async {
                tokio::select! {
                    () = deliver.closed() => {}
                    () = services.0.drain.begun() => {}
                }
            };
            let hold = services.0.claims.hold(poll.claim.operation);
            let wide = Wide::of(&poll.claim);
            let turn = || services.turn_to_claim(&whose, wide.as_ref());
            let claimed = services.engine().poll_in_turn(poll.claim, poll.wait, stop, turn).await;
            let claimed = claimed.map(|runs| permission::claimed(&whose, "PollActivity", runs));
            let handover = claimed.map(|runs| Handover::new(runs, hold, &services));
            // Nobody there: the handover comes back and is dropped here, which gives the runs back.
            drop(deliver.send(handover));
        };
        self.0.drain.spawn(&Handle::current(), polling.in_current_span());
        let handover = delivered.await.map_err(|_| StoreError::Internal {
            context: "polling",
            detail: "the poll's task ended without an answer".to_owned(),
        })??;
        let runs = handover.hand_over();
        told::claimed(&runs);
        self.remember(caller, &runs);
        Ok(runs)
    }
}

/// Cuts claimed runs to what one response holds: every run that is handed over comes with its input, and
/// with as many of its steps as there is room for; a cursor says where the others begin. The first run
/// comes whatever its size. Answers the leases of the runs that have no room.
fn fit(mut runs: Vec<ClaimedRun>) -> (Vec<ClaimedRun>, Vec<Lease>) {
    let kept = weight::fitting(&runs, weight::claimed);
    let left_over = runs.split_off(kept).into_iter().map(|run| run.lease.lease).collect();
    let mut room = RESPONSE_BYTES.saturating_sub(runs.iter().map(weight::claimed).sum());
    for run in &mut runs {
        cut_steps(run, &mut room);
    }
    (runs, left_over)
}

/// Keeps the first steps that there is room for.
fn cut_steps(run: &mut ClaimedRun, room: &mut usize) {
    let no_room = |step: &Attempt| match room.checked_sub(weight::attempt(step)) {
        Some(left) => {
            *room = left;
            false
        }
        None => true,
    };
    let Some(kept) = run.steps.iter().position(no_room) else { return };
    run.steps.truncate(kept);
    let listing = ListAttempts {
        namespace: run.run.namespace.clone(),
        run_id: run.run.run_id,
        scope: AttemptScope::Latest,
        page: PageRequest::first(1),
    };
    let next = run.steps.last().map_or_else(|| listing.cursor_at_start(), |last| listing.cursor_after(last));
    run.more_steps = Some(next);
}
