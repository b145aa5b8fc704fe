//! The proof: what the attempts table says about a batch of runs.

use std::collections::BTreeMap;

use kagzi_core::{Attempt, AttemptState, StepId};

/// What was found in the attempts of many runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Rows of the attempts table.
    pub attempts: u64,
    /// Attempts that completed.
    pub completed: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts whose lease was lost.
    pub abandoned: u64,
    /// Abandoned attempts after which the step was executed again, to an end of its own.
    pub reexecuted: u64,
    /// Steps with more than one completed attempt. There must be none (invariant 3).
    pub completed_twice: u64,
    /// Steps whose attempts are not numbered 1, 2, 3... There must be none (invariant 5).
    pub gaps: u64,
}

impl Audit {
    /// Adds the whole history of one run.
    pub fn add(&mut self, history: &[Attempt]) {
        let mut steps: BTreeMap<&StepId, Vec<&Attempt>> = BTreeMap::new();
        for attempt in history {
            steps.entry(&attempt.step_id).or_default().push(attempt);
        }
        for attempts in steps.values_mut() {
            attempts.sort_unstable_by_key(|attempt| attempt.attempt);
            self.add_step(attempts);
        }
    }

    fn add_step(&mut self, attempts: &[&Attempt]) {
        let count = |state| attempts.iter().filter(|attempt| attempt.state == state).count() as u64;
        let (completed, abandoned) = (count(AttemptState::Completed), count(AttemptState::Abandoned));
        self.attempts += attempts.len() as u64;
        self.completed += completed;
        self.failed += count(AttemptState::Failed);
        self.abandoned += abandoned;
        self.completed_twice += u64::from(completed > 1);
        if attempts
            .last()
            .is_some_and(|last| matches!(last.state, AttemptState::Completed | AttemptState::Failed))
        {
            self.reexecuted += abandoned;
        }
        let dense = (1..).zip(attempts).all(|(number, attempt)| attempt.attempt == number);
        self.gaps += u64::from(!dense);
    }
}

#[cfg(test)]
mod tests {
    use kagzi_core::{FencingToken, Namespace, OperationId, RunId, StepKind, Timestamp, WorkerId};

    use super::*;

    fn attempt(step: &str, number: u32, state: AttemptState) -> Attempt {
        let operation = OperationId::generate();
        Attempt {
            run_id: RunId::for_start(&Namespace::new("n").unwrap(), operation, None),
            step_id: StepId::new(step).unwrap(),
            position: 0,
            kind: StepKind::Task,
            attempt: number,
            state,
            fencing_token: FencingToken::NONE.next(),
            worker_id: WorkerId::new("w").unwrap(),
            retry: None,
            deadline_at: None,
            begin_operation: operation,
            end_operation: None,
            output: None,
            failure: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            finished_at: None,
        }
    }

    #[test]
    fn a_crash_and_its_repair_are_counted() {
        use AttemptState::{Abandoned, Completed, Failed};
        let mut audit = Audit::default();
        audit.add(&[
            attempt("write", 2, Completed),
            attempt("write", 1, Abandoned),
            attempt("digest", 1, Completed),
            attempt("verify", 1, Abandoned),
            attempt("verify", 2, Failed),
            attempt("record", 1, Abandoned),
        ]);
        let expected =
            Audit { attempts: 6, completed: 2, failed: 1, abandoned: 3, reexecuted: 2, ..audit.clone() };
        assert_eq!(audit, expected);
        assert_eq!((audit.completed_twice, audit.gaps), (0, 0));
    }

    #[test]
    fn a_second_completion_and_a_missing_number_are_found() {
        let mut audit = Audit::default();
        audit.add(&[attempt("a", 1, AttemptState::Completed), attempt("a", 2, AttemptState::Completed)]);
        audit.add(&[attempt("a", 2, AttemptState::Completed)]);
        assert_eq!((audit.completed_twice, audit.gaps), (1, 1));
    }
}
