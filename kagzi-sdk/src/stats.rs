//! What a worker counts, and how it reports failed calls.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kagzi_core::{RunId, StepId, StoreError};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of a worker since its start, as of one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct WorkerStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> WorkerStats {
                WorkerStats { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Runs taken from queues.
    runs_claimed,
    /// Runs being executed now.
    runs_active,
    /// Runs that completed here.
    runs_completed,
    /// Executions that ended with a failure that will be retried.
    runs_to_retry,
    /// Runs that became dead letters here.
    runs_dead_lettered,
    /// Executions that ended in a sleep.
    runs_slept,
    /// Runs given back unfinished, when draining or after an error.
    runs_released,
    /// Executions stopped because the lease was lost: the run was cancelled, timed out, or taken over.
    leases_lost,
    /// Step functions that were called.
    steps_executed,
    /// Steps whose recorded result was used.
    steps_replayed,
    /// Heartbeats sent: batches, not leases.
    heartbeats,
    /// Calls to the engine that failed, each repeat included.
    calls_failed,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn one_less(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a failed call is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The same operation is sent again, under the same id.
    Yes,
    /// Sending it again cannot help.
    No,
}

/// A call to the engine that failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct FailedCall<'a> {
    /// What was asked: the name of the [`Transport`](crate::transport::Transport) method.
    pub operation: &'static str,
    /// The run it was about, if it was about one.
    pub run_id: Option<RunId>,
    /// The step it was about, if it was about one.
    pub step_id: Option<&'a StepId>,
    /// How many times it has failed now.
    pub failures: u32,
    /// What came back.
    pub error: &'a StoreError,
    /// Whether it is repeated.
    pub repeat: Repeat,
}

/// Hears of every failed call.
pub(crate) type Observer = Arc<dyn Fn(&FailedCall<'_>) + Send + Sync>;

/// Where a worker reports to: its counters, tracing, and whoever the application put there.
#[derive(Clone, Default)]
pub(crate) struct Reporter {
    pub(crate) counters: Arc<Counters>,
    pub(crate) observer: Option<Observer>,
}

impl Reporter {
    pub(crate) fn call_failed(&self, call: &FailedCall<'_>) {
        self.counters.calls_failed.add(1);
        tracing::warn!(
            operation = call.operation,
            run_id = call.run_id.map(tracing::field::display),
            step = call.step_id.map(tracing::field::display),
            failures = call.failures,
            reason = call.error.reason(),
            error = %call.error,
            repeated = call.repeat == Repeat::Yes,
            "a call to the engine failed"
        );
        if let Some(observer) = &self.observer {
            observer(call);
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("counters", &self.counters).finish_non_exhaustive()
    }
}
