//! Between the protocol and the domain: conversions in both directions, for clients and for the server.
//!
//! Reading a message checks it: a field that is missing, malformed or out of range is an
//! [`StoreError::InvalidArgument`] that names it as the `.proto` files do (`starts[3].queue`,
//! `lease.run_id`). Ranges that are the operator's to choose (payload sizes, batch sizes) are left to
//! the server and the store.
//!
//! [`error`] carries a [`StoreError`] through a `tonic::Status` and back without loss.

pub mod error;

mod client;
mod field;
mod keeper;
mod lease;
mod listing;
mod page;
mod queue;
mod retry;
mod run;
mod start;
mod step;
mod step_call;
mod stream;
#[cfg(test)]
mod tests;
mod time;
mod value;
mod worker;

use kagzi_core::StoreError;

pub use client::GetRun;
pub use field::within;
pub use listing::CountRuns;
pub use page::DEFAULT_PAGE_LIMIT;
pub use queue::QueueCall;
pub use stream::{open_from_wire, open_to_wire, take_from_wire, take_to_wire};
pub use time::{duration_to_wire, moment_to_wire};
pub use worker::{
    DEFAULT_STEPS_LIMIT, Poll, heartbeats_from_wire, heartbeats_to_wire, poll_from_wire, verdicts_from_wire,
    verdicts_to_wire,
};

/// A domain value that a protocol message `M` can carry.
pub trait IntoWire<M> {
    /// The message. Never fails: the protocol can say whatever the domain can.
    fn into_wire(self) -> M;
}

/// A domain value that can be read from a protocol message `M`.
pub trait FromWire<M>: Sized {
    /// Checks the message and reads it.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the first field at fault.
    fn from_wire(message: M) -> Result<Self, StoreError>;
}

/// Reads the answer of a server. A field at fault is then the server's, so it is not reported as a bad
/// argument of the caller.
///
/// # Errors
///
/// [`StoreError::Internal`] naming the first field at fault.
pub fn read_answer<T: FromWire<M>, M>(message: M) -> Result<T, StoreError> {
    T::from_wire(message).map_err(bad_answer)
}

/// The error about an answer that cannot be read.
fn bad_answer(error: StoreError) -> StoreError {
    match error {
        StoreError::InvalidArgument { .. } | StoreError::TooLarge { .. } | StoreError::BadCursor { .. } => {
            StoreError::Internal { context: "reading the server's answer", detail: error.to_string() }
        }
        other => other,
    }
}
