//! What to tell those who wait, gathered while a batch is written and told once it is durable.

use std::collections::HashSet;

use kagzi_core::{Namespace, QueueName, Run, RunState, Timestamp, Topic, WakeHub};

#[derive(Debug, Default)]
pub(crate) struct News {
    topics: HashSet<Topic>,
    deadline: Option<Timestamp>,
}

impl News {
    /// A run was written: who waits for it?
    pub(crate) fn note_run(&mut self, run: &Run) {
        if run.state == RunState::Pending {
            self.note_queue(&run.namespace, &run.queue);
        }
        if run.state.is_terminal() {
            self.topics.insert(Topic::Run(run.run_id));
        }
        if let Some(at) = run.attention_at() {
            self.note_deadline(at);
        }
    }

    /// There may be work in this queue.
    pub(crate) fn note_queue(&mut self, namespace: &Namespace, queue: &QueueName) {
        self.topics.insert(Topic::Queue(namespace.clone(), queue.clone()));
    }

    /// Something will be due at `at`.
    pub(crate) fn note_deadline(&mut self, at: Timestamp) {
        self.deadline = Some(self.deadline.map_or(at, |before| before.min(at)));
    }

    pub(crate) fn tell(self, hub: &WakeHub) {
        self.topics.iter().for_each(|topic| hub.announce(topic));
        if let Some(at) = self.deadline {
            hub.note_deadline(at);
        }
    }
}
