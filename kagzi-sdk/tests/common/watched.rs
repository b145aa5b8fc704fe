//! A store that counts the calls to another one and fails some of them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::*;
use kagzi_sdk::MemoryStore;
use tokio::time::Instant;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call does not arrive.
    Unreachable,
    /// The call is done, and its answer is lost.
    AnswerLost,
}

#[derive(Debug)]
pub struct Watched {
    inner: MemoryStore,
    calls: Mutex<HashMap<&'static str, usize>>,
    faults: Mutex<HashMap<&'static str, (Fault, usize)>>,
    away_until: Mutex<Option<Instant>>,
}

impl Watched {
    /// The verdict on each lease of a heartbeat, as something that fails.
    pub const EACH_BEAT: &str = "each of a heartbeat";

    pub fn new(inner: MemoryStore) -> Self {
        Self { inner, calls: Mutex::default(), faults: Mutex::default(), away_until: Mutex::default() }
    }

    /// How often an operation was asked for.
    pub fn calls(&self, operation: &str) -> usize {
        self.calls.lock().unwrap().get(operation).copied().unwrap_or(0)
    }

    /// The operations that workers write, and how often they were asked for, by name.
    pub fn writes(&self) -> Vec<(&'static str, usize)> {
        let of_workers =
            ["begin_step", "complete_run", "complete_step", "fail_run", "fail_step", "release", "sleep"];
        of_workers.into_iter().map(|name| (name, self.calls(name))).filter(|(_, count)| *count > 0).collect()
    }

    /// The next `times` calls of an operation fail.
    pub fn fail(&self, operation: &'static str, fault: Fault, times: usize) {
        self.faults.lock().unwrap().insert(operation, (fault, times));
    }

    /// No call arrives for so long.
    pub fn be_away(&self, outage: Duration) {
        *self.away_until.lock().unwrap() = Some(Instant::now() + outage);
    }

    fn fault(&self, operation: &'static str) -> Option<Fault> {
        *self.calls.lock().unwrap().entry(operation).or_default() += 1;
        if self.away_until.lock().unwrap().is_some_and(|until| Instant::now() < until) {
            return Some(Fault::Unreachable);
        }
        let mut faults = self.faults.lock().unwrap();
        let (fault, left) = faults.get_mut(operation)?;
        *left = left.checked_sub(1)?;
        Some(*fault)
    }
}

fn unreachable<T>() -> Result<T, StoreError> {
    let retry_after = Duration::from_millis(10);
    Err(StoreError::unavailable("the test says so", retry_after))
}

fn lost<T>() -> Result<T, StoreError> {
    Err(StoreError::outcome_unknown("the test says so"))
}

macro_rules! watched {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Watched {
            fn backend(&self) -> &'static str {
                self.inner.backend()
            }

            fn wake_hub(&self) -> &WakeHub {
                self.inner.wake_hub()
            }

            /// [`Watched::EACH_BEAT`] fails by itself: the call is answered, and no lease of it is extended.
            async fn heartbeat(
                &self,
                batch: Vec<Heartbeat>,
            ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
                match self.fault("heartbeat") {
                    Some(Fault::Unreachable) => unreachable(),
                    Some(Fault::AnswerLost) => {
                        self.inner.heartbeat(batch).await?;
                        lost()
                    }
                    None if self.fault(Self::EACH_BEAT).is_some() => Ok(batch.iter().map(|_| unreachable()).collect()),
                    None => self.inner.heartbeat(batch).await,
                }
            }

            $(async fn $name(&self, $($argument: $kind),*) -> Result<$answer, StoreError> {
                match self.fault(stringify!($name)) {
                    Some(Fault::Unreachable) => unreachable(),
                    Some(Fault::AnswerLost) => {
                        self.inner.$name($($argument),*).await?;
                        lost()
                    }
                    None => self.inner.$name($($argument),*).await,
                }
            })*
        }
    };
}

watched! {
    now() -> Timestamp;
    start(batch: Vec<StartRun>) -> Vec<Started>;
    get_run(namespace: &Namespace, run_id: RunId) -> RunRecord;
    list_runs(request: &ListRuns) -> Page<Run>;
    count_runs(namespace: &Namespace, filter: &RunFilter) -> u64;
    list_attempts(request: &ListAttempts) -> Page<Attempt>;
    cancel(request: CancelRun) -> CancelOutcome;
    requeue(request: RequeueRun) -> RequeueOutcome;
    claim(request: Claim) -> Vec<ClaimedRun>;
    begin_step(request: BeginStep) -> BeginOutcome;
    complete_step(request: CompleteStep) -> CompleteStepOutcome;
    fail_step(request: FailStep) -> FailureOutcome;
    sleep(request: Sleep) -> SleepOutcome;
    complete_run(request: CompleteRun) -> CompleteRunOutcome;
    fail_run(request: FailRun) -> FailureOutcome;
    release(request: ReleaseRun) -> ReleaseOutcome;
    reap(limit: u32) -> Reaped;
    next_due() -> NextDue;
    queue_depths(namespace: &Namespace) -> Vec<QueueDepth>;
    set_queue_state(request: SetQueueState) -> QueueOutcome;
    delete_finished(request: &DeleteFinished) -> u64;
    close() -> ();
}
