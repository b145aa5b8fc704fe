//! What a request is about: the namespaces that it touches, and the run to name in a log line.

use kagzi_core::{
    BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, DeleteFinished, FailRun, FailStep, Heartbeat,
    Lease, ListAttempts, ListRuns, Namespace, QueueChange, QueueName, ReleaseRun, RequeueRun, RunId,
    SetQueueState, Sleep, StartRun, StepId,
};
use kagzi_sdk::wire::{CountRuns, GetRun, Poll};

use super::load::{Errand, Patience};
use super::permission::{self, Permission};
use super::told::Facts;
use crate::auth::Caller;

/// What a label holds beside its texts, about: two of them, and its part of a tree.
const LABEL_BYTES: usize = 96;

/// What a queue costs that a poll waits for: its name and who is to be told of it, 700 bytes, measured.
const WATCHED_QUEUE_BYTES: usize = 768;

/// What a name costs that a stream remembers, beside its text.
pub(super) const NAME_BYTES: usize = 40;

/// What a request is about.
pub(super) trait Subject {
    /// The namespaces that it touches.
    fn namespaces(&self) -> impl Iterator<Item = &Namespace>;

    /// What it does to the server's load.
    fn errand(&self) -> Errand {
        Errand::Other(Patience::AtOnce)
    }

    /// Whether `caller` may do this, as far as the request tells.
    fn permission(&self, caller: &Caller, method: &str) -> Permission;

    /// The run that it names, if it names one.
    fn run_id(&self) -> Option<RunId> {
        None
    }

    /// The queue that it is to change, if it is about one.
    fn queue(&self) -> Option<&QueueName> {
        None
    }

    /// Why its caller wants it, for the record; nothing if they do not say.
    fn reason(&self) -> Option<&str> {
        None
    }

    /// What it is to remove, for the record.
    fn removal(&self) -> Option<&DeleteFinished> {
        None
    }

    /// How many bytes it holds here beside those that came: what is small on the wire may be large here.
    fn beside_bytes(&self) -> usize {
        0
    }

    /// What log lines and spans tell of it.
    fn facts(&self) -> Facts {
        Facts {
            namespace: self.namespaces().next().cloned(),
            run_id: self.run_id(),
            queue: self.queue().cloned(),
            ..Facts::default()
        }
    }

    /// Makes the runs that it starts, and that say nothing themselves, continue a trace.
    fn continue_trace(&mut self, context: impl FnOnce() -> Option<String>) {
        drop(context);
    }
}

/// What a request under a lease tells, with the step that it is about.
fn leased(lease: &Lease, step: Option<&StepId>, attempt: Option<u32>) -> Facts {
    Facts {
        namespace: Some(lease.namespace.clone()),
        run_id: Some(lease.run_id),
        worker: Some(lease.worker_id.clone()),
        step: step.cloned(),
        attempt,
        queue: None,
    }
}

macro_rules! about_a_leased_run {
    ($($request:ty: |$this:ident| $step:expr, $attempt:expr;)+) => {$(
        impl Subject for $request {
            fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
                [&self.lease.namespace].into_iter()
            }
            fn permission(&self, caller: &Caller, method: &str) -> Permission {
                permission::run(caller, method, &self.lease.namespace)
            }
            fn run_id(&self) -> Option<RunId> {
                Some(self.lease.run_id)
            }
            fn facts(&self) -> Facts {
                let $this = self;
                leased(&$this.lease, $step, $attempt)
            }
            fn errand(&self) -> Errand {
                Errand::Work
            }
        }
    )+};
}
about_a_leased_run! {
    BeginStep: |begin| Some(&begin.step.step_id), None;
    CompleteStep: |complete| Some(&complete.step_id), Some(complete.attempt);
    FailStep: |fail| Some(&fail.step_id), Some(fail.attempt);
    Sleep: |sleep| Some(&sleep.step_id), None;
    CompleteRun: |complete| None, None;
    FailRun: |fail| None, None;
    ReleaseRun: |release| None, None;
}

macro_rules! about_a_run {
    ($($request:ty { $($own:tt)* })+) => {$(
        impl Subject for $request {
            fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
                [&self.namespace].into_iter()
            }
            fn permission(&self, caller: &Caller, method: &str) -> Permission {
                permission::run(caller, method, &self.namespace)
            }
            fn run_id(&self) -> Option<RunId> {
                Some(self.run_id)
            }
            $($own)*
        }
    )+};
}
about_a_run! {
    RequeueRun {}
    ListAttempts {
        fn errand(&self) -> Errand {
            Errand::Scan
        }
    }
    CancelRun {
        fn reason(&self) -> Option<&str> {
            Some(self.reason.as_str()).filter(|reason| !reason.is_empty())
        }
    }
    GetRun {
        fn errand(&self) -> Errand {
            Errand::Other(Patience::of(self.wait))
        }
    }
}

