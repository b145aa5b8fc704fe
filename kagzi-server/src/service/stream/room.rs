//! Answers that wait to be taken by the transport.

use tokio::sync::mpsc;
use tonic::Status;

use super::super::load::{Charge, Payer};
use super::Talk;

/// An answer that waits, charged for until it is taken or nobody is there to take it; or how the stream ends.
pub(super) type Queued<T> = Result<(<T as Talk>::Answer, Option<Charge>), Status>;

/// Room for one answer.
pub(super) struct Room<T: Talk> {
    pub(super) permit: mpsc::OwnedPermit<Queued<T>>,
    pub(super) payer: Payer,
}

/// Answers that find their room when they are there.
pub(super) struct Later<T: Talk> {
    answers: mpsc::Sender<Queued<T>>,
    payer: Payer,
}

impl<T: Talk> Room<T> {
    pub(super) fn send(self, answer: T::Answer) {
        let queued = charged::<T>(&self.payer, answer);
        self.permit.send(Ok(queued));
    }

    /// Gives the room to others until there is an answer.
    pub(super) fn release(self) -> Later<T> {
        Later { answers: self.permit.release(), payer: self.payer }
    }
}

impl<T: Talk> Later<T> {
    pub(super) async fn send(self, answer: T::Answer) {
        let queued = charged::<T>(&self.payer, answer);
        // A caller that has gone needs no answer.
        self.answers.send(Ok(queued)).await.ok();
    }
}

/// An answer with its charge, or what is said in its place.
fn charged<T: Talk>(payer: &Payer, answer: T::Answer) -> (T::Answer, Option<Charge>) {
    match payer.answer(T::bytes(&answer).saturating_add(size_of::<Queued<T>>())) {
        Ok(charge) => (answer, Some(charge)),
        Err(refusal) => (T::instead(answer, refusal), None),
    }
}
