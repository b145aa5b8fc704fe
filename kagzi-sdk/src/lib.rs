//! What an application adds to be durable: [`Client`], [`Worker`] and [`Context`], over gRPC or in
//! process.
//!
//! A **workflow** is an async function made of named **steps**. What a step gives is recorded in a
//! store, so that a crash, a deploy or a lost worker costs at most the step in flight: another worker
//! executes the function again, with the recorded results put in, and goes on where the first one was.
//!
//! # A first workflow
//!
//! ```
//! use std::sync::Arc;
//! use kagzi_sdk::{Client, Context, MemoryStore, Start, Worker, WorkflowError};
//!
//! async fn greet(ctx: Context, name: String) -> Result<String, WorkflowError> {
//!     let greeting = ctx.step("compose", || async { Ok(format!("Hello, {name}!")) }).await?;
//!     ctx.sleep(std::time::Duration::from_millis(10)).await?; // no worker is kept busy meanwhile
//!     ctx.step("deliver", || async { Ok(format!("{greeting} Delivered.")) }).await
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let client = Client::embedded(Arc::new(MemoryStore::default()));
//!     let worker = Worker::builder(client.clone()).queue("default").register("greet", greet).build()?;
//!     tokio::spawn(worker.run());
//!
//!     let run = client.start(Start::workflow("greet").input("world")?).await?;
//!     let greeting: String = run.result().await?;
//!     assert_eq!(greeting, "Hello, world! Delivered.");
//!     Ok(())
//! }
//! ```
//!
//! The same function runs against a server: write `Client::connect("http://127.0.0.1:7474").await?`
//! in place of `Client::embedded`. For data that must last, embed a store on disk, such as
//! `kagzi_store_sqlite::SqliteStore`.
//!
//! # What is promised
//!
//! - A step that is recorded as completed is never executed again, and always gives the same bytes.
//! - A step is executed by one worker at a time. After a crash it may be executed again from its
//!   start, so a step with effects elsewhere must bear that: hand [`Context::run_id`] and the step's
//!   name to the other side as an idempotency key.
//! - A worker that lost its lease can write nothing any more, however late it wakes up.
//! - A step that fails is tried again by its retry policy. One that failed for good ends the run as a
//!   **dead letter**: no code after it is executed, and the run waits, with its reason, for
//!   [`Client::requeue`]. To undo earlier steps instead (compensation), let the step return its failure
//!   as data; [`Context::step`] shows how.
//!
//! The rules that workflow code must keep stand at [`Context`]. [`Encryption`] keeps payloads from server and
//! store.

mod backoff;
mod calls;
mod client;
mod codec;
mod context;
mod encryption;
mod error;
mod handle;
#[cfg(feature = "opentelemetry")]
pub mod otel;
mod payload_codec;
mod run;
mod start;
mod start_encoded;
mod stats;
mod step;
mod trace;
pub mod transport;
pub mod wire;
mod worker;

pub use backoff::Backoff;
pub use client::{Client, DEFAULT_NAMESPACE};
pub use codec::CodecError;
pub use context::Context;
pub use encryption::Encryption;
pub use error::{ClientError, StepError, WorkerError, WorkflowError, WorkflowFailed};
pub use handle::RunHandle;
pub use payload_codec::{PayloadCodec, PayloadError, PayloadPlace};
pub use start::Start;
pub use stats::{FailedCall, Repeat, WorkerStats};
pub use step::{Step, StepFuture};
pub use worker::{StatsHandle, Worker, WorkerBuilder};

// What applications meet in the signatures above, so that they need no other crate for it.
pub use kagzi_core::engine::EngineOptions;
pub use kagzi_core::memory::MemoryStore;
pub use kagzi_core::{
    Attempt, AttemptState, CancelOutcome, ContentType, Cursor, DeadLetterReason, Failure, FailureKind,
    IdempotencyKey, Labels, Namespace, Page, Pause, Payload, QueueDepth, QueueName, QueueOutcome,
    RequeueOutcome, RetryPolicy, Run, RunFilter, RunId, RunRecord, RunState, SharedStore, StartOutcome,
    StepId, StepKind, StoreError, Timestamp, WorkflowType,
};
