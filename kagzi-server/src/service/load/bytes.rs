//! Bytes that are held: of requests from when they come until they are done, of answers until they were sent.
//!
//! Places bound how many requests are in flight and not how large they are, and whoever sends half a message, or does
//! not read what was answered, holds memory without a place. So every byte is charged to the server as a whole, to its
//! principal, and to the namespace of a principal that has but one. What is charged is what goes over the wire, and for
//! each call what it costs by being there ([`CALL_BYTES`]).
//!
//! An eighth of all is kept for those who hold little: so however much others hold, there is room for a heartbeat and
//! for the end of a step. Who calls without being known has an account, too ([`strangers`](super::strangers)).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kagzi_sdk::wire::error::{Refusal, limit_reached, overloaded};

use super::{Load, RETRY_AFTER};
use crate::auth::Caller;
use crate::config::ServerConfig;
use crate::metrics::Metrics;

/// What stands before each message on the wire.
pub(in crate::service) const MESSAGE_HEADER_BYTES: usize = 5;

/// What a call costs by being there, be nothing of it sent but its headers: some 13 KB, measured.
pub(in crate::service) const CALL_BYTES: usize = 16 * 1024;

/// The part of it that goes when the request was read: what it is decoded in. So as many waits as there are places for
/// fit beside each other.
pub(in crate::service) const READING_BYTES: usize = 8 * 1024;

/// An answer that is no longer is never refused: it says little more than that something was done, and the request is
/// as long. It is charged all the same.
const SHORT_BYTES: usize = 1024;

/// So many requests of one principal wait for room at a time, as the waiting cost memory that is not charged for.
const MOST_WAITING: usize = 128;

/// How many bytes may be held.
#[derive(Debug)]
pub(super) struct Bounds {
    all: usize,
    /// Those who hold much may hold no more of them.
    common: usize,
    /// Who holds no more holds little: the largest payload, if there is room for four of them in what is kept.
    little: usize,
    of_principal: usize,
    of_namespace: usize,
}

impl Bounds {
    pub(super) fn of(config: &ServerConfig, principal_share: f64, namespace_share: f64) -> Self {
        let all = config.load.max_bytes_in_flight;
        let kept = all / 8;
        let a_payload = config.rules.max_payload_bytes.saturating_add(4 * CALL_BYTES);
        Self {
            all,
            common: all - kept,
            little: (kept / 16).max(a_payload.min(kept / 4)),
            of_principal: of_one(config, principal_share),
            of_namespace: of_one(config, namespace_share),
        }
    }
}

/// How many bytes may be held for one: its share, and the largest message at least.
fn of_one(config: &ServerConfig, share: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share from 0 to 1 of a number of bytes, to within some"
    )]
    let part = (config.load.max_bytes_in_flight as f64 * share) as usize;
    part.max(config.max_message_bytes.saturating_add(MESSAGE_HEADER_BYTES + CALL_BYTES))
}

/// The bytes that are held for somebody.
#[derive(Debug, Default)]
pub(super) struct Sum {
    held: AtomicUsize,
    /// How many requests wait until they are fewer.
    waiting: AtomicUsize,
}

impl Sum {
    /// Holds more, if they are no more than `most` then; tells how many they are.
    fn add(&self, bytes: usize, most: usize) -> Option<usize> {
        let more = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
        let before = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(before + bytes)
    }

    fn less(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Somebody's bytes, and how many they may be.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) sum: Arc<Sum>,
    pub(super) most: usize,
}

/// Who pays for the bytes of a call. Cloning is cheap.
#[derive(Clone, Debug)]
pub(in crate::service) struct Payer(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    load: Load,
    /// That of the principal or of the stranger's address, and what it is a part of. None, where one may have all.
    shares: [Option<Share>; 2],
    metrics: Metrics,
}

/// Bytes that were charged, until it is dropped.
#[derive(Debug)]
pub(in crate::service) struct Charge {
    payer: Payer,
    bytes: AtomicUsize,
}

/// Counts a request that waits for room while it lives.
#[derive(Debug)]
pub(in crate::service) struct Waiting(Payer);

impl Load {
    /// Who pays for the bytes of a call of `caller`. What is refused is counted in `metrics`.
    pub(in crate::service) fn payer(&self, caller: &Caller, metrics: &Metrics) -> Payer {
        let bounds = &self.0.bytes;
        let principal = self.0.many_principals.then(|| {
            let sum = Arc::clone(&self.principal(caller).bytes);
            Share { sum, most: bounds.of_principal }
        });
        let namespace = if self.0.namespace_share < 1.0 { caller.only_namespace() } else { None };
        let namespace = namespace.and_then(|name| self.0.bytes_of_namespaces.get(name));
        let namespace = namespace.map(|sum| Share { sum: Arc::clone(sum), most: bounds.of_namespace });
        self.purse([principal, namespace], metrics)
    }

