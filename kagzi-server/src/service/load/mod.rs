//! What is in flight, what has to wait for it, and how much of it one caller may cause.
//!
//! Heartbeats and the writes of workers go first: each of them moves a run towards its end or keeps it
//! from being done twice. They are as many as there are runs under way, so they need no bound of their
//! own; while they are many, no more runs are claimed. Of these many, one principal and one namespace
//! are a part at most, so that whoever writes without end keeps nobody but themselves from claiming; and
//! those of one principal beyond its part wait until others of its own have ended.
//! Nor are they charged for: what was paid for when it was started and claimed is finished, for a
//! refused completion would be sent again and a refused heartbeat would have the work done twice, more
//! load in either case. Only a look at a run that this server did not hand out is charged, as any read ([`looks`]).
//! A worker's stream is opened for nothing too, since its writes go by it.
//!
//! Everything else (starts, polls, reads) costs a call of its principal and of its namespace, each start
//! of a batch one, and takes a place among those in flight: so many in all, of which one principal and
//! one namespace may take a part. Beyond that, callers are told to come again rather than left to wait
//! until their time runs out. Streams that are open take a place each, too.
//!
//! Reads that scan have turns, too, as many as the store reads at once, of which one principal and one namespace have a part
//! ([`scans`]): a count of many runs is one call, and a connection of the store for as long as it takes.
//!
//! What all of them hold in memory is charged in bytes ([`bytes`]), whatever they are for.

mod account;
mod bytes;
mod looks;
mod scans;
mod strangers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kagzi_core::{Namespace, StoreError};
use kagzi_sdk::wire::error::{Refusal, limit_reached, overloaded};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::auth::Caller;
use crate::config::{LoadLimits, ServerConfig};
use crate::open::scans_at_once;
use crate::rate::TooMany;
pub(super) use account::Place;
use account::{Account, Kind};
use bytes::{Bounds, Sum};
pub(super) use bytes::{CALL_BYTES, Charge, MESSAGE_HEADER_BYTES, Payer, READING_BYTES, Waiting};
pub(super) use scans::Scanning;
use strangers::Strangers;

/// When a request that found no place should be tried again: the store commits some thousand starts
/// meanwhile.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// When a stream that found no place should be tried again: those that are open stay for long.
const STREAM_RETRY_AFTER: Duration = Duration::from_secs(2);

/// For how long a poll that waits for work waits for its turn before it is refused.
const TURN_WITHIN: Duration = Duration::from_millis(500);

/// What a request does to the server's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// A write of a worker.
    Work,
    /// A heartbeat: those of its leases that are its caller's are writes once that is known.
    Beat,
    /// It opens the way for those.
    Open,
    /// It brings new work in.
    Start,
    /// It hands work out, after a wait or not.
    Claim(Patience),
    /// It reads what may be much: a page, a count.
    Scan,
    /// Anything else.
    Other(Patience),
}

/// Whether a request is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    AtOnce,
    Waits,
}

impl Patience {
    pub(super) fn of(wait: Duration) -> Self {
        if wait.is_zero() { Self::AtOnce } else { Self::Waits }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::AtOnce => Kind::Read,
            Self::Waits => Kind::Wait,
        }
    }
}

/// See the module. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Load(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: LoadLimits,
    /// What part of the places one principal may take.
    principal_share: f64,
    /// What part of them one namespace may take.
    namespace_share: f64,
    /// Whether callers are told apart.
    many_principals: bool,
    /// How many scans the store does at once, where it bounds them.
    scans: Option<u32>,
    /// How many bytes may be held.
    bytes: Bounds,
    strangers: Strangers,
    /// Heartbeats and writes in flight, of each as many as its share.
    writes: AtomicUsize,
    fewer: Notify,
    all: Arc<Account>,
    /// By name: as many as the access file ever named.
    principals: RwLock<HashMap<String, Arc<Account>>>,
    /// Those that are served.
    namespaces: HashMap<Namespace, Arc<Account>>,
    /// The bytes that are held for each of these.
    bytes_of_namespaces: HashMap<String, Arc<Sum>>,
}

