//! How many connections are open, in all and from one address.
//!
//! Whoever connects is a stranger until a credential that is known was shown on the connection, and a stranger can answer
//! every sign of life and never call. So where there is no room, the stranger who came first gives way to a new
//! connection; what was shown to be known never does. Where all are known, one too many is closed at once, so that its
//! client hears of it, instead of waiting to be accepted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::config::LoadLimits;
use crate::metrics::{Metrics, OpenConnection};

/// The connections of a server. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: u32,
    most_of_one: u32,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// The number of the next connection.
    next: u64,
    all: u32,
    of_each: HashMap<IpAddr, OfOne>,
    /// The oldest first.
    strangers: BTreeMap<u64, Stranger>,
}

/// Those of one address.
#[derive(Debug, Default)]
struct OfOne {
    all: u32,
    /// The oldest first.
    strangers: BTreeSet<u64>,
}

#[derive(Debug)]
struct Stranger {
    host: IpAddr,
    end: CancellationToken,
}

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
    host: IpAddr,
    /// Once and for all.
    known: AtomicBool,
    end: CancellationToken,
}

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
        let of_one = open.of_each.get(&host);
        let stranger = if of_one.is_some_and(|of_one| of_one.all >= self.0.most_of_one) {
            Some(of_one.and_then(|of_one| of_one.strangers.first().copied())?)
        } else if open.all >= self.0.most {
            Some(*open.strangers.first_key_value()?.0)
        } else {
            None
        };
        if let Some(stranger) = stranger.and_then(|number| open.leave_as_stranger(number)) {
            metrics.refused_connection();
            tracing::debug!(
                host = %stranger.host,
                "a connection was ended for a new one: nobody who is known had called on it"
            );
            stranger.end.cancel();
        }
        let (number, end) = (open.next, CancellationToken::new());
        open.next += 1;
        open.all += 1;
        let of_one = open.of_each.entry(host).or_default();
        of_one.all += 1;
        of_one.strangers.insert(number);
        open.strangers.insert(number, Stranger { host, end: end.clone() });
        let known = AtomicBool::new(false);
        let place = Place { connections: self.clone(), number, host, known, end };
        Some(Counted { standing: Standing(Arc::new(place)), _shown: metrics.connection() })
    }
}

impl Open {
    /// Whose connection it is, if still a stranger's; it is none from now on, and counted all the same.
    fn no_stranger(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.strangers.remove(&number)?;
        if let Some(of_one) = self.of_each.get_mut(&stranger.host) {
            of_one.strangers.remove(&number);
        }
        Some(stranger)
    }

    /// Counts a connection no more, if it is a stranger's.
    fn leave_as_stranger(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.no_stranger(number)?;
        self.leave(stranger.host);
        Some(stranger)
    }

    /// Counts one less.
    fn leave(&mut self, host: IpAddr) {
        self.all = self.all.saturating_sub(1);
        if let Some(of_one) = self.of_each.get_mut(&host) {
            of_one.all = of_one.all.saturating_sub(1);
            if of_one.all == 0 {
                self.of_each.remove(&host);
            }
        }
    }
}

impl Counted {
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Place { connections, number, host, known, .. } = &*self.standing.0;
        let mut open = connections.locked();
        if known.load(Ordering::Acquire) {
            open.leave(*host);
        } else {
            // One that gave way is counted no more already.
            open.leave_as_stranger(*number);
        }
    }
}

impl Standing {
    /// Of a connection that is not counted.
    #[cfg(test)]
    pub(super) fn uncounted() -> Self {
        let host = Ipv6Addr::UNSPECIFIED.into();
        let (known, end) = (AtomicBool::new(false), CancellationToken::new());
        let connections = Connections::up_to(&LoadLimits::default());
        Self(Arc::new(Place { connections, number: 0, host, known, end }))
    }

    /// A credential that is known was shown on the connection. It gives way to nobody from now on.
    pub(crate) fn make_known(&self) {
        let Place { connections, number, known, .. } = &*self.0;
        if self.is_known() {
            return;
        }
        let mut open = connections.locked();
        if open.no_stranger(*number).is_some() {
            known.store(true, Ordering::Release);
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.0.known.load(Ordering::Acquire)
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
        counted.standing().make_known();
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
        assert!(left.all == 0 && left.of_each.is_empty() && left.strangers.is_empty(), "{left:?}");
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
        other.standing().make_known();
        assert!(!other.standing().is_known());
        drop((first, other));
        assert_eq!(connections.locked().all, 4);
        let (second, third, new) = (known(second), known(third), known(new));
        assert!(open("192.0.2.3").is_none() && open("192.0.2.1").is_none());
        refused(2);
        assert!([&guest, &second, &third, &new].iter().all(|known| !gave_way(known)));
        drop((guest, second, third, new));
        let left = connections.locked();
        assert!(left.all == 0 && left.of_each.is_empty() && left.strangers.is_empty(), "{left:?}");
    }
}