    /// Who pays for the bytes of a call of somebody who is not known.
    pub(in crate::service) fn stranger(&self, address: Option<IpAddr>, metrics: &Metrics) -> Payer {
        self.purse(self.0.strangers.shares(address), metrics)
    }

    fn purse(&self, shares: [Option<Share>; 2], metrics: &Metrics) -> Payer {
        Payer(Arc::new(Purse { load: self.clone(), shares, metrics: metrics.clone() }))
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
            return Ok(self.anyway(bytes));
        }
        let charge = self.charge();
        charge.more(bytes).inspect_err(|refusal| self.0.metrics.refused(refusal))?;
        Ok(charge)
    }

    /// Charges for what cannot be refused: an answer, or what a request that was let in holds beside its bytes. Others are
    /// refused the sooner.
    pub(in crate::service) fn anyway(&self, bytes: usize) -> Charge {
        let Purse { load, metrics, .. } = &*self.0;
        for sum in self.sums().chain([&load.0.all.bytes]) {
            sum.held.fetch_add(bytes, Ordering::AcqRel);
        }
        metrics.bytes_held(bytes);
        Charge { payer: self.clone(), bytes: AtomicUsize::new(bytes) }
    }

    fn sums(&self) -> impl Iterator<Item = &Arc<Sum>> {
        self.0.shares.iter().flatten().map(|share| &share.sum)
    }

    /// Their own shares come first: what exceeds them costs nobody else's.
    fn pay(&self, bytes: usize) -> Result<(), Refusal> {
        let Purse { load, shares, metrics } = &*self.0;
        let bounds = &load.0.bytes;
        let (mut paid, mut most) = (0, bounds.all);
        let refusal = 'refused: {
            for share in shares.iter().flatten() {
                let Some(held) = share.sum.add(bytes, share.most) else {
                    break 'refused limit_reached("max_bytes_in_flight", RETRY_AFTER);
                };
                // The first says how much they hold themselves.
                if paid == 0 && held > bounds.little {
                    most = bounds.common;
                }
                paid += 1;
            }
            if load.0.all.bytes.add(bytes, most).is_some() {
                metrics.bytes_held(bytes);
                return Ok(());
            }
            overloaded(RETRY_AFTER)
        };
        self.sums().take(paid).for_each(|sum| sum.less(bytes));
        Err(refusal)
    }

    fn give_back(&self, bytes: usize) {
        let Purse { load, metrics, .. } = &*self.0;
        self.sums().chain([&load.0.all.bytes]).for_each(|sum| sum.less(bytes));
        metrics.bytes_released(bytes);
    }

    /// Who counts those who wait.
    fn waiting(&self) -> &AtomicUsize {
        &self.sums().next().unwrap_or(&self.0.load.0.all.bytes).waiting
    }
}

impl Charge {
    /// Charges for more, if there is room for it. A refusal is not counted.
    pub(in crate::service) fn more(&self, bytes: usize) -> Result<(), Refusal> {
        self.payer.pay(bytes)?;
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Gives back a part of it, all at most.
    pub(in crate::service) fn less(&self, bytes: usize) {
        let fewer = |held: usize| Some(held.saturating_sub(bytes));
        let held = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).unwrap_or_default();
        self.payer.give_back(bytes.min(held));
    }

    /// Lets a request wait for room, unless too many of its payer do.
    pub(in crate::service) fn wait(&self) -> Option<Waiting> {
        let more = |waiting: usize| (waiting < MOST_WAITING).then_some(waiting + 1);
        self.payer.waiting().fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Waiting(self.payer.clone()))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.payer.give_back(bytes);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting().fetch_sub(1, Ordering::AcqRel);
    }
}