/// Counts a write while it lives, from before it has its turn.
#[derive(Debug)]
pub(super) struct Writing {
    load: Load,
    /// Whose shares it takes, and how many writes it is for each.
    counts: Vec<(Arc<Account>, usize)>,
    /// How many it is of those that keep everybody from claiming.
    of_all: usize,
    turn: Option<OwnedSemaphorePermit>,
}

/// Whose share of the server a request takes, and the setting that says how large that is.
type Sharer = (Arc<Account>, &'static str);

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Excess {
    /// It may come again.
    ForNow(Refusal),
    /// It is too large for what its caller may ever do at once.
    ForEver(StoreError),
}

impl Load {
    pub(super) fn of(config: &ServerConfig) -> Self {
        let limits = &config.load;
        let scans = scans_at_once(config);
        // Where there is but one, there is nobody to be kept from harm.
        let principal_share = if config.access_file.is_some() { limits.principal_share } else { 1.0 };
        let namespace_share = if config.namespaces.len() > 1 { limits.namespace_share } else { 1.0 };
        let namespaces = config.namespaces.iter().map(|namespace| {
            let account = Account::with_share(limits, namespace_share, limits.rate_per_namespace, scans);
            (namespace.clone(), Arc::new(account))
        });
        let namespaces: HashMap<_, _> = namespaces.collect();
        let bytes_of_namespaces = namespaces.iter();
        let bytes_of_namespaces = bytes_of_namespaces
            .map(|(namespace, account)| (namespace.as_str().to_owned(), Arc::clone(&account.bytes)))
            .collect();
        Self(Arc::new(Inner {
            limits: limits.clone(),
            principal_share,
            namespace_share,
            many_principals: config.access_file.is_some(),
            scans,
            bytes: Bounds::of(config, principal_share, namespace_share),
            strangers: Strangers::of(limits.max_bytes_in_flight),
            writes: AtomicUsize::new(0),
            fewer: Notify::new(),
            all: Arc::new(Account::with_share(limits, 1.0, None, scans)),
            principals: RwLock::default(),
            namespaces,
            bytes_of_namespaces,
        }))
    }

    /// Charges a request to its principal and its namespaces, each as often as it names them. The
    /// principal comes first: what exceeds its own limit costs nobody else's. A poll that waits for work waits for its
    /// turn, too, though not for long: refused, its worker would stay away for a while and then take all that has
    /// gathered, and such surges are felt by everybody.
    ///
    /// Cancel safe: dropped, it has charged some or none.
    pub(super) async fn charge<'a>(
        &self,
        errand: Errand,
        caller: &Caller,
        namespaces: impl Iterator<Item = &'a Namespace>,
    ) -> Result<(), Excess> {
        let limits = &self.0.limits;
        let free = limits.rate_per_principal.is_none() && limits.rate_per_namespace.is_none();
        if free || matches!(errand, Errand::Work | Errand::Beat | Errand::Open) {
            return Ok(());
        }
        let (named, calls) = self.tally(namespaces);
        // One that names no namespace is a call all the same.
        let calls = NonZeroU32::new(calls).unwrap_or(NonZeroU32::MIN);
        let (patience, _place) = match errand {
            Errand::Claim(Patience::Waits) => {
                let accounts = named.iter().map(|(account, _)| *account);
                let place = self.place(Kind::Wait, &self.sharers_of(caller, accounts));
                (TURN_WITHIN, Some(place.map_err(Excess::ForNow)?))
            }
            _ => (Duration::ZERO, None),
        };
        let until = Instant::now() + patience;
        pay(&self.principal(caller), "rate_per_principal", calls, until).await?;
        for (account, calls) in named {
            pay(account, "rate_per_namespace", calls, until).await?;
        }
        Ok(())
    }

    /// Charges a request that is denied, or cannot be read, to its principal, whatever it was for: whoever sends such
    /// without end has the server read them.
    pub(super) fn charge_in_vain(&self, caller: &Caller) -> Result<(), Refusal> {
        let principal = self.principal(caller);
        match principal.rate.as_ref().map(|rate| rate.charge(NonZeroU32::MIN)) {
            Some(Err(TooMany::ForNow(delay))) => Err(limit_reached("rate_per_principal", delay)),
            // A single call is never more than there is ever room for.
            None | Some(Ok(()) | Err(TooMany::ForEver { .. })) => Ok(()),
        }
    }

    /// Lets a request in: at once, when there is room for it, or not at all.
    pub(super) async fn admit<'a>(
        &self,
        errand: Errand,
        caller: &Caller,
        namespaces: impl Iterator<Item = &'a Namespace>,
    ) -> Result<Option<Place>, Refusal> {
        let place = match errand {
            // These have their turn, or a place as streams.
            Errand::Work | Errand::Beat | Errand::Open => return Ok(None),
            Errand::Start => self.place(Kind::Start, &self.sharers(caller, namespaces))?,
            Errand::Scan => self.place(Kind::Read, &self.sharers(caller, namespaces))?,
            Errand::Other(patience) => self.place(patience.kind(), &self.sharers(caller, namespaces))?,
            Errand::Claim(patience) => {
                let sharers = self.sharers(caller, namespaces);
                let place = self.place(patience.kind(), &sharers)?;
                self.until_calm(&sharers).await;
                place
            }
        };
        Ok(Some(place))
    }

    /// A place for a stream of `caller`, for as long as it is open. Which namespaces it will be about, nobody knows yet.
    pub(super) fn stream(&self, caller: &Caller) -> Result<Place, Refusal> {
        self.place(Kind::Stream, &self.sharers(caller, std::iter::empty()))
    }

    /// Who may take no more than a share: who may take all is refused by what all may take.
    fn sharers<'a>(&self, caller: &Caller, namespaces: impl Iterator<Item = &'a Namespace>) -> Vec<Sharer> {
        let named = if self.0.namespace_share < 1.0 { self.tally(namespaces).0 } else { Vec::new() };
        self.sharers_of(caller, named.into_iter().map(|(account, _)| account))
    }

    /// The same, where the accounts of the namespaces are known.
    fn sharers_of<'a>(&self, caller: &Caller, named: impl Iterator<Item = &'a Arc<Account>>) -> Vec<Sharer> {
        let mut sharers = Vec::new();
        if self.0.principal_share < 1.0 {
            sharers.push((self.principal(caller), "principal_share"));
        }
        if self.0.namespace_share < 1.0 {
            sharers.extend(named.map(|account| (Arc::clone(account), "namespace_share")));
        }
        sharers
    }

    /// Has a heartbeat or a write wait for its turn, and counts it until what this gives is dropped; nothing else does.
    /// Those of one principal are in flight up to its share, each lease of a heartbeat one of them; the others wait
    /// behind them, first come, first served. So whoever writes without end is in nobody's way but their own, be it in
    /// one namespace or over many.
    ///
    /// Cancel safe: dropped, it is counted no more.
    pub(super) async fn turn<'a>(
        &self,
        errand: Errand,
        caller: &Caller,
        namespaces: impl Iterator<Item = &'a Namespace>,
    ) -> Option<Writing> {
        if errand != Errand::Work {
            return None;
        }
        let (named, all) = self.tally(namespaces);
        let mut counts = Vec::new();
        let mut turns = None;
        if self.0.principal_share < 1.0 {
            let principal = self.principal(caller);
            // One that is larger than the share has all of it.
            let share = u32::try_from(principal.share_of_writes).unwrap_or(u32::MAX);
            turns = Some((Arc::clone(&principal.turns), all.clamp(1, share)));
            counts.push((principal, all as usize));
        }
        if self.0.namespace_share < 1.0 {
            counts.extend(named.iter().map(|(account, writes)| (Arc::clone(account), writes.get() as usize)));
        }
        let mut writing = self.writing(counts, all as usize);
        if let Some((turns, writes)) = turns {
            // It is never closed.
            writing.turn = turns.acquire_many_owned(writes).await.ok();
        }
        Some(writing)
    }

    fn writing(&self, counts: Vec<(Arc<Account>, usize)>, all: usize) -> Writing {
        let left = counts.iter().map(|(account, writes)| {
            account.share_of_writes.saturating_sub(account.writes.fetch_add(*writes, Ordering::AcqRel))
        });
        let of_all = left.min().map_or(all, |left| left.min(all));
        self.0.writes.fetch_add(of_all, Ordering::AcqRel);
        Writing { load: self.clone(), counts, of_all, turn: None }
    }

    fn place(&self, kind: Kind, sharers: &[Sharer]) -> Result<Place, Refusal> {
        let mut place = Place::new(kind);
        let retry_after = if kind == Kind::Stream { STREAM_RETRY_AFTER } else { RETRY_AFTER };
        for (account, share) in sharers {
            if !place.take(account) {
                return Err(limit_reached(share, retry_after));
            }
        }
        if place.take(&self.0.all) { Ok(place) } else { Err(overloaded(retry_after)) }
    }

    fn principal(&self, caller: &Caller) -> Arc<Account> {
        let known = self.0.principals.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = known.get(caller.name()) {
            return Arc::clone(account);
        }
        drop(known);
        let mut known = self.0.principals.write().unwrap_or_else(PoisonError::into_inner);
        let account = known.entry(caller.name().to_owned()).or_insert_with(|| {
            let (limits, share) = (&self.0.limits, self.0.principal_share);
            Arc::new(Account::with_share(limits, share, limits.rate_per_principal, self.0.scans))
        });
        Arc::clone(account)
    }

    /// The account of each namespace that is served, with how often it is named; and how often any is.
    fn tally<'a>(
        &self,
        namespaces: impl Iterator<Item = &'a Namespace>,
    ) -> (Vec<(&Arc<Account>, NonZeroU32)>, u32) {
        let mut named: Vec<(&Arc<Account>, NonZeroU32)> = Vec::new();
        let (mut all, mut last) = (0_u32, None);
        for namespace in namespaces {
            all = all.saturating_add(1);
            // A batch names the same one again and again.
            let account = match last {
                Some((known, account)) if known == namespace => account,
                _ => self.0.namespaces.get(namespace),
            };
            last = Some((namespace, account));
            let Some(account) = account else { continue };
            match named.iter_mut().find(|(known, _)| Arc::ptr_eq(known, account)) {
                Some((_, calls)) => *calls = calls.saturating_add(1),
                None => named.push((account, NonZeroU32::MIN)),
            }
        }
        (named, all)
    }

    /// Ready while neither the server nor those who ask have many writes in flight.
    async fn until_calm(&self, sharers: &[Sharer]) {
        let few = |writes: &AtomicUsize| writes.load(Ordering::Acquire) < self.0.many_writes();
        loop {
            let fewer = self.0.fewer.notified();
            if few(&self.0.writes) && sharers.iter().all(|(account, _)| few(&account.writes)) {
                return;
            }
            fewer.await;
        }
    }
}

