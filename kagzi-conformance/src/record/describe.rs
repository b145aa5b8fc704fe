//! Requests and answers in a few words, without the bytes of any payload.

use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    GrantedLease, Heartbeat, Lease, ListAttempts, ListRuns, Namespace, NextDue, OperationId, Page,
    QueueDepth, QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunId,
    RunRecord, SetQueueState, Sleep, SleepOutcome, StartRun, Started, StoreError, Then,
};

/// How many items of a list are described one by one.
const SHOWN: usize = 4;

/// A few words about a request or an answer.
pub(crate) trait Describe {
    fn describe(&self) -> String;
}

fn several<T>(items: &[T], describe: impl Fn(&T) -> String) -> String {
    let mut parts: Vec<String> = items.iter().take(SHOWN).map(describe).collect();
    if items.len() > SHOWN {
        parts.push(format!("... {} in all", items.len()));
    }
    format!("[{}]", parts.join(", "))
}

/// The last digits of an operation id: enough to see which calls are repeats.
fn operation(id: OperationId) -> String {
    let text = id.to_string();
    format!("op ..{}", &text[text.len().saturating_sub(5)..])
}

fn joined<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("+")
}

impl Describe for Lease {
    fn describe(&self) -> String {
        let Self { namespace, run_id, worker_id, fencing_token } = self;
        format!("{namespace}/{run_id} by {worker_id} token {fencing_token}")
    }
}

impl Describe for Vec<StartRun> {
    fn describe(&self) -> String {
        several(self, |start| {
            let key = start.idempotency_key.as_ref().map_or(String::new(), |key| format!(" key {key}"));
            format!(
                "{} in {}/{} of {}, input {} bytes, {:?}{key}, {}",
                start.run_id(),
                start.namespace,
                start.queue,
                start.workflow_type,
                start.input.len_bytes(),
                start.start_at,
                operation(start.operation)
            )
        })
    }
}

impl Describe for Vec<Started> {
    fn describe(&self) -> String {
        several(self, |started| format!("{:?} {}", started.outcome, started.run_id))
    }
}

impl Describe for Claim {
    fn describe(&self) -> String {
        let types = if self.workflow_types.is_empty() {
            String::new()
        } else {
            format!(" only {}", joined(&self.workflow_types))
        };
        format!(
            "{}/{}{types} by {} for {:?}, limit {}, {}",
            self.namespace,
            joined(&self.queues),
            self.worker_id,
            self.lease_length,
            self.limit,
            operation(self.operation)
        )
    }
}

impl Describe for Vec<ClaimedRun> {
    fn describe(&self) -> String {
        several(self, |claimed| {
            let lease = &claimed.lease;
            format!(
                "{} token {} with {} steps",
                lease.lease.run_id,
                lease.lease.fencing_token,
                claimed.steps.len()
            )
        })
    }
}

impl Describe for Vec<Heartbeat> {
    fn describe(&self) -> String {
        several(self, |beat| format!("{} for {:?}", beat.lease.describe(), beat.lease_length))
    }
}

impl Describe for Vec<Result<GrantedLease, StoreError>> {
    fn describe(&self) -> String {
        several(self, |verdict| match verdict {
            Ok(granted) => format!("until {}", granted.expires_at),
            Err(error) => error.describe(),
        })
    }
}

impl Describe for StoreError {
    fn describe(&self) -> String {
        format!("{}: {self}", self.reason())
    }
}

impl Describe for BeginStep {
    fn describe(&self) -> String {
        let Self { lease, step, operation: id } = self;
        format!("{}, step {:?} at {}, {}", lease.describe(), step.step_id, step.position, operation(*id))
    }
}

impl Describe for CompleteStep {
    fn describe(&self) -> String {
        let then = match &self.then {
            Then::Nothing => String::new(),
            Then::Begin(next) => format!(", then begin {:?}", next.step_id),
            Then::CompleteRun(output) => format!(", then complete the run with {} bytes", output.len_bytes()),
        };
        format!(
            "{}, step {:?} attempt {}, {} bytes{then}, {}",
            self.lease.describe(),
            self.step_id,
            self.attempt,
            self.output.len_bytes(),
            operation(self.operation)
        )
    }
}

