//! Looks at runs that workers name and this server did not hand out.
//!
//! They are charged as reads are. Where no rate is configured, that bounds nothing, so those of one principal are made
//! one after the other, too, and each that was in vain keeps the next one away for a moment. A worker finds what it
//! names, since it holds it, and so waits for the reads of its own principal alone; whoever names runs that are not
//! there, without end, waits for themselves. Nothing else waits for a look: what was looked up is known, and a write has
//! its turn after it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::Namespace;
use kagzi_sdk::wire::error::Refusal;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::{Excess, Load, TURN_WITHIN, pay};
use crate::auth::Caller;

/// For how long a look in vain keeps the next one of its principal away: a hundred of them a second. A worker whose
/// principal has a thousand of those waiting looks up what it holds in some ten seconds, of a lease of thirty.
const IN_VAIN: Duration = Duration::from_millis(10);

/// The looks of one principal: when the next may be made.
#[derive(Debug)]
pub(super) struct Looks(Arc<Mutex<Instant>>);

impl Default for Looks {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

/// A look that may be made now, and is the only one of its principal until this is dropped.
#[derive(Debug)]
pub(in crate::service) struct Look {
    next: OwnedMutexGuard<Instant>,
    began: Instant,
}

impl Looks {
    /// First come, first served. A look is in vain until it is said otherwise: whoever gives up in between, again and
    /// again, gains nothing.
    async fn begin(&self) -> Look {
        let mut next = Arc::clone(&self.0).lock_owned().await;
        if *next > Instant::now() {
            tokio::time::sleep_until(*next).await;
        }
        let began = Instant::now();
        *next = began + IN_VAIN;
        Look { next, began }
    }
}

impl Look {
    /// Ends a look that found all that it was for.
    pub(in crate::service) fn found_all(mut self) {
        *self.next = self.began;
    }
}

impl Load {
    /// Charges looks at runs that a worker names and this server did not hand out, each by itself, so that one for which
    /// there is no room costs none of the others: how many may be made, and the refusal of the rest. They wait for
    /// their turn, as polls do.
    ///
    /// Cancel safe: dropped, it has charged some or none.
    pub(in crate::service) async fn charge_looks<'a>(
        &self,
        caller: &Caller,
        namespaces: impl Iterator<Item = &'a Namespace>,
    ) -> (usize, Option<Refusal>) {
        let (principal, until) = (self.principal(caller), Instant::now() + TURN_WITHIN);
        let mut paid = 0;
        for namespace in namespaces {
            let mut looked = pay(&principal, "rate_per_principal", NonZeroU32::MIN, until).await;
            if let (Ok(()), Some(account)) = (&looked, self.0.namespaces.get(namespace)) {
                looked = pay(account, "rate_per_namespace", NonZeroU32::MIN, until).await;
            }
            match looked {
                Ok(()) => paid += 1,
                Err(Excess::ForNow(refusal)) => return (paid, Some(refusal)),
                Err(Excess::ForEver(error)) => return (paid, Some(Refusal::from(&error))),
            }
        }
        (paid, None)
    }

    /// Waits until a worker's look is the only one of its principal and may be made.
    ///
    /// Cancel safe: dropped, the look was not made and costs nothing.
    pub(in crate::service) async fn look(&self, caller: &Caller) -> Look {
        self.principal(caller).looks.begin().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_look_is_made_at_a_time_and_what_finds_all_keeps_nobody_waiting() {
        let looks = Looks::default();
        let look = looks.begin().await;
        let mut next = Box::pin(looks.begin());
        assert!((&mut next).now_or_never().is_none());
        let mut last = Box::pin(looks.begin());
        assert!((&mut last).now_or_never().is_none());
        look.found_all();
        assert!((&mut last).now_or_never().is_none(), "first come, first served");
        let next = next.now_or_never().expect("all was found");
        assert!((&mut last).now_or_never().is_none());
        next.found_all();
        last.now_or_never().expect("all was found");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_is_in_vain_or_given_up_keeps_the_next_away_and_one_that_waits_does_not() {
        let looks = Looks::default();
        let began = Instant::now();
        drop(looks.begin().await);
        for _ in 0..100 {
            assert!(looks.begin().now_or_never().is_none());
        }
        let next = looks.begin().await;
        // The timer's ticks are milliseconds.
        let waited = IN_VAIN..=IN_VAIN + Duration::from_millis(1);
        assert!(waited.contains(&began.elapsed()), "{:?}", began.elapsed());
        next.found_all();
        looks.begin().now_or_never().expect("all was found");
    }
}
