//! Bytes that are held: of requests from when they come until they are done, of answers until they were sent.
//!
//! Places bound how many requests are in flight and not how large they are, and whoever sends half a message, or does
//! not read what was answered, holds memory without a place. So every byte is charged to the server as a whole and to its
//! principal. What is charged is what goes over the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kagzi_sdk::wire::error::{Refusal, limit_reached, overloaded};

use super::account::Account;
use super::{Load, RETRY_AFTER};
use crate::auth::Caller;
use crate::config::ServerConfig;
use crate::metrics::Metrics;

/// What stands before each message on the wire.
pub(in crate::service) const MESSAGE_HEADER_BYTES: usize = 5;

/// An answer that is no longer is never refused: it says little more than that something was done, and the request is
/// as long. It is charged all the same.
const SHORT_BYTES: usize = 1024;

/// How many bytes may be held for one principal: its share, and the largest message at least.
pub(super) fn of_one(config: &ServerConfig, share: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share from 0 to 1 of a number of bytes, to within some"
    )]
    let part = (config.load.max_bytes_in_flight as f64 * share) as usize;
    part.max(config.max_message_bytes.saturating_add(MESSAGE_HEADER_BYTES))
}

/// Who pays for the bytes of a call. Cloning is cheap.
#[derive(Clone, Debug)]
pub(in crate::service) struct Payer(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    load: Load,
    /// Nobody, where one may have all.
    principal: Option<Arc<Account>>,
    metrics: Metrics,
}

/// Bytes that were charged, until it is dropped.
#[derive(Debug)]
pub(in crate::service) struct Charge {
    payer: Payer,
    bytes: AtomicUsize,
}

impl Load {
    /// Who pays for the bytes of a call of `caller`. What is refused is counted in `metrics`.
    pub(in crate::service) fn payer(&self, caller: &Caller, metrics: &Metrics) -> Payer {
        let principal = (self.0.principal_share < 1.0).then(|| self.principal(caller));
        Payer(Arc::new(Purse { load: self.clone(), principal, metrics: metrics.clone() }))
    }
}

impl Payer {
    /// Nothing yet, to be charged for what comes.
    pub(in crate::service) fn charge(&self) -> Charge {
        Charge { payer: self.clone(), bytes: AtomicUsize::new(0) }
    }

    /// Charges for an answer. One that is long is refused if there is no room for it, and must be dropped then: who
    /// asks again under the same operation id gets it later.
    pub(in crate::service) fn answer(&self, bytes: usize) -> Result<Charge, Refusal> {
        if bytes <= SHORT_BYTES {
            return Ok(self.answer_anyway(bytes));
        }
        let charge = self.charge();
        charge.more(bytes)?;
        Ok(charge)
    }

    /// Charges for an answer that cannot be refused.
    pub(in crate::service) fn answer_anyway(&self, bytes: usize) -> Charge {
        let Purse { load, principal, metrics } = &*self.0;
        if let Some(principal) = principal {
            principal.bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        load.0.all.bytes.fetch_add(bytes, Ordering::AcqRel);
        metrics.bytes_held(bytes);
        Charge { payer: self.clone(), bytes: AtomicUsize::new(bytes) }
    }

    /// The principal comes first: what exceeds its own share costs nobody else's.
    fn pay(&self, bytes: usize) -> Result<(), Refusal> {
        let Purse { load, principal, metrics } = &*self.0;
        if let Some(principal) = principal
            && !add(&principal.bytes, bytes, load.0.bytes_of_one)
        {
            return Err(limit_reached("max_bytes_in_flight", RETRY_AFTER));
        }
        if !add(&load.0.all.bytes, bytes, load.0.limits.max_bytes_in_flight) {
            if let Some(principal) = principal {
                principal.bytes.fetch_sub(bytes, Ordering::AcqRel);
            }
            return Err(overloaded(RETRY_AFTER));
        }
        metrics.bytes_held(bytes);
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        let Purse { load, principal, metrics } = &*self.0;
        if let Some(principal) = principal {
            principal.bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
        load.0.all.bytes.fetch_sub(bytes, Ordering::AcqRel);
        metrics.bytes_released(bytes);
    }
}

fn add(held: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let more = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
    held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
}

impl Charge {
    /// Charges for more, if there is room for it. A refusal is counted.
    pub(in crate::service) fn more(&self, bytes: usize) -> Result<(), Refusal> {
        self.payer.pay(bytes).inspect_err(|refusal| self.payer.0.metrics.refused(refusal))?;
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Gives back a part of it, all at most.
    pub(in crate::service) fn less(&self, bytes: usize) {
        let fewer = |held: usize| Some(held.saturating_sub(bytes));
        let held = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).unwrap_or_default();
        self.payer.give_back(bytes.min(held));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.payer.give_back(*self.bytes.get_mut());
    }
}
