//! How many connections are open, in all and from one address.
//!
//! Whoever connects is a stranger until a credential that is known was shown on the connection, and a stranger can answer
//! every sign of life and never call. So where there is no room, the stranger who came first gives way to a new
//! connection. One on which somebody who is known is calling never does. One on which nobody has called for a while is a
//! stranger's again as soon as there is no room: what was shown there may count no more. Where all are known, one too
//! many is closed at once, so that its client hears of it, instead of waiting to be accepted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::config::LoadLimits;
use crate::metrics::{Metrics, OpenConnection};

/// For how long a connection stays known on which nobody calls.
const KNOWN_FOR: Duration = Duration::from_mins(1);

/// How often it is looked at most which these are: with ten thousand connections it takes a while.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The connections of a server. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: u32,
    most_of_one: u32,
    open: Mutex<Open>,
}

/// Those that are counted, by their numbers: the oldest first.
#[derive(Debug, Default)]
struct Open {
    /// The number of the next connection.
    next: u64,
    of_each: HashMap<IpAddr, OfOne>,
    strangers: BTreeMap<u64, Guest>,
    known: BTreeMap<u64, Guest>,
    /// When it was looked at last who of the known has not called for a while.
    looked: Option<Instant>,
}

/// Those of one address.
#[derive(Debug, Default)]
struct OfOne {
    all: u32,
    strangers: BTreeSet<u64>,
}

#[derive(Debug)]
struct Guest {
    host: IpAddr,
    end: CancellationToken,
    calls: Arc<Calls>,
}

/// The calls on one connection of those who are known.
#[derive(Debug)]
struct Calls {
    /// Whether it is known.
    known: AtomicBool,
    under_way: AtomicUsize,
    opened: Instant,
    /// When the last one ended, in milliseconds from then on.
    last: AtomicU64,
}

/// Nobody can give way.
struct NoRoom;

/// A connection, counted while this lives, or until it gives way.
pub(super) struct Counted {
    standing: Standing,
    _shown: OpenConnection,
}

/// Whether a connection is a stranger's. Cloning is cheap, and keeps no connection counted.
#[derive(Clone)]
pub(crate) struct Standing(Arc<Place>);

struct Place {
    connections: Connections,
    number: u64,
    calls: Arc<Calls>,
    end: CancellationToken,
}

/// A call of somebody who is known, for as long as this or a clone of it lives.
#[derive(Debug)]
pub(crate) struct Visit(Arc<Calls>);

impl Connections {
    pub(super) fn up_to(limits: &LoadLimits) -> Self {
        let (most, most_of_one) = (limits.max_connections, limits.connections_of_one_address());
        Self(Arc::new(Inner { most, most_of_one, open: Mutex::default() }))
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more connection, if there may be one, or if another gives way to it.
    pub(super) fn open(&self, address: IpAddr, metrics: &Metrics) -> Option<Counted> {
        let host = host(address);
        let mut open = self.locked();
        if let Some(stranger) = self.make_room(&mut open, host).ok()? {
            metrics.refused_connection();
            tracing::debug!(
                host = %stranger.host,
                "a connection was ended for a new one: nobody who is known was calling on it"
            );
            stranger.end.cancel();
        }
        let (number, end, calls) = (open.next, CancellationToken::new(), Arc::new(Calls::none()));
        open.next += 1;
        let of_one = open.of_each.entry(host).or_default();
        of_one.all += 1;
        of_one.strangers.insert(number);
        open.strangers.insert(number, Guest { host, end: end.clone(), calls: Arc::clone(&calls) });
        let place = Place { connections: self.clone(), number, calls, end };
        Some(Counted { standing: Standing(Arc::new(place)), _shown: metrics.connection() })
    }

    /// Makes room for a new connection of `host`: who gives way to it, if anybody has to.
    fn make_room(&self, open: &mut Open, host: IpAddr) -> Result<Option<Guest>, NoRoom> {
        let of_one = open.of_each.get(&host).map_or(0, |of_one| of_one.all);
        // One address has as many as it may have: one of its own.
        let of = if of_one >= self.0.most_of_one {
            Some(host)
        } else if open.all() >= self.0.most as usize {
            None
        } else {
            return Ok(None);
        };
        if open.first_stranger(of).is_none() {
            open.forget_who_has_left();
        }
        let stranger = open.first_stranger(of).ok_or(NoRoom)?;
        Ok(open.leave(stranger))
    }
}

impl Open {
    fn all(&self) -> usize {
        self.strangers.len() + self.known.len()
    }

    /// The oldest, of one address or of all.
    fn first_stranger(&self, of: Option<IpAddr>) -> Option<u64> {
        match of {
            Some(host) => self.of_each.get(&host)?.strangers.first().copied(),
            None => self.strangers.first_key_value().map(|(number, _)| *number),
        }
    }

