//! Streams to a server: many requests in flight over one call, each answered when it is done.
//!
//! A worker has one for its claims, heartbeats and writes ([`worker`]), a client one for its starts and
//! what it waits for ([`client`]). A stream is opened with the first request that needs it, and again after it broke,
//! not more often than a backoff allows. A request whose answer the break took is told
//! [`StoreError::OutcomeUnknown`](kagzi_core::StoreError::OutcomeUnknown); whoever asked sends it again under its
//! operation id, so that it gets the first answer. With a server that knows no streams all goes by calls, and with one that has no
//! place for another stream (`max_streams`) until it has. So does a
//! request with large payloads: it would hold up all that comes behind it, and one that is too long for
//! the server is then refused alone, and not together with the stream.

mod client;
mod connection;
mod line;
mod protocol;
mod worker;

pub(super) use client::ClientStream;
pub(super) use worker::Streamed;

/// Payloads of more than this go by a call. Every server reads messages of this length.
const LARGE_BYTES: usize = 512 * 1024;

/// The answer to one kind of request.
macro_rules! of_kind {
    ($kind:ident) => {
        |response| match response {
            Response::$kind(message) => Some(message),
            _ => None,
        }
    };
}
use of_kind;
