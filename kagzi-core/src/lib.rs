//! The durable-workflow contract of kagzi: domain types, the [`Store`] trait, the rules that every
//! backend asks ([`decide`]), the reference store ([`memory`]) and the [`engine`] over any store.
//!
//! A **run** is one execution of a workflow type, made of named **steps**; each step's result is
//! recorded in a [`Store`], so that a crash costs at most the step in flight. A worker holds a run
//! under a **lease** whose **fencing token** decides about every write, so that a worker that comes
//! back from the dead can do no harm. The invariants are listed at [`Store`].

pub mod decide;
pub mod engine;
pub mod memory;

mod clock;
mod error;
mod examine;
mod failure;
mod id;
mod lease;
mod limits;
mod name;
mod op;
mod page;
mod payload;
mod queue;
mod retry;
mod run;
mod stats;
mod step;
mod store;
mod trace_context;
mod traced;
mod wake;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use error::{ErrorScope, LostReason, StoreError};
pub use examine::{Finding, MIGRATE_FIRST, Migration, SchemaPolicy, Verdict};
pub use failure::{Failure, FailureKind};
pub use id::{OperationId, RunId};
pub use lease::{FencingToken, GrantedLease, Lease};
pub use limits::{Labels, MAX_BATCH, MAX_DURATION, Rules};
pub use name::{ContentType, IdempotencyKey, Namespace, QueueName, StepId, WorkerId, WorkflowType};
pub use op::*;
pub use page::{Cursor, Page, PageRequest};
pub use payload::Payload;
pub use queue::{QueueOperations, QueueRow, REMEMBERED_QUEUE_OPERATIONS};
pub use retry::{RetryDecision, RetryPolicy};
pub use run::{DeadLetterReason, PRIORITY_LEVEL, Priority, Run, RunRecord, RunState, claim_rank};
pub use stats::{BatchStats, ConnectionStats, StoreCounters, StoreStats, SweptStats};
pub use step::{Attempt, AttemptState, StepKind};
pub use store::{SharedStore, Store};
pub use trace_context::{SPANS, TraceContext};
pub use traced::Traced;
pub use wake::{Subscription, Topic, WakeHub};
