//! Leases: a worker's right to a run, and the fencing token that proves it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::RunId;
use crate::name::{Namespace, WorkerId};

/// An integer on the run that grows at every claim and never repeats as long as the run is recorded (invariant 1); see
/// [`delete_finished`](crate::Store::delete_finished) for what comes after. Zero: never claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(i64);

impl FencingToken {
    /// The token of a run that was never claimed.
    pub const NONE: Self = Self(0);

    /// A token that came from outside.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for a negative number.
    pub fn new(token: i64) -> Result<Self, StoreError> {
        if token >= 0 {
            Ok(Self(token))
        } else {
            Err(StoreError::InvalidArgument {
                field: "fencing_token".to_owned(),
                expected: "a number from 0".to_owned(),
                got: token.to_string(),
            })
        }
    }

    /// The token as a number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The token of the next claim.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a worker shows with every write: whose run, by whom, under which token.
///
/// A write is accepted only while the run is RUNNING under exactly this worker and token
/// (invariant 2), whatever any clock says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The run's namespace.
    pub namespace: Namespace,
    /// The run.
    pub run_id: RunId,
    /// The worker that claimed it.
    pub worker_id: WorkerId,
    /// The token of that claim.
    pub fencing_token: FencingToken,
}

/// A lease as a claim or a heartbeat grants it, with the moment from which others may take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedLease {
    /// What to show with every write.
    pub lease: Lease,
    /// From this moment on the lease can be taken by another claim. Until somebody does, its holder
    /// may still write, and a heartbeat revives it.
    pub expires_at: Timestamp,
}
