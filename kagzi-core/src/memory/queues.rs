//! Pausing and resuming queues.

use super::MemoryStore;
use crate::decide;
use crate::error::StoreError;
use crate::op::{QueueOutcome, SetQueueState};
use crate::wake::Topic;

impl MemoryStore {
    pub(super) fn change_queue(&self, request: &SetQueueState) -> Result<QueueOutcome, StoreError> {
        request.validate()?;
        let (mut state, now) = self.open()?;
        let queue = (request.namespace.clone(), request.queue.clone());
        let decision = decide::set_queue_state(state.queues.get(&queue), request, now)?;
        if let Some(row) = decision.row {
            if row.pause.is_none() {
                self.shared.hub.announce(&Topic::Queue(queue.0.clone(), queue.1.clone()));
            }
            state.queues.insert(queue, row);
        }
        Ok(decision.answer)
    }
}
