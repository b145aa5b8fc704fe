//! What the writer remembers of the runs that are held, so that the writes of a worker find what they
//! depend on without reading it back.
//!
//! It is a copy of rows that this writer read or wrote, true at every moment: each write of a run or an
//! attempt goes through here, a rollback or a commit of another process (`PRAGMA data_version`) empties
//! it, and it holds nothing that the file does not say. Payloads are not kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kagzi_core::{Attempt, AttemptState, Run, RunId, RunState, StepId, Timestamp};

/// How many runs are remembered at most; one more, and all are forgotten. About 1 KiB each.
const MOST_RUNS: usize = 4096;

/// How many steps that ended are remembered of a run; one more, and its history is read from then on.
const MOST_STEPS: usize = 256;

/// The memory of the writer.
#[derive(Debug, Default)]
pub(crate) struct Held {
    runs: HashMap<RunId, HeldRun>,
    /// No run's time comes before this moment, if it is known.
    quiet_until: Option<Timestamp>,
}

#[derive(Debug)]
struct HeldRun {
    run: Arc<Run>,
    /// Attempts that are RUNNING, by step.
    open: HashMap<StepId, Arc<Attempt>>,
    /// Steps whose latest attempt has ended.
    ended: HashSet<StepId>,
    /// Whether every step that the run has is in `open` or in `ended`.
    whole: bool,
}

/// What is remembered about the latest attempt of a step.
#[derive(Clone, Debug)]
pub(crate) enum Latest {
    /// It is RUNNING.
    Open(Arc<Attempt>),
    /// There is none.
    Absent,
    /// Only the file knows.
    Unknown,
}

/// Whether a run can have attempts that nobody here has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// It may have.
    Unseen,
    /// It has none at all: it was never claimed before.
    Absent,
}

impl Held {
    pub(crate) fn forget(&mut self) {
        self.runs.clear();
        self.quiet_until = None;
    }

    /// The run, if it is held and remembered.
    pub(crate) fn run(&self, run_id: RunId) -> Option<Arc<Run>> {
        self.runs.get(&run_id).map(|held| Arc::clone(&held.run))
    }

    /// The latest attempt of a step.
    pub(crate) fn latest(&self, run_id: RunId, step_id: &StepId) -> Latest {
        let Some(held) = self.runs.get(&run_id) else { return Latest::Unknown };
        match held.open.get(step_id) {
            Some(open) => Latest::Open(Arc::clone(open)),
            None if held.whole && !held.ended.contains(step_id) => Latest::Absent,
            None => Latest::Unknown,
        }
    }

    /// Whether it is certain that no attempt of the run is RUNNING.
    pub(crate) fn nothing_open(&self, run_id: RunId) -> bool {
        self.runs.get(&run_id).is_some_and(|held| held.whole && held.open.is_empty())
    }

    /// Takes down a run as it was read or written. `history` counts where the run was not remembered
    /// under this token before.
    pub(crate) fn note_run(&mut self, run: Arc<Run>, history: History) {
        if run.state != RunState::Running {
            self.runs.remove(&run.run_id);
            return;
        }
        if let Some(held) = self.runs.get_mut(&run.run_id)
            && held.run.fencing_token == run.fencing_token
        {
            held.run = run;
            return;
        }
        if self.runs.len() >= MOST_RUNS {
            self.runs.clear();
        }
        let whole = history == History::Absent;
        let held = HeldRun { run, open: HashMap::new(), ended: HashSet::new(), whole };
        self.runs.insert(held.run.run_id, held);
    }

    /// Takes down an attempt as it was written: the latest of its step.
    pub(crate) fn note_attempt(&mut self, attempt: &Attempt) {
        let Some(held) = self.runs.get_mut(&attempt.run_id) else { return };
        if attempt.state == AttemptState::Running {
            held.ended.remove(&attempt.step_id);
            held.open.insert(attempt.step_id.clone(), Arc::new(attempt.clone()));
            return;
        }
        held.open.remove(&attempt.step_id);
        if held.whole {
            held.ended.insert(attempt.step_id.clone());
            if held.ended.len() > MOST_STEPS {
                held.whole = false;
                held.ended = HashSet::new();
            }
        }
    }

    /// Whether it is certain that time has nothing to say about any run by `now`.
    pub(crate) fn is_quiet(&self, now: Timestamp) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }

    /// Takes down the nearest moment at which time changes a run, as the file says.
    pub(crate) fn note_quiet_until(&mut self, until: Timestamp) {
        self.quiet_until = Some(until);
    }

    /// Takes down a moment at which time will change a run that was written.
    pub(crate) fn note_attention(&mut self, at: Timestamp) {
        self.quiet_until = self.quiet_until.map(|until| until.min(at));
    }
}
