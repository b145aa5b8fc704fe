//! A request on its way in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use kagzi_sdk::wire::error::{Refusal, request_timeout};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::super::load::Charge;
use super::Kind;
use super::framing::Framing;
use crate::metrics::Metrics;

/// What is held of a request, or of the messages of a session, until the last of its copies is dropped.
#[derive(Clone, Debug)]
pub(in crate::service) struct RequestBytes(Arc<Held>);

#[derive(Debug)]
struct Held {
    charge: Charge,
    /// The sizes of the messages of a session that have come whole and were not taken.
    whole: Mutex<VecDeque<usize>>,
}

/// A message that a session took, charged for until it is dropped.
#[derive(Debug)]
pub(in crate::service) struct Message {
    of: RequestBytes,
    bytes: usize,
}

impl RequestBytes {
    pub(super) fn of(charge: Charge) -> Self {
        Self(Arc::new(Held { charge, whole: Mutex::default() }))
    }

    /// The next message of a session, which has just been read: each is taken once, in their order.
    pub(in crate::service) fn take(&self) -> Message {
        let bytes = self.0.whole.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        Message { of: self.clone(), bytes: bytes.unwrap_or_default() }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.of.0.charge.less(self.bytes);
    }
}

/// The body of a request, which is charged for as it comes and must come in time.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    kind: Kind,
    /// Nothing for strangers.
    held: Option<RequestBytes>,
    framing: Framing,
    within: Duration,
    /// Once it was waited for.
    late: Option<Pin<Box<Sleep>>>,
    ended: bool,
    metrics: Metrics,
}

impl Incoming {
    pub(super) fn new(
        body: Body,
        kind: Kind,
        held: Option<RequestBytes>,
        within: Duration,
        metrics: Metrics,
    ) -> Self {
        Self { body, kind, held, framing: Framing::default(), within, late: None, ended: false, metrics }
    }

    fn charge(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let Some(RequestBytes(held)) = &self.held else { return Ok(()) };
        held.charge.more(data.len())?;
        let mut ended = false;
        match self.kind {
            Kind::Call => return Ok(()),
            Kind::Session => {
                let mut whole = held.whole.lock().unwrap_or_else(PoisonError::into_inner);
                self.framing.pass(data, |size| {
                    whole.push_back(size);
                    ended = true;
                });
            }
            Kind::Questions => self.framing.pass(data, |size| {
                held.charge.less(size);
                ended = true;
            }),
        }
        // A stream may be silent between messages for as long as it likes, and each message has its time, however many
        // pieces it comes in.
        if ended {
            self.late = None;
        }
        Ok(())
    }

    /// Ready once what should have come has not.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        if self.kind != Kind::Call && !self.framing.is_within_a_message() {
            return Poll::Pending;
        }
        let within = self.within;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(within)));
        late.as_mut().poll(cx).map(|()| {
            let refusal = request_timeout(within);
            self.metrics.refused(&refusal);
            refusal
        })
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let refusal = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref().map_or(Ok(()), |data| this.charge(data)) {
                Ok(()) => return Poll::Ready(Some(Ok(frame))),
                Err(refusal) => refusal,
            },
            Poll::Ready(other) => {
                this.ended = true;
                return Poll::Ready(other);
            }
            Poll::Pending => match this.poll_late(cx) {
                Poll::Ready(refusal) => refusal,
                Poll::Pending => return Poll::Pending,
            },
        };
        this.ended = true;
        // What lies there unread goes at once.
        this.body = Body::empty();
        Poll::Ready(Some(Err(refusal.into_status())))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
