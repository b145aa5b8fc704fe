//! One stream to a server: requests go out as they come, answers find who asked.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::StoreError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Streaming};

use super::super::grpc::{Way, error_of};
use super::protocol::Protocol;
use crate::trace;
use crate::wire::error::{error_from_item, error_from_status};
use crate::wire::{FromWire, read_answer};

/// How many requests may wait for the network before those who have more wait, too.
const OUTGOING: usize = 1024;

/// A stream that a server has accepted. Dropping it ends the stream.
pub(super) struct Connection<P: Protocol> {
    outgoing: mpsc::Sender<P::Request>,
    waiting: Arc<Waiting<P>>,
    last_id: AtomicU64,
    _reader: AbortOnDropHandle<()>,
}

impl<P: Protocol> fmt::Debug for Connection<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(P::NAME).field("last_id", &self.last_id).finish_non_exhaustive()
    }
}

/// What a server says to whoever opens a stream.
#[derive(Debug)]
pub(super) enum Opened<P: Protocol> {
    Accepted(Connection<P>),
    /// It does not know the call.
    Unknown,
    /// It has no place for one more; the error says when to try again.
    Full(StoreError),
}

/// Who waits for which answer.
struct Waiting<P: Protocol>(Mutex<State<P>>);

struct State<P: Protocol> {
    answers: HashMap<u64, oneshot::Sender<P::Answer>>,
    /// Why there will be no more answers.
    broken: Option<String>,
}

impl<P: Protocol> Default for Waiting<P> {
    fn default() -> Self {
        Self(Mutex::new(State { answers: HashMap::new(), broken: None }))
    }
}

impl<P: Protocol> Waiting<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        // Entries are moved in and out whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: u64) -> Result<oneshot::Receiver<P::Answer>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.lock();
        if let Some(why) = &state.broken {
            return Err(unknown::<P>(why));
        }
        state.answers.insert(id, answer);
        Ok(answered)
    }

    /// Stops waiting; whether the answer had not come.
    fn forget(&self, id: u64) -> bool {
        self.lock().answers.remove(&id).is_some()
    }

    fn answer(&self, id: u64, answer: Option<P::Answer>) {
        let waiting = self.lock().answers.remove(&id);
        match (waiting, answer) {
            // Whoever asked may have stopped waiting.
            (Some(waiting), Some(answer)) => drop(waiting.send(answer)),
            // An answer of a kind that this version does not know: the asker's time runs out or the
            // operation is repeated, as after any lost answer.
            (_, None) => tracing::warn!(id, "the server sent an answer of an unknown kind"),
            (None, Some(_)) => {}
        }
    }

    /// From now on nobody waits: what had no answer is told so.
    fn break_up(&self, why: String) {
        let mut state = self.lock();
        state.answers.clear();
        state.broken.get_or_insert(why);
    }

    fn why_broken(&self) -> String {
        self.lock().broken.clone().unwrap_or_else(|| "it ended".to_owned())
    }
}

/// Stops waiting for an answer when it is dropped, wherever the asker stood.
struct Asking<'a, P: Protocol> {
    connection: &'a Connection<P>,
    id: u64,
}

impl<P: Protocol> Drop for Asking<'_, P> {
    fn drop(&mut self) {
        let unanswered = self.connection.waiting.forget(self.id);
        if let Some(give_up) = P::give_up().filter(|_| unanswered) {
            // Where there is no room the server learns by itself, when the wait is over.
            self.connection.outgoing.try_send(P::write(self.id, give_up, None)).ok();
        }
    }
}

fn unknown<P: Protocol>(why: &str) -> StoreError {
    StoreError::outcome_unknown(format!("{} broke: {why}", P::NAME))
}

impl<P: Protocol> Connection<P> {
    /// Opens a stream over `way`, with a first request where the protocol has one.
    pub(super) async fn open(
        way: Way,
        first: Option<P::Request>,
        max_message_bytes: usize,
    ) -> Result<Opened<P>, StoreError> {
        let (outgoing, mut queue) = mpsc::channel(OUTGOING);
        if let Some(first) = first {
            outgoing.try_send(first).map_err(|error| StoreError::Internal {
                context: "opening a stream",
                detail: error.to_string(),
            })?;
        }
        let requests = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let answers = match P::call(way, max_message_bytes, requests).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return Ok(Opened::Unknown),
            Err(status) if status.code() == Code::ResourceExhausted => {
                return Ok(Opened::Full(error_of(&status)));
            }
            Err(status) => return Err(error_of(&status)),
        };
        let waiting = Arc::new(Waiting::default());
        let reader = tokio::spawn(read(answers, Arc::clone(&waiting)));
        let last_id = AtomicU64::new(0);
        let reader = AbortOnDropHandle::new(reader);
        Ok(Opened::Accepted(Self { outgoing, waiting, last_id, _reader: reader }))
    }

    /// Whether there will be no more answers.
    pub(super) fn is_broken(&self) -> bool {
        self.waiting.lock().broken.is_some()
    }

    /// Asks, and waits for the answer for so long. An answer of another kind than `kind` accepts is the
    /// server's fault.
    pub(super) async fn ask<W, T: FromWire<W>>(
        &self,
        request: P::Ask,
        timeout: Duration,
        kind: impl FnOnce(P::Answer) -> Option<W>,
    ) -> Result<T, StoreError> {
        let message = self.answer(request, timeout, kind).await?;
        read_answer(message)
    }

    /// Like [`ask`](Self::ask), for an answer that the caller reads.
    pub(super) async fn answer<W>(
        &self,
        request: P::Ask,
        timeout: Duration,
        kind: impl FnOnce(P::Answer) -> Option<W>,
    ) -> Result<W, StoreError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let answered = self.waiting.expect(id)?;
        let _asking = Asking { connection: self, id };
        let asking = async {
            let trace_context = trace::outgoing().map(|context| context.as_ref().to_owned());
            if self.outgoing.send(P::write(id, request, trace_context)).await.is_err() {
                return Err(unknown::<P>(&self.waiting.why_broken()));
            }
            answered.await.map_err(|_| unknown::<P>(&self.waiting.why_broken()))
        };
        let response = tokio::time::timeout(timeout, asking)
            .await
            .unwrap_or_else(|_| Err(StoreError::outcome_unknown(format!("no answer within {timeout:?}"))))?;
        if let Some(item) = P::refusal(&response) {
            return Err(error_from_item(item));
        }
        kind(response).ok_or_else(|| StoreError::Internal {
            context: "reading the server's answer",
            detail: "an answer to another kind of request".to_owned(),
        })
    }
}

/// Hands answers to those who asked, until there are no more.
async fn read<P: Protocol>(mut answers: Streaming<P::Response>, waiting: Arc<Waiting<P>>) {
    let why = loop {
        match answers.message().await {
            Ok(Some(message)) => {
                let (id, answer) = P::read(message);
                waiting.answer(id, answer);
            }
            Ok(None) => break "the server ended it".to_owned(),
            Err(status) => break error_from_status(&status).to_string(),
        }
    };
    waiting.break_up(why);
}
