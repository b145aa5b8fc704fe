//! What a request is about: the namespaces that it touches, and the run to name in a log line.

use kagzi_core::{
    BeginStep, CancelRun, Claim, CompleteRun, CompleteStep, DeleteFinished, FailRun, FailStep, Heartbeat,
    ListAttempts, ListRuns, Namespace, ReleaseRun, RequeueRun, RunId, Sleep, StartRun,
};
use kagzi_sdk::wire::{CountRuns, GetRun, Poll};

use super::load::Errand;

/// What a request is about.
pub(super) trait Subject {
    /// The namespaces that it touches.
    fn namespaces(&self) -> impl Iterator<Item = &Namespace>;

    /// What it does to the server's load.
    fn errand(&self) -> Errand {
        Errand::Other
    }

    /// The run that it names, if it names one.
    fn run_id(&self) -> Option<RunId> {
        None
    }
}

macro_rules! about_a_leased_run {
    ($($request:ty),+) => {$(
        impl Subject for $request {
            fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
                [&self.lease.namespace].into_iter()
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
            fn run_id(&self) -> Option<RunId> {
                Some(self.run_id)
            }
        }
    )+};
}
about_a_run!(GetRun, CancelRun, RequeueRun, ListAttempts);

macro_rules! about_a_namespace {
    ($($request:ty),+) => {$(
        impl Subject for $request {
            fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
                [&self.namespace].into_iter()
            }
        }
    )+};
}
about_a_namespace!(Claim, ListRuns, CountRuns);

impl Subject for Namespace {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [self].into_iter()
    }
}

impl Subject for DeleteFinished {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespace.iter()
    }
}

impl Subject for Poll {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.claim.namespaces()
    }
    fn errand(&self) -> Errand {
        Errand::Claim
    }
}

impl Subject for StartRun {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [&self.namespace].into_iter()
    }
    fn errand(&self) -> Errand {
        Errand::Start
    }
}

impl Subject for Vec<StartRun> {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.iter().map(|start| &start.namespace)
    }
    fn errand(&self) -> Errand {
        Errand::Start
    }
}

impl Subject for Vec<Heartbeat> {
    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.iter().map(|heartbeat| &heartbeat.lease.namespace)
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
}
