//! The handshakes that are under way.
//!
//! Whoever connects and then says nothing holds a place here until the handshake has taken too long. So that nobody
//! keeps others waiting by it, one address has few places, and none of them all: where all are taken, the oldest
//! handshake of the address that has the most gives way to a new one. Accepting never waits for a place.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use tokio::task::{AbortHandle, Id, JoinSet};

/// So many may be under way at once, so that a flood of them costs a bounded amount of memory and processor time.
const MOST: usize = 1024;

/// So many of them from one address (a /64 of IPv6).
const MOST_OF_ONE: usize = 32;

/// See the module. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct Handshakes<T> {
    most: usize,
    most_of_one: usize,
    tasks: JoinSet<Option<T>>,
    hosts: HashMap<Id, IpAddr>,
    /// The oldest first. No host is here without one.
    of_each: HashMap<IpAddr, VecDeque<AbortHandle>>,
}

/// What became of a handshake that was to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Begun {
    /// There was room.
    Yes,
    /// Another one, of this host, was ended for it.
    InsteadOfOneOf(IpAddr),
    /// Its host has as many as one may have.
    No,
}

impl<T: Send + 'static> Handshakes<T> {
    pub(super) fn new() -> Self {
        Self::up_to(MOST, MOST_OF_ONE)
    }

    fn up_to(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, tasks: JoinSet::new(), hosts: HashMap::new(), of_each: HashMap::new() }
    }

    /// Begins a handshake of a host, if it may have one more. What does not begin is dropped.
    pub(super) fn begin(
        &mut self,
        host: IpAddr,
        handshake: impl Future<Output = Option<T>> + Send + 'static,
    ) -> Begun {
        if self.of_each.get(&host).is_some_and(|of_one| of_one.len() >= self.most_of_one) {
            return Begun::No;
        }
        let ended = if self.hosts.len() >= self.most { self.end_one() } else { None };
        let handle = self.tasks.spawn(handshake);
        self.hosts.insert(handle.id(), host);
        self.of_each.entry(host).or_default().push_back(handle);
        ended.map_or(Begun::Yes, Begun::InsteadOfOneOf)
    }

    /// Ends the oldest handshake of the host that has the most.
    fn end_one(&mut self) -> Option<IpAddr> {
        let (host, of_one) = self.of_each.iter().max_by_key(|(_, of_one)| of_one.len())?;
        let (host, oldest) = (*host, of_one.front()?.clone());
        oldest.abort();
        self.forget(oldest.id());
        Some(host)
    }

    fn forget(&mut self, id: Id) {
        let Some(host) = self.hosts.remove(&id) else { return };
        let Some(of_one) = self.of_each.get_mut(&host) else { return };
        of_one.retain(|handle| handle.id() != id);
        if of_one.is_empty() {
            self.of_each.remove(&host);
        }
    }

    /// What the next handshake to succeed gives; while there is none, it waits. Cancel safe.
    pub(super) async fn next(&mut self) -> T {
        loop {
            let (id, shaken) = match self.tasks.join_next_with_id().await {
                Some(Ok((id, shaken))) => (id, shaken),
                Some(Err(ended)) => (ended.id(), None),
                None => std::future::pending().await,
            };
            self.forget(id);
            if let Some(shaken) = shaken {
                return shaken;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::sync::oneshot;

    use super::super::soon;
    use super::*;

    fn host(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// One that never ends by itself; its other end hears when it is gone.
    fn silent() -> (impl Future<Output = Option<u8>> + Send + 'static, oneshot::Receiver<()>) {
        let (alive, gone) = oneshot::channel::<()>();
        let handshake = async move {
            let _alive = alive;
            pending().await
        };
        (handshake, gone)
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_few_places_and_the_others_shake_hands_meanwhile() {
        let mut handshakes = Handshakes::new();
        for _ in 0..MOST_OF_ONE {
            assert_eq!(handshakes.begin(host(1), pending()), Begun::Yes);
        }
        for _ in 0..2 * MOST {
            assert_eq!(handshakes.begin(host(1), ready(Some(1))), Begun::No);
        }
        for answer in 2..200 {
            assert_eq!(handshakes.begin(host(2), ready(Some(answer))), Begun::Yes);
            assert_eq!(soon(handshakes.next()).await, answer);
        }
        assert_eq!(handshakes.hosts.len(), MOST_OF_ONE);
        assert_eq!(handshakes.of_each.len(), 1, "who has none is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_again_when_its_handshake_failed() {
        let mut handshakes = Handshakes::up_to(10, 2);
        for _ in 0..2 {
            assert_eq!(handshakes.begin(host(1), ready(None)), Begun::Yes);
        }
        assert_eq!(handshakes.begin(host(1), ready(None)), Begun::No);
        assert_eq!(handshakes.begin(host(2), ready(Some(2))), Begun::Yes);
        assert_eq!(soon(handshakes.next()).await, 2);
        assert_eq!(handshakes.begin(host(1), ready(Some(3))), Begun::Yes);
        assert_eq!(soon(handshakes.next()).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_taken_the_oldest_of_the_address_with_the_most_gives_way() {
        let mut handshakes = Handshakes::up_to(4, 3);
        let [(first, first_gone), (second, mut second_gone), (third, _), (other, mut other_gone)] =
            [silent(), silent(), silent(), silent()];
        assert_eq!(handshakes.begin(host(2), other), Begun::Yes);
        for handshake in [first, second, third] {
            assert_eq!(handshakes.begin(host(1), handshake), Begun::Yes);
        }
        assert_eq!(handshakes.begin(host(3), ready(Some(3))), Begun::InsteadOfOneOf(host(1)));
        assert_eq!(soon(handshakes.next()).await, 3);
        soon(first_gone).await.unwrap_err();
        for left in [&mut second_gone, &mut other_gone] {
            assert_eq!(left.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
        assert_eq!(handshakes.hosts.len(), 3);
    }
}