    /// Makes strangers of those on whose connection nobody has called for a while.
    fn forget_who_has_left(&mut self) {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now - looked < LOOK_AGAIN) {
            return;
        }
        self.looked = Some(now);
        let left = self.known.iter().filter(|(_, guest)| guest.calls.forget_if_over(now));
        let left: Vec<u64> = left.map(|(number, _)| *number).collect();
        for number in left {
            let Some(guest) = self.known.remove(&number) else { continue };
            if let Some(of_one) = self.of_each.get_mut(&guest.host) {
                of_one.strangers.insert(number);
            }
            self.strangers.insert(number, guest);
        }
    }

    /// Makes a stranger known, if it is still counted.
    fn know(&mut self, number: u64) {
        let Some(guest) = self.strangers.remove(&number) else { return };
        if let Some(of_one) = self.of_each.get_mut(&guest.host) {
            of_one.strangers.remove(&number);
        }
        guest.calls.known.store(true, Ordering::SeqCst);
        self.known.insert(number, guest);
    }

    /// Counts a connection no more, if it still is.
    fn leave(&mut self, number: u64) -> Option<Guest> {
        let guest = self.strangers.remove(&number).or_else(|| self.known.remove(&number))?;
        if let Some(of_one) = self.of_each.get_mut(&guest.host) {
            of_one.all = of_one.all.saturating_sub(1);
            of_one.strangers.remove(&number);
            if of_one.all == 0 {
                self.of_each.remove(&guest.host);
            }
        }
        Some(guest)
    }
}

impl Calls {
    fn none() -> Self {
        let (known, under_way) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { known, under_way, opened: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Whether the last one ended long ago. The connection is not known from then on.
    fn forget_if_over(&self, now: Instant) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::SeqCst));
        if now - self.opened < last + KNOWN_FOR {
            return false;
        }
        // One that begins meanwhile sees this, or is seen.
        self.known.store(false, Ordering::SeqCst);
        let over = self.under_way.load(Ordering::SeqCst) == 0;
        if !over {
            self.known.store(true, Ordering::SeqCst);
        }
        over
    }

    fn begin(self: &Arc<Self>) -> Visit {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        Visit(Arc::clone(self))
    }
}

impl Clone for Visit {
    fn clone(&self) -> Self {
        self.0.begin()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Calls { under_way, opened, last, .. } = &*self.0;
        let now = u64::try_from(opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        last.store(now, Ordering::SeqCst);
        under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Counted {
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Place { connections, number, .. } = &*self.standing.0;
        // One that gave way is counted no more already.
        connections.locked().leave(*number);
    }
}

impl Standing {
    /// Of a connection that is not counted.
    #[cfg(test)]
    pub(super) fn uncounted() -> Self {
        let connections = Connections::up_to(&LoadLimits::default());
        let (calls, end) = (Arc::new(Calls::none()), CancellationToken::new());
        Self(Arc::new(Place { connections, number: 0, calls, end }))
    }

    /// Somebody who is known calls. The connection gives way to nobody while they do, and for a while after that.
    pub(crate) fn visit(&self) -> Visit {
        let Place { connections, number, calls, .. } = &*self.0;
        let visit = calls.begin();
        if !self.is_known() {
            connections.locked().know(*number);
        }
        visit
    }

    pub(super) fn is_known(&self) -> bool {
        self.0.calls.known.load(Ordering::SeqCst)
    }

    /// Ready when the connection gives way to another.
    pub(super) fn gives_way(&self) -> WaitForCancellationFutureOwned {
        self.0.end.clone().cancelled_owned()
    }
}

/// Without the others.
impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("known", &self.is_known()).finish_non_exhaustive()
    }
}

