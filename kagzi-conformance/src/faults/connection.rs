//! A connection to a store that fails before the call, delays it, or loses its reply.

use std::sync::{Mutex, PoisonError};

use fastrand::Rng;
use kagzi_core::SharedStore;

use crate::record::{Answer, Call, Refusal};
use crate::violation::Violation;

/// What happens to one try of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It never reaches the store.
    Unsent,
    /// It comes late: others may come first.
    Late,
    /// It is carried out, and the caller never hears of it.
    ReplyLost,
    /// The caller leaves while the store is at it: it is carried out or not.
    LeftAlone,
}

impl Fault {
    /// Those that dice choose. A call that was left alone is none of them: the store may hold its run for a
    /// while after the caller was answered by another try, and a claim, a reap and a removal rightly pass by
    /// what is held. Each write is left alone by a case of its own, where no such call follows.
    const DRAWN: [Self; 3] = [Self::Unsent, Self::Late, Self::ReplyLost];
}

/// How often a call is sent until the caller gives up: more often than any dice fail in a row.
const TRIES: usize = 60;

/// A way to a store. Callers insist: they send a call again, to the letter, until they are answered.
#[derive(Debug)]
pub(crate) struct Connection {
    store: SharedStore,
    /// Decides about faults; nothing: there are none.
    dice: Option<Mutex<Rng>>,
}

impl Connection {
    /// One without faults.
    pub(crate) fn reliable(store: SharedStore) -> Self {
        Self { store, dice: None }
    }

    /// One on which every second try meets a fault, by dice.
    pub(crate) fn faulty(store: SharedStore, seed: u64) -> Self {
        Self { store, dice: Some(Mutex::new(Rng::with_seed(seed))) }
    }

    /// Lets the faults to come hang on `seed` alone, so that they stay when earlier calls are left out.
    pub(crate) fn reseed(&self, seed: u64) {
        if let Some(dice) = &self.dice {
            *dice.lock().unwrap_or_else(PoisonError::into_inner) = Rng::with_seed(!seed);
        }
    }

    /// Sends a call until an answer comes through.
    pub(crate) async fn insist(&self, call: &Call) -> Result<Answer, Violation> {
        for _ in 0..TRIES {
            if let Some(answer) = self.attempt(call, self.next_fault(call)).await {
                return Ok(answer);
            }
        }
        Err(Violation::new(
            "a call that is sent again and again is answered in the end",
            format!("an answer within {TRIES} tries"),
            "none",
        ))
    }

    fn next_fault(&self, call: &Call) -> Fault {
        // These carry no operation id: sent again they do what is left to do, and say so. One heartbeat
        // gives the same answer again, but of two for one lease the first is then told of the second.
        let answers_differ = match call {
            Call::Reap(_) | Call::DeleteFinished(_) => true,
            Call::Heartbeat(batch) => batch.len() > 1,
            _ => false,
        };
        if answers_differ {
            return Fault::None;
        }
        let Some(dice) = &self.dice else { return Fault::None };
        let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
        Fault::DRAWN.get(dice.usize(..Fault::DRAWN.len() * 2)).copied().unwrap_or(Fault::None)
    }

    /// One try under `fault`, and the answer if the caller heard one that is final.
    pub(crate) async fn attempt(&self, call: &Call, fault: Fault) -> Option<Answer> {
        // A call that was left alone may be carried out while it is sent again. One with an operation
        // id on its run bears that; a second claim passes by what the first one is taking, and a late
        // heartbeat extends a lease by the clock of its own time.
        let fault = match (fault, call) {
            (Fault::LeftAlone, Call::Claim(_) | Call::Heartbeat(_) | Call::Reap(_)) => Fault::ReplyLost,
            (fault, _) => fault,
        };
        match fault {
            Fault::None => heard(call.send(&*self.store).await),
            Fault::Unsent => None,
            Fault::Late => {
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
                heard(call.send(&*self.store).await)
            }
            Fault::ReplyLost => {
                drop(call.send(&*self.store).await);
                None
            }
            Fault::LeftAlone => {
                let patience = async {
                    for _ in 0..3 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    biased;
                    // A store that is quicker than that has answered; the answer is lost all the same.
                    answer = call.send(&*self.store) => drop(answer),
                    () = patience => {}
                }
                None
            }
        }
    }
}

/// An answer that ends the matter.
fn heard(answer: Answer) -> Option<Answer> {
    let again = |refusal: &Refusal| refusal.leaves_open() || refusal.reason == "UNAVAILABLE";
    if answer.as_ref().is_err_and(again) { None } else { Some(answer) }
}