impl Describe for FailStep {
    fn describe(&self) -> String {
        format!(
            "{}, step {:?} attempt {}, {}, {}",
            self.lease.describe(),
            self.step_id,
            self.attempt,
            self.failure.kind.as_str(),
            operation(self.operation)
        )
    }
}

impl Describe for Sleep {
    fn describe(&self) -> String {
        let Self { lease, step_id, until, operation: id, .. } = self;
        format!("{}, step {step_id:?}, {until:?}, {}", lease.describe(), operation(*id))
    }
}

impl Describe for CompleteRun {
    fn describe(&self) -> String {
        let Self { lease, output, operation: id } = self;
        format!("{}, {} bytes, {}", lease.describe(), output.len_bytes(), operation(*id))
    }
}

impl Describe for FailRun {
    fn describe(&self) -> String {
        let Self { lease, failure, operation: id } = self;
        format!("{}, {}, {}", lease.describe(), failure.kind.as_str(), operation(*id))
    }
}

impl Describe for ReleaseRun {
    fn describe(&self) -> String {
        format!("{}, {}", self.lease.describe(), operation(self.operation))
    }
}

impl Describe for CancelRun {
    fn describe(&self) -> String {
        format!("{}/{}, {}", self.namespace, self.run_id, operation(self.operation))
    }
}

impl Describe for RequeueRun {
    fn describe(&self) -> String {
        format!("{}/{}, {}", self.namespace, self.run_id, operation(self.operation))
    }
}

impl Describe for SetQueueState {
    fn describe(&self) -> String {
        let Self { namespace, queue, change, operation: id } = self;
        format!("{namespace}/{queue} {}, {}", change.state(), operation(*id))
    }
}

impl Describe for ListRuns {
    fn describe(&self) -> String {
        let from = if self.page.cursor.is_some() { "after a cursor" } else { "first" };
        format!("{}, {} {from}", self.namespace, self.page.limit)
    }
}

impl Describe for ListAttempts {
    fn describe(&self) -> String {
        let from = if self.page.cursor.is_some() { "after a cursor" } else { "first" };
        format!("{}/{}, {:?}, {} {from}", self.namespace, self.run_id, self.scope, self.page.limit)
    }
}

impl Describe for DeleteFinished {
    fn describe(&self) -> String {
        format!("before {}, limit {}", self.before, self.limit)
    }
}

impl Describe for Run {
    fn describe(&self) -> String {
        format!("{} {} token {} due {}", self.run_id, self.state, self.fencing_token, self.due_at)
    }
}

impl Describe for RunRecord {
    fn describe(&self) -> String {
        self.run.describe()
    }
}

impl Describe for [(Namespace, RunId)] {
    fn describe(&self) -> String {
        several(self, |(namespace, run_id)| format!("{namespace}/{run_id}"))
    }
}

impl Describe for Vec<Result<RunRecord, StoreError>> {
    fn describe(&self) -> String {
        several(self, |verdict| match verdict {
            Ok(record) => record.describe(),
            Err(error) => error.describe(),
        })
    }
}

impl Describe for Attempt {
    fn describe(&self) -> String {
        format!("{:?} {} {}", self.step_id, self.attempt, self.state)
    }
}

impl<T: Describe> Describe for Page<T> {
    fn describe(&self) -> String {
        let more = if self.next.is_some() { " and more" } else { "" };
        format!("{}{more}", several(&self.items, Describe::describe))
    }
}

/// Small answers whose `Debug` is short and free of payloads.
macro_rules! described_by_debug {
    ($($answer:ty),*) => {$(
        impl Describe for $answer {
            fn describe(&self) -> String {
                format!("{self:?}")
            }
        }
    )*};
}
described_by_debug!(
    BeginOutcome,
    CancelOutcome,
    CompleteRunOutcome,
    CompleteStepOutcome,
    FailureOutcome,
    NextDue,
    Reaped,
    ReleaseOutcome,
    RequeueOutcome,
    SleepOutcome,
    Vec<QueueDepth>,
    QueueOutcome,
    u64,
    ()
);