/// Whose address it is: one machine has a whole /64 of IPv6.
pub(crate) fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kagzi_core::SharedStore;
    use kagzi_core::memory::MemoryStore;

    use super::*;

    fn metrics() -> Metrics {
        let store: SharedStore = Arc::new(MemoryStore::default());
        Metrics::new(&store)
    }

    fn of(most: u32, most_of_one: Option<u32>) -> Connections {
        let limits = LoadLimits {
            max_connections: most,
            max_connections_per_address: most_of_one,
            ..LoadLimits::default()
        };
        Connections::up_to(&limits)
    }

    /// One on which somebody who is known has called.
    fn known(counted: Counted) -> Counted {
        drop(counted.standing().visit());
        counted
    }

    #[test]
    fn one_more_than_all_that_may_be_is_refused_until_one_is_closed() {
        let connections = of(2, None);
        let metrics = metrics();
        let open = |address: &str| connections.open(address.parse().unwrap(), &metrics).map(known);
        let (first, _second) = (open("192.0.2.1").unwrap(), open("192.0.2.1").unwrap());
        assert!(open("192.0.2.2").is_none());
        assert!(metrics.text().unwrap().contains("\nkagzi_connections 2\n"));
        drop(first);
        let _third = open("192.0.2.2").unwrap();
        assert!(open("192.0.2.3").is_none());
    }

    #[test]
    fn unless_it_is_said_otherwise_one_address_takes_a_tenth_and_a_hundred_at_least() {
        for (most, share) in [(10_000, 1000), (2000, 200), (500, 100), (50, 50)] {
            let connections = of(most, None);
            let metrics = metrics();
            let open = |address: &str| connections.open(address.parse().unwrap(), &metrics).map(known);
            let held: Vec<_> = std::iter::from_fn(|| open("192.0.2.1")).collect();
            assert_eq!(held.len(), share);
            assert_eq!(open("192.0.2.2").is_some(), most > 100, "{most}");
        }
    }

    #[test]
    fn one_address_leaves_room_for_others_and_is_forgotten_once_it_has_gone() {
        let connections = of(100, Some(2));
        let metrics = metrics();
        let open = |address: &str| connections.open(address.parse().unwrap(), &metrics).map(known);
        for (one, again, also, other) in [
            ("192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ] {
            let held = (open(one).unwrap(), open(again).unwrap());
            assert!(open(also).is_none());
            drop(open(other).unwrap());
            drop(held);
            drop(open(also).unwrap());
        }
        let left = connections.locked();
        assert!(left.all() == 0 && left.of_each.is_empty(), "{left:?}");
    }

    #[test]
    fn where_there_is_no_room_the_oldest_stranger_gives_way_and_nobody_who_is_known() {
        let connections = of(4, Some(3));
        let metrics = metrics();
        let open = |address: &str| connections.open(address.parse().unwrap(), &metrics);
        let gave_way = |counted: &Counted| counted.standing().0.end.is_cancelled();
        let refused = |times: u32| {
            let line = format!("kagzi_refusals_total{{reason=\"connections\"}} {times}\n");
            let text = metrics.text().unwrap();
            assert!(text.contains(&line), "{line}{text}");
        };
        let guest = known(open("192.0.2.1").unwrap());
        let other = open("192.0.2.9").unwrap();
        let (first, second) = (open("192.0.2.1").unwrap(), open("192.0.2.1").unwrap());
        // One address has as many as it may have: of its own, though another's is older.
        let third = open("192.0.2.1").unwrap();
        assert!(gave_way(&first) && !gave_way(&other) && !gave_way(&second));
        // There are as many as may be: the oldest of all.
        let new = open("192.0.2.2").unwrap();
        assert!(gave_way(&other) && !gave_way(&second) && !gave_way(&third));
        refused(2);
        // Who has given way is counted no more, whether it calls at last or ends.
        drop(other.standing().visit());
        assert!(!other.standing().is_known());
        drop((first, other));
        assert_eq!(connections.locked().all(), 4);
        let (second, third, new) = (known(second), known(third), known(new));
        assert!(open("192.0.2.3").is_none() && open("192.0.2.1").is_none());
        refused(2);
        assert!([&guest, &second, &third, &new].iter().all(|known| !gave_way(known)));
        drop((guest, second, third, new));
        let left = connections.locked();
        assert!(left.all() == 0 && left.of_each.is_empty(), "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_room_one_that_was_known_gives_way_once_nobody_has_called_on_it_for_a_minute() {
        let connections = of(3, Some(2));
        let metrics = metrics();
        let open = |address: &str| connections.open(address.parse().unwrap(), &metrics);
        let gave_way = |counted: &Counted| counted.standing().0.end.is_cancelled();
        let (busy, idle) = (open("192.0.2.1").unwrap(), open("192.0.2.1").unwrap());
        let other = known(open("192.0.2.2").unwrap());
        let call = busy.standing().visit();
        drop(idle.standing().visit());
        let moment = Duration::from_millis(1);
        tokio::time::advance(KNOWN_FOR.saturating_sub(moment)).await;
        assert!(open("192.0.2.1").is_none() && open("192.0.2.3").is_none());
        // It was looked just now.
        tokio::time::advance(moment).await;
        assert!(open("192.0.2.1").is_none());
        tokio::time::advance(LOOK_AGAIN).await;
        let new = open("192.0.2.1").unwrap();
        assert!(gave_way(&idle) && !gave_way(&busy) && !gave_way(&other));
        assert!(busy.standing().is_known() && !other.standing().is_known());
        // Whoever calls again is known again, and what came of a call counts as long as that.
        let second = call.clone();
        drop((call, other.standing().visit()));
        assert!(other.standing().is_known());
        drop(new.standing().visit());
        tokio::time::advance(KNOWN_FOR / 2).await;
        drop(new.standing().visit());
        tokio::time::advance(KNOWN_FOR / 2).await;
        let newest = open("192.0.2.3").unwrap();
        assert!(gave_way(&other) && !gave_way(&busy) && !gave_way(&new));
        drop((second, busy, idle, new, newest, other));
        let left = connections.locked();
        assert!(left.all() == 0 && left.of_each.is_empty(), "{left:?}");
    }
}
