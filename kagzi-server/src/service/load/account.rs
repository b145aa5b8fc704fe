//! What somebody has in flight, and how often they may call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::bytes::Sum;
use super::looks::Looks;
use super::scans::Turns;
use crate::config::{LoadLimits, RateLimit};
use crate::rate::Rate;

/// What a request takes a place among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Start,
    Read,
    Wait,
    Stream,
}

/// The account of a principal, of a namespace, or of the whole server.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) rate: Option<Rate>,
    most: [u32; 4],
    taken: [AtomicU32; 4],
    /// Heartbeats and writes in flight, those that wait for their turn too; each lease of a heartbeat is one.
    pub(super) writes: AtomicUsize,
    /// So many of them at most are its part of those that keep everybody from claiming.
    pub(super) share_of_writes: usize,
    /// Bytes of requests and answers that are held for it.
    pub(super) bytes: Arc<Sum>,
    /// As many turns as its share of them, for a principal.
    pub(super) turns: Arc<Semaphore>,
    /// Its turns to scan, where the store bounds scans.
    pub(super) scans: Option<Turns>,
    /// Those at runs that its workers name, for a principal.
    pub(super) looks: Looks,
}

impl Account {
    /// An account with a part of the server's places.
    pub(super) fn with_share(
        limits: &LoadLimits,
        share: f64,
        rate: Option<RateLimit>,
        scans: Option<u32>,
    ) -> Self {
        let of = |all: u32| part(all, share);
        let share_of_writes = usize::try_from(of(limits.max_writes_while_claiming)).unwrap_or(usize::MAX);
        let share_of_writes = share_of_writes.min(Semaphore::MAX_PERMITS);
        Self {
            rate: rate.map(Rate::new),
            most: [
                of(limits.max_starts_in_flight),
                of(limits.max_reads_in_flight),
                of(limits.max_waits),
                of(limits.max_streams),
            ],
            taken: Default::default(),
            writes: AtomicUsize::new(0),
            share_of_writes,
            bytes: Arc::default(),
            turns: Arc::new(Semaphore::new(share_of_writes)),
            scans: scans.map(|all| Turns::of(part(all, share))),
            looks: Looks::default(),
        }
    }

    fn take(&self, kind: Kind) -> bool {
        let most = self.most[kind as usize];
        let more = |taken: u32| (taken < most).then_some(taken + 1);
        self.taken[kind as usize].fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn give_back(&self, kind: Kind) {
        self.taken[kind as usize].fetch_sub(1, Ordering::AcqRel);
    }
}

/// A part of a number, at least 1.
pub(super) fn part(all: u32, share: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share from 0 to 1 of a u32 is a u32"
    )]
    let part = (f64::from(all) * share).floor() as u32;
    part.clamp(1, all.max(1))
}

/// A place in each of some accounts, given back when it is dropped.
#[derive(Debug)]
pub(in crate::service) struct Place {
    kind: Kind,
    accounts: Vec<Arc<Account>>,
}

impl Place {
    pub(super) const fn new(kind: Kind) -> Self {
        Self { kind, accounts: Vec::new() }
    }

    /// Takes a place of another account, if it has one left.
    pub(super) fn take(&mut self, account: &Arc<Account>) -> bool {
        let taken = account.take(self.kind);
        if taken {
            self.accounts.push(Arc::clone(account));
        }
        taken
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for account in &self.accounts {
            account.give_back(self.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_and_never_nothing() {
        for (all, share, expected) in [(2048, 0.5, 1024), (3, 0.5, 1), (1, 0.01, 1), (7, 1.0, 7)] {
            assert_eq!(part(all, share), expected);
        }
    }

    #[test]
    fn places_of_one_kind_are_given_back_and_cost_none_of_another() {
        let limits = LoadLimits { max_starts_in_flight: 2, ..LoadLimits::default() };
        let account = Arc::new(Account::with_share(&limits, 0.5, None, None));
        let mut first = Place::new(Kind::Start);
        assert!(first.take(&account));
        assert!(!Place::new(Kind::Start).take(&account));
        assert!(Place::new(Kind::Read).take(&account));
        drop(first);
        assert!(Place::new(Kind::Start).take(&account));
    }
}
