//! What a request is about: the namespaces that it touches, and the run to name in a log line.

use kagzi_core::{
    BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, DeleteFinished, FailRun, FailStep, Heartbeat,
    ListAttempts, ListRuns, Namespace, QueueName, ReleaseRun, RequeueRun, RunId, SetQueueState, Sleep,
    StartRun,
};
use kagzi_sdk::wire::{CountRuns, GetRun, Poll};

use super::load::{Errand, Patience};
use super::permission::{self, Permission};
use crate::auth::Caller;

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
}

macro_rules! about_a_leased_run {
    ($($request:ty),+) => {$(
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
            fn errand(&self) -> Errand {
                Errand::Work
            }
        }
    )+};
}
about_a_leased_run!(BeginStep, CompleteStep, FailStep, Sleep, CompleteRun, FailRun, ReleaseRun);

macro_rules! about_a_run {
    ($($request:ty),+) => {$(
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
        }
    )+};
}
about_a_run!(CancelRun, RequeueRun, ListAttempts);

impl Subject for GetRun {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [&self.namespace].into_iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::run(caller, method, &self.namespace)
    }
    fn run_id(&self) -> Option<RunId> {
        Some(self.run_id)
    }
    fn errand(&self) -> Errand {
        Errand::Other(Patience::of(self.wait))
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
}

/// A question about the queues of a namespace; the answer is cut to those that the caller may see.
impl Subject for Namespace {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [self].into_iter()
    }
    fn permission(&self, caller: &Caller, method: &str) -> Permission {
        permission::somewhere(caller, method, self)
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
}

impl Subject for Poll {
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
        Errand::Work
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
