//! One stream to a server: requests go out as they come, answers find who asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::StoreError;
use kagzi_proto::v1;
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use super::super::grpc::Way;
use crate::wire::error::{error_from_item, error_from_status};
use crate::wire::{FromWire, read_answer};

/// How many requests may wait for the network before those who have more wait, too.
const OUTGOING: usize = 1024;

/// A stream that a server has accepted. Dropping it ends the stream.
#[derive(Debug)]
pub(super) struct Connection {
    outgoing: mpsc::Sender<v1::StreamWorkRequest>,
    waiting: Arc<Waiting>,
    last_id: AtomicU64,
    _reader: AbortOnDropHandle<()>,
}

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    answers: HashMap<u64, oneshot::Sender<Response>>,
    /// Why there will be no more answers.
    broken: Option<String>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Entries are moved in and out whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: u64) -> Result<oneshot::Receiver<Response>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.lock();
        if let Some(why) = &state.broken {
            return Err(unknown(why));
        }
        state.answers.insert(id, answer);
        Ok(answered)
    }

    fn forget(&self, id: u64) {
        self.lock().answers.remove(&id);
    }

    fn answer(&self, message: v1::StreamWorkResponse) {
        let waiting = self.lock().answers.remove(&message.id);
        match (waiting, message.response) {
            // Whoever asked may have stopped waiting.
            (Some(waiting), Some(response)) => drop(waiting.send(response)),
            // An answer of a kind that this version does not know: the asker's time runs out or the
            // operation is repeated, as after any lost answer.
            (_, None) => tracing::warn!(id = message.id, "the server sent an answer of an unknown kind"),
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
struct Asking<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.waiting.forget(self.id);
    }
}

fn unknown(why: &str) -> StoreError {
    StoreError::OutcomeUnknown { reason: format!("the worker's stream broke: {why}") }
}

impl Connection {
    /// Opens a stream over `way` for the worker that `open` tells of.
    pub(super) async fn open(way: Way, open: v1::OpenWork, max_message_bytes: usize) -> Result<Self, Status> {
        let (outgoing, mut queue) = mpsc::channel(OUTGOING);
        let first = v1::StreamWorkRequest { id: 0, request: Some(Request::Open(open)) };
        // The queue is empty, so there is room.
        outgoing.try_send(first).map_err(|error| Status::internal(error.to_string()))?;
        let requests = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let mut client = WorkerServiceClient::new(way).max_decoding_message_size(max_message_bytes);
        let answers = client.stream_work(requests).await?.into_inner();
        let waiting = Arc::new(Waiting::default());
        let reader = tokio::spawn(read(answers, Arc::clone(&waiting)));
        let last_id = AtomicU64::new(0);
        Ok(Self { outgoing, waiting, last_id, _reader: AbortOnDropHandle::new(reader) })
    }

    /// Whether there will be no more answers.
    pub(super) fn is_broken(&self) -> bool {
        self.waiting.lock().broken.is_some()
    }

    /// Asks, and waits for the answer for so long. An answer of another kind than `kind` accepts is the
    /// server's fault.
    pub(super) async fn ask<W, T: FromWire<W>>(
        &self,
        request: Request,
        timeout: Duration,
        kind: impl FnOnce(Response) -> Option<W>,
    ) -> Result<T, StoreError> {
        let message = self.answer(request, timeout, kind).await?;
        read_answer(message)
    }

    /// Like [`ask`](Self::ask), for an answer that the caller reads.
    pub(super) async fn answer<W>(
        &self,
        request: Request,
        timeout: Duration,
        kind: impl FnOnce(Response) -> Option<W>,
    ) -> Result<W, StoreError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let answered = self.waiting.expect(id)?;
        let _asking = Asking { waiting: &self.waiting, id };
        let asking = async {
            let message = v1::StreamWorkRequest { id, request: Some(request) };
            if self.outgoing.send(message).await.is_err() {
                return Err(unknown(&self.waiting.why_broken()));
            }
            answered.await.map_err(|_| unknown(&self.waiting.why_broken()))
        };
        let response = tokio::time::timeout(timeout, asking).await.unwrap_or_else(|_| {
            Err(StoreError::OutcomeUnknown { reason: format!("no answer within {timeout:?}") })
        })?;
        if let Response::Refused(item) = &response {
            return Err(error_from_item(item));
        }
        kind(response).ok_or_else(|| StoreError::Internal {
            context: "reading the server's answer",
            detail: "an answer to another kind of request".to_owned(),
        })
    }
}

/// Hands answers to those who asked, until there are no more.
async fn read(mut answers: Streaming<v1::StreamWorkResponse>, waiting: Arc<Waiting>) {
    let why = loop {
        match answers.message().await {
            Ok(Some(message)) => waiting.answer(message),
            Ok(None) => break "the server ended it".to_owned(),
            Err(status) => break error_from_status(&status).to_string(),
        }
    };
    waiting.break_up(why);
}