macro_rules! about_filtered_runs {
    ($($request:ty),+) => {$(
        impl Subject for $request {
            fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
                [&self.namespace].into_iter()
            }
            fn permission(&self, caller: &Caller, method: &str) -> Permission {
                permission::filter(caller, method, &self.namespace, &self.filter)
            }
            fn errand(&self) -> Errand {
                Errand::Scan
            }
        }
    )+};
}
about_filtered_runs!(ListRuns, CountRuns);

/// What a worker's stream is to claim: the stream itself claims nothing.
impl Subject for Claim {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [&self.namespace].into_iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::claim(caller, method, self)
    }
    fn errand(&self) -> Errand {
        Errand::Open
    }
}

impl Subject for SetQueueState {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [&self.namespace].into_iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::queue_change(caller, method, self)
    }
    fn queue(&self) -> Option<&QueueName> {
        Some(&self.queue)
    }
    fn reason(&self) -> Option<&str> {
        match &self.change {
            QueueChange::Pause { reason } if !reason.is_empty() => Some(reason),
            QueueChange::Pause { .. } | QueueChange::Resume => None,
        }
    }
}

/// A question about the queues of a namespace; the answer is cut to those that the caller may see.
impl Subject for Namespace {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [self].into_iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::somewhere(caller, method, self)
    }
    fn errand(&self) -> Errand {
        Errand::Scan
    }
}

impl Subject for DeleteFinished {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespace.iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        // The protocol asks for a namespace.
        self.namespace.as_ref().map_or(Permission::Denied, |own| permission::namespace(caller, method, own))
    }
    fn removal(&self) -> Option<&DeleteFinished> {
        Some(self)
    }
}

impl Subject for Poll {
    fn beside_bytes(&self) -> usize {
        // The first is within what a call costs.
        self.claim.queues.len().saturating_sub(1) * WATCHED_QUEUE_BYTES
    }
    fn facts(&self) -> Facts {
        let Claim { namespace, queues, worker_id, .. } = &self.claim;
        let queue = match queues.as_slice() {
            [queue] => Some(queue.clone()),
            _ => None,
        };
        Facts {
            namespace: Some(namespace.clone()),
            queue,
            worker: Some(worker_id.clone()),
            ..Facts::default()
        }
    }
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.claim.namespaces()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::claim(caller, method, &self.claim)
    }
    fn errand(&self) -> Errand {
        Errand::Claim(Patience::of(self.wait))
    }
}

impl Subject for StartRun {
    fn facts(&self) -> Facts {
        Facts { namespace: Some(self.namespace.clone()), queue: Some(self.queue.clone()), ..Facts::default() }
    }
    fn continue_trace(&mut self, context: impl FnOnce() -> Option<String>) {
        if self.trace_context.is_none() {
            self.trace_context = context();
        }
    }
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [&self.namespace].into_iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::start(caller, method, self)
    }
    fn errand(&self) -> Errand {
        Errand::Start
    }
}

impl Subject for Vec<StartRun> {
    fn beside_bytes(&self) -> usize {
        self.iter().map(|start| size_of::<StartRun>() + start.labels.as_map().len() * LABEL_BYTES).sum()
    }
    fn continue_trace(&mut self, context: impl FnOnce() -> Option<String>) {
        let Some(context) = context() else { return };
        for start in self {
            start.trace_context.get_or_insert_with(|| context.clone());
        }
    }
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.iter().map(|start| &start.namespace)
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        let mut each = self.iter().map(|start| permission::start(caller, method, start));
        each.find(|permission| *permission != Permission::Granted).unwrap_or(Permission::Granted)
    }
    fn errand(&self) -> Errand {
        Errand::Start
    }
}

impl Subject for Vec<Heartbeat> {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.iter().map(|heartbeat| &heartbeat.lease.namespace)
    }
    /// Each lease has a verdict of its own, so that one that is refused costs none of the others.
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        let mut each =
            self.iter().map(|heartbeat| permission::somewhere(caller, method, &heartbeat.lease.namespace));
        each.find(|permission| *permission != Permission::Granted).unwrap_or(Permission::Granted)
    }
    fn errand(&self) -> Errand {
        Errand::Beat
    }
}

/// A question about the server itself.
impl Subject for () {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::empty()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        if caller.may_ever(method) { Permission::Granted } else { Permission::Denied }
    }
}
