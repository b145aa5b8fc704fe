//! Listings of runs and attempts, counts and queue depths.

use kagzi_core::{
    Attempt, AttemptScope, ListAttempts, ListRuns, Namespace, Page, Pause, QueueDepth, QueueName, Run,
    RunFilter, RunState, StoreError, WorkflowType,
};
use kagzi_proto::v1;

use super::field::{WireEnum, invalid, optional, within};
use super::page::{cursor, cursor_to_wire, items, items_to_wire, page};
use super::time::{moment_to_wire, optional_moment};
use super::value::{labels, labels_to_wire};
use super::{FromWire, IntoWire};

/// Asks how many runs a filter finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountRuns {
    /// The tenant.
    pub namespace: Namespace,
    /// Which runs.
    pub filter: RunFilter,
}

/// States in a list, each error with its place.
pub(super) fn states(wire: Vec<i32>) -> Result<Vec<RunState>, StoreError> {
    wire.into_iter()
        .enumerate()
        .map(|(at, number)| RunState::from_number(&format!("states[{at}]"), number))
        .collect()
}

impl IntoWire<v1::RunFilter> for RunFilter {
    fn into_wire(self) -> v1::RunFilter {
        v1::RunFilter {
            states: self.states.into_iter().map(WireEnum::number).collect(),
            workflow_type: self.workflow_type.map(Into::into).unwrap_or_default(),
            queue: self.queue.map(Into::into).unwrap_or_default(),
            labels: labels_to_wire(self.labels),
            created_from: self.created_from.map(moment_to_wire),
            created_before: self.created_before.map(moment_to_wire),
        }
    }
}

impl FromWire<v1::RunFilter> for RunFilter {
    fn from_wire(wire: v1::RunFilter) -> Result<Self, StoreError> {
        Ok(Self {
            states: states(wire.states)?,
            workflow_type: optional(&wire.workflow_type, |text| WorkflowType::new(text))?,
            queue: optional(&wire.queue, |text| QueueName::new(text))?,
            labels: labels(wire.labels)?,
            created_from: optional_moment("created_from", wire.created_from)?,
            created_before: optional_moment("created_before", wire.created_before)?,
        })
    }
}

fn filter(wire: Option<v1::RunFilter>) -> Result<RunFilter, StoreError> {
    within("filter", RunFilter::from_wire(wire.unwrap_or_default()))
}

impl IntoWire<v1::ListWorkflowsRequest> for ListRuns {
    fn into_wire(self) -> v1::ListWorkflowsRequest {
        v1::ListWorkflowsRequest {
            namespace: self.namespace.into(),
            filter: Some(self.filter.into_wire()),
            page: Some(self.page.into_wire()),
        }
    }
}

impl FromWire<v1::ListWorkflowsRequest> for ListRuns {
    fn from_wire(wire: v1::ListWorkflowsRequest) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            filter: filter(wire.filter)?,
            page: page(wire.page)?,
        })
    }
}

impl IntoWire<v1::ListWorkflowsResponse> for Page<Run> {
    fn into_wire(self) -> v1::ListWorkflowsResponse {
        v1::ListWorkflowsResponse { runs: items_to_wire(self.items), next_cursor: cursor_to_wire(self.next) }
    }
}

impl FromWire<v1::ListWorkflowsResponse> for Page<Run> {
    fn from_wire(wire: v1::ListWorkflowsResponse) -> Result<Self, StoreError> {
        Ok(Self { items: items("runs", wire.runs)?, next: cursor(wire.next_cursor) })
    }
}

impl IntoWire<v1::CountWorkflowsRequest> for CountRuns {
    fn into_wire(self) -> v1::CountWorkflowsRequest {
        v1::CountWorkflowsRequest { namespace: self.namespace.into(), filter: Some(self.filter.into_wire()) }
    }
}

impl FromWire<v1::CountWorkflowsRequest> for CountRuns {
    fn from_wire(wire: v1::CountWorkflowsRequest) -> Result<Self, StoreError> {
        Ok(Self { namespace: Namespace::new(wire.namespace)?, filter: filter(wire.filter)? })
    }
}

impl IntoWire<v1::ListStepAttemptsRequest> for ListAttempts {
    fn into_wire(self) -> v1::ListStepAttemptsRequest {
        let scope = match self.scope {
            AttemptScope::All => v1::AttemptScope::All,
            AttemptScope::Latest => v1::AttemptScope::Latest,
        };
        v1::ListStepAttemptsRequest {
            namespace: self.namespace.into(),
            run_id: self.run_id.to_string(),
            scope: scope.into(),
            page: Some(self.page.into_wire()),
        }
    }
}

impl FromWire<v1::ListStepAttemptsRequest> for ListAttempts {
    fn from_wire(wire: v1::ListStepAttemptsRequest) -> Result<Self, StoreError> {
        let scope = match v1::AttemptScope::try_from(wire.scope) {
            Ok(v1::AttemptScope::Unspecified | v1::AttemptScope::All) => AttemptScope::All,
            Ok(v1::AttemptScope::Latest) => AttemptScope::Latest,
            Err(_) => return Err(invalid("scope", "ALL or LATEST", format!("value {}", wire.scope))),
        };
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            run_id: wire.run_id.parse()?,
            scope,
            page: page(wire.page)?,
        })
    }
}

impl IntoWire<v1::ListStepAttemptsResponse> for Page<Attempt> {
    fn into_wire(self) -> v1::ListStepAttemptsResponse {
        v1::ListStepAttemptsResponse {
            attempts: items_to_wire(self.items),
            next_cursor: cursor_to_wire(self.next),
        }
    }
}

impl FromWire<v1::ListStepAttemptsResponse> for Page<Attempt> {
    fn from_wire(wire: v1::ListStepAttemptsResponse) -> Result<Self, StoreError> {
        Ok(Self { items: items("attempts", wire.attempts)?, next: cursor(wire.next_cursor) })
    }
}

impl IntoWire<v1::QueueDepth> for QueueDepth {
    fn into_wire(self) -> v1::QueueDepth {
        v1::QueueDepth {
            queue: self.queue.into(),
            pending: self.pending,
            sleeping: self.sleeping,
            running: self.running,
            oldest_due_at: self.oldest_due_at.map(moment_to_wire),
            pause: self.pause.map(IntoWire::into_wire),
        }
    }
}

impl FromWire<v1::QueueDepth> for QueueDepth {
    fn from_wire(wire: v1::QueueDepth) -> Result<Self, StoreError> {
        Ok(Self {
            queue: QueueName::new(wire.queue)?,
            pending: wire.pending,
            sleeping: wire.sleeping,
            running: wire.running,
            oldest_due_at: optional_moment("oldest_due_at", wire.oldest_due_at)?,
            pause: wire.pause.map(|pause| within("pause", Pause::from_wire(pause))).transpose()?,
        })
    }
}

impl IntoWire<v1::GetQueueDepthsResponse> for Vec<QueueDepth> {
    fn into_wire(self) -> v1::GetQueueDepthsResponse {
        v1::GetQueueDepthsResponse { queues: items_to_wire(self) }
    }
}

impl FromWire<v1::GetQueueDepthsResponse> for Vec<QueueDepth> {
    fn from_wire(wire: v1::GetQueueDepthsResponse) -> Result<Self, StoreError> {
        items("queues", wire.queues)
    }
}
