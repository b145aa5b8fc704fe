//! Who still has the runs of a claim in hand.
//!
//! A worker that misses an answer sends its claim again, and gets the same runs by the same leases. While the first
//! sending has not noticed that its caller is gone, both have them in hand: if the first then gave them back, it
//! would take them from under the worker that got them by the second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kagzi_core::{FencingToken, Lease, OperationId, RunId};

/// The claims that are being made or handed over.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Arc<Mutex<HashMap<OperationId, Shared>>>);

/// What all sendings of one claim have in common.
#[derive(Debug, Default)]
struct Shared {
    holders: usize,
    /// By the lease: what became of runs that they had.
    fates: HashMap<(RunId, FencingToken), Fate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A worker has it.
    HandedOver,
    /// It is being given back, or was.
    GivenBack,
}

impl Claims {
    /// Takes part in a claim, from before it is made until nothing of it is left to be given back.
    pub(super) fn hold(&self, operation: OperationId) -> Hold {
        self.lock().entry(operation).or_default().holders += 1;
        Hold { claims: self.clone(), operation }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Shared>> {
        // Entries are never left half changed, so a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One sending of a claim.
#[derive(Debug)]
pub(super) struct Hold {
    claims: Claims,
    operation: OperationId,
}

impl Hold {
    /// Whether a run may go to the worker: not if another sending gives it back.
    pub(super) fn hand_over(&self, lease: &Lease) -> bool {
        self.decide(lease, Fate::HandedOver)
    }

    /// Whether a run is to be given back: not if the worker got it by another sending.
    pub(super) fn give_back(&self, lease: &Lease) -> bool {
        self.decide(lease, Fate::GivenBack)
    }

    /// The first to decide about a lease has decided for all.
    fn decide(&self, lease: &Lease, fate: Fate) -> bool {
        let mut claims = self.claims.lock();
        let shared = claims.entry(self.operation).or_default();
        *shared.fates.entry((lease.run_id, lease.fencing_token)).or_insert(fate) == fate
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut claims = self.claims.lock();
        if let Some(shared) = claims.get_mut(&self.operation) {
            shared.holders = shared.holders.saturating_sub(1);
            if shared.holders == 0 {
                claims.remove(&self.operation);
            }
        }
    }
}
