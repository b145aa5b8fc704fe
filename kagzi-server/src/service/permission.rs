//! Whether a request is within its caller's bounds, as far as the request itself tells.
//!
//! A request about a run names no queue and no type. Where the caller is bound to some, the run's own
//! decide: they never change, so they are looked up once and remembered ([`Places`]).

use std::sync::{Mutex, PoisonError};

use kagzi_core::{
    Claim, ClaimedRun, Namespace, QueueName, Run, RunFilter, RunId, SetQueueState, StartRun, WorkflowType,
};

use crate::auth::{Area, Caller};
use crate::recent::Recent;

/// Whether a request may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Granted,
    Denied,
    /// If the run that it names lies within the caller's bounds.
    IfRun,
}

impl Permission {
    fn when(granted: bool) -> Self {
        if granted { Self::Granted } else { Self::Denied }
    }
}

/// For a request about the runs of a namespace, whatever their queues and types.
pub(super) fn namespace(caller: &Caller, method: &str, namespace: &Namespace) -> Permission {
    Permission::when(caller.may_everywhere(method, namespace.as_str()))
}

/// For a request about one run.
pub(super) fn run(caller: &Caller, method: &str, namespace: &Namespace) -> Permission {
    if caller.may_everywhere(method, namespace.as_str()) {
        Permission::Granted
    } else if caller.may_somewhere(method, namespace.as_str()) {
        Permission::IfRun
    } else {
        Permission::Denied
    }
}

/// For a request that is answered thing by thing, or cut to what the caller may see.
pub(super) fn somewhere(caller: &Caller, method: &str, namespace: &Namespace) -> Permission {
    Permission::when(caller.may_somewhere(method, namespace.as_str()))
}

/// For a start.
pub(super) fn start(caller: &Caller, method: &str, start: &StartRun) -> Permission {
    let StartRun { namespace, queue, workflow_type, .. } = start;
    Permission::when(caller.may(method, area(namespace, Some(queue), Some(workflow_type))))
}

/// For a listing or a count: the filter must keep within the caller's bounds.
pub(super) fn filter(caller: &Caller, method: &str, namespace: &Namespace, filter: &RunFilter) -> Permission {
    let RunFilter { queue, workflow_type, .. } = filter;
    Permission::when(caller.may(method, area(namespace, queue.as_ref(), workflow_type.as_ref())))
}

/// For a claim: every queue, with every type that is asked for there.
pub(super) fn claim(caller: &Caller, method: &str, claim: &Claim) -> Permission {
    if caller.may_everywhere(method, claim.namespace.as_str()) {
        return Permission::Granted;
    }
    let may = |queue, workflow_type| caller.may(method, area(&claim.namespace, Some(queue), workflow_type));
    Permission::when(claim.queues.iter().all(|queue| match claim.workflow_types.as_slice() {
        [] => may(queue, None),
        types => types.iter().all(|workflow_type| may(queue, Some(workflow_type))),
    }))
}

/// Whether the caller may see how full a queue is, whatever the types of the runs in it.
pub(super) fn queue(caller: &Caller, method: &str, namespace: &Namespace, queue: &QueueName) -> bool {
    caller.may(method, area(namespace, Some(queue), None))
}

/// For a change of a queue: all of its runs, whatever their types, must be within the caller's bounds.
pub(super) fn queue_change(caller: &Caller, method: &str, change: &SetQueueState) -> Permission {
    Permission::when(queue(caller, method, &change.namespace, &change.queue))
}

/// Whether a run of this place lies within the caller's bounds.
pub(super) fn place(caller: &Caller, method: &str, namespace: &Namespace, place: &Place) -> bool {
    caller.may(method, area(namespace, Some(&place.queue), Some(&place.workflow_type)))
}

/// What of claimed runs lies within the caller's bounds. A claim that is sent again gives the runs that it took, whatever
/// its sender names now: another worker's, if it sends the id and the name of that one. Those stay where they are.
pub(super) fn claimed(caller: &Caller, method: &str, mut runs: Vec<ClaimedRun>) -> Vec<ClaimedRun> {
    runs.retain(|ClaimedRun { run, .. }| {
        caller.may(method, area(&run.namespace, Some(&run.queue), Some(&run.workflow_type)))
    });
    runs
}

fn area<'a>(
    namespace: &'a Namespace,
    queue: Option<&'a QueueName>,
    workflow_type: Option<&'a WorkflowType>,
) -> Area<'a> {
    Area {
        namespace: namespace.as_str(),
        queue: queue.map(QueueName::as_str),
        workflow_type: workflow_type.map(WorkflowType::as_str),
    }
}

/// Where a run belongs, for ever.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) queue: QueueName,
    pub(super) workflow_type: WorkflowType,
}

impl From<&Run> for Place {
    fn from(run: &Run) -> Self {
        Self { queue: run.queue.clone(), workflow_type: run.workflow_type.clone() }
    }
}

/// How many places one generation holds: some megabytes.
const GENERATION: usize = 32 * 1024;

type Key = (Namespace, RunId);

/// The places of runs that callers with bounds worked on lately.
#[derive(Debug)]
pub(super) struct Places(Mutex<Recent<Key, Place>>);

impl Default for Places {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(GENERATION)))
    }
}

impl Places {
    pub(super) fn find(&self, namespace: &Namespace, run_id: RunId) -> Option<Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).find(&(namespace.clone(), run_id))
    }

    pub(super) fn remember(&self, run: &Run) {
        let key = (run.namespace.clone(), run.run_id);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Place::from(run));
    }
}
