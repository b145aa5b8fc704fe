//! How many connections are open, in all and from one address.
//!
//! One too many is closed at once, so that its client hears of it, instead of waiting to be accepted.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

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
    all: u32,
    of_each: HashMap<IpAddr, u32>,
}

/// A connection, counted while this lives.
#[derive(Debug)]
pub(super) struct Counted {
    connections: Connections,
    host: IpAddr,
    _shown: OpenConnection,
}

impl Connections {
    pub(super) fn up_to(limits: &LoadLimits) -> Self {
        let (most, most_of_one) = (limits.max_connections, limits.connections_of_one_address());
        Self(Arc::new(Inner { most, most_of_one, open: Mutex::default() }))
    }

    /// Counts one more connection, if there may be one.
    pub(super) fn open(&self, address: IpAddr, metrics: &Metrics) -> Option<Counted> {
        let host = host(address);
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= self.0.most {
            return None;
        }
        let of_one = open.of_each.entry(host).or_default();
        if *of_one >= self.0.most_of_one {
            return None;
        }
        *of_one += 1;
        open.all += 1;
        Some(Counted { connections: self.clone(), host, _shown: metrics.connection() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.connections.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all = open.all.saturating_sub(1);
        if let Some(of_one) = open.of_each.get_mut(&self.host) {
            *of_one = of_one.saturating_sub(1);
            if *of_one == 0 {
                open.of_each.remove(&self.host);
            }
        }
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

    #[test]
    fn one_more_than_all_that_may_be_is_refused_until_one_is_closed() {
        let connections = of(2, None);
        let metrics = metrics();
        let open = |address: &str| connections.open(address.parse().unwrap(), &metrics);
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
            let open = |address: &str| connections.open(address.parse().unwrap(), &metrics);
            let held: Vec<_> = std::iter::from_fn(|| open("192.0.2.1")).collect();
            assert_eq!(held.len(), share);
            assert_eq!(open("192.0.2.2").is_some(), most > 100, "{most}");
        }
    }

    #[test]
    fn one_address_leaves_room_for_others_and_is_forgotten_once_it_has_gone() {
        let connections = of(100, Some(2));
        let metrics = metrics();
        let open = |address: &str| connections.open(address.parse().unwrap(), &metrics);
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
        let left = connections.0.open.lock().unwrap();
        assert!(left.all == 0 && left.of_each.is_empty(), "{left:?}");
    }
}