impl Inner {
    fn many_writes(&self) -> usize {
        usize::try_from(self.limits.max_writes_while_claiming).unwrap_or(usize::MAX)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let inner = &*self.load.0;
        let (many, mut fewer) = (inner.many_writes(), false);
        let counts = self.counts.iter().map(|(account, writes)| (&account.writes, *writes));
        for (count, writes) in counts.chain([(&inner.writes, self.of_all)]) {
            let before = count.fetch_sub(writes, Ordering::AcqRel);
            fewer |= before >= many && before - writes < many;
        }
        if fewer {
            inner.fewer.notify_waiters();
        }
    }
}

/// Pays as soon as there is room for it, if that is before `until`.
async fn pay(
    account: &Account,
    limit: &'static str,
    calls: NonZeroU32,
    until: Instant,
) -> Result<(), Excess> {
    let Some(rate) = &account.rate else { return Ok(()) };
    loop {
        match rate.charge(calls) {
            Ok(()) => return Ok(()),
            // Others may be quicker.
            Err(TooMany::ForNow(delay)) if Instant::now() + delay < until => {
                tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
            }
            Err(TooMany::ForNow(delay)) => return Err(Excess::ForNow(limit_reached(limit, delay))),
            Err(TooMany::ForEver { burst }) => {
                return Err(Excess::ForEver(StoreError::InvalidArgument {
                    field: "starts".to_owned(),
                    expected: format!("at most {burst} at once, the server's {limit}_burst"),
                    got: calls.to_string(),
                }));
            }
        }
    }
}
