//! An answer on its way out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use kagzi_sdk::wire::error::Refusal;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;

use super::super::load::{Charge, Payer};
use super::Kind;

/// The body of an answer, each piece of which holds its charge until the transport drops it.
#[derive(Debug)]
pub(super) struct Answer {
    /// Nothing, once it was refused.
    body: Option<Body>,
    kind: Kind,
    payer: Payer,
    /// What is charged for the call as such: it is there until nothing of it is.
    call: Arc<Charge>,
}

/// A piece of an answer with what was charged for it.
struct Held {
    data: Bytes,
    _charge: Charge,
    _call: Arc<Charge>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Answer {
    pub(super) const fn new(body: Body, kind: Kind, payer: Payer, call: Arc<Charge>) -> Self {
        Self { body: Some(body), kind, payer, call }
    }

    fn charge(&mut self, data: Bytes) -> Result<Frame<Bytes>, Status> {
        if data.is_empty() {
            return Ok(Frame::data(data));
        }
        let charge = match self.kind {
            Kind::Call => self.payer.answer(data.len()),
            // Of a stream there is one piece here at a time; those that wait behind it had to be charged for before.
            Kind::Session | Kind::Questions => Ok(self.payer.anyway(data.len())),
        };
        match charge {
            Ok(charge) => {
                let held = Held { data, _charge: charge, _call: Arc::clone(&self.call) };
                Ok(Frame::data(Bytes::from_owner(held)))
            }
            Err(refusal) => {
                self.body = None;
                instead(refusal)
            }
        }
    }
}

/// What comes in the place of an answer for which there is no room.
fn instead(refusal: Refusal) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    refusal.into_status().add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => Some(match frame.into_data() {
                Ok(data) => this.charge(data),
                Err(frame) => Ok(frame),
            }),
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}
