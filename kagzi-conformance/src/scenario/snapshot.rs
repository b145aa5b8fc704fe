//! Everything that is recorded about a run, to be compared with what is recorded later.

use std::collections::BTreeMap;

use kagzi_core::{Attempt, Payload, RunRecord, StepId};

use super::differ::{Difference, by_name, fields, sides};
use crate::proof;
use crate::violation::{Verdict, Violation};

/// A run and its whole history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    /// The run with its payloads.
    pub(crate) record: RunRecord,
    /// Every attempt of every step.
    pub(crate) attempts: Vec<Attempt>,
}

impl Snapshot {
    /// Asserts that `later` is the same, to the last field.
    pub(crate) fn compare(&self, later: &Self, rule: &str) -> Verdict {
        if self == later {
            proof::kept(rule);
            return Ok(());
        }
        let (expected, seen) = sides(&self.differences(later));
        Err(Violation::new(rule, format!("every row as it was\n{expected}"), format!("changed rows\n{seen}")))
    }

    /// Where `seen` differs: by field of the run, and by step, attempt and field.
    pub(crate) fn differences(&self, seen: &Self) -> Vec<Difference> {
        let mut all = of_records(&self.record, &seen.record);
        all.extend(of_attempts(&self.attempts, &seen.attempts));
        all
    }
}

/// Where two records of a run differ, by field.
pub(crate) fn of_records(expected: &RunRecord, seen: &RunRecord) -> Vec<Difference> {
    let mut all = fields(&expected.run, &seen.run);
    all.extend(payload("input", Some(&expected.input), Some(&seen.input)));
    all.extend(payload("output", expected.output.as_ref(), seen.output.as_ref()));
    if all.is_empty() && expected != seen {
        all.push(failures_bytes());
    }
    all
}

/// Where two lists of attempts differ, by step, attempt and field.
pub(crate) fn of_attempts(expected: &[Attempt], seen: &[Attempt]) -> Vec<Difference> {
    let name = |(step, attempt): &(StepId, u32)| format!("step {step}, attempt {attempt}");
    let brief = |one: &&Attempt| one.state.to_string();
    let (here, there) = (by_number(expected), by_number(seen));
    let mut all = by_name(&here, &there, name, brief, |here, there| attempt(here, there));
    if all.is_empty() && expected != seen {
        let (here, there) = (listed(expected), listed(seen));
        all.push(if here == there {
            failures_bytes()
        } else {
            Difference::new("attempts as listed", Some(here), Some(there))
        });
    }
    all
}

/// The one field of which no text shows a difference.
fn failures_bytes() -> Difference {
    let (here, there) = ("the bytes as sent", "others, as many");
    Difference::new("payload of a failure", Some(here.to_owned()), Some(there.to_owned()))
}

fn by_number(attempts: &[Attempt]) -> BTreeMap<(StepId, u32), &Attempt> {
    attempts.iter().map(|one| ((one.step_id.clone(), one.attempt), one)).collect()
}

fn listed(attempts: &[Attempt]) -> String {
    let numbers: Vec<String> =
        attempts.iter().map(|one| format!("{} {}", one.step_id, one.attempt)).collect();
    numbers.join(", ")
}

fn attempt(expected: &Attempt, seen: &Attempt) -> Vec<Difference> {
    let mut all = fields(expected, seen);
    if all.iter().all(|one| !one.field.starts_with("output")) {
        all.extend(payload("output", expected.output.as_ref(), seen.output.as_ref()));
    }
    all
}

/// Tells of two payloads that differ, also where `Debug` shows them alike, since it shows no content.
pub(crate) fn payload(name: &str, expected: Option<&Payload>, seen: Option<&Payload>) -> Option<Difference> {
    if expected == seen {
        return None;
    }
    let (here, there) = (expected.map(|one| format!("{one:?}")), seen.map(|one| format!("{one:?}")));
    let place = expected.zip(seen).and_then(|(a, b)| a.bytes.iter().zip(&b.bytes).position(|(a, b)| a != b));
    let there = match place {
        Some(place) if here == there => there.map(|text| format!("{text}, another byte at {place}")),
        _ => there,
    };
    Some(Difference::new(name, here, there))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kagzi_core::memory::MemoryStore;
    use kagzi_core::{
        BeginStep, Claim, ManualClock, Namespace, NextStep, OperationId, QueueName, Rules, StartRun, Store,
        WorkerId, WorkflowType,
    };

    use super::*;
    use crate::scenario::LEASE;
    use crate::scenario::differ::lines;

    /// A run in whose step `a` somebody is.
    async fn snapshot() -> Snapshot {
        let store = MemoryStore::new(Arc::new(ManualClock::default()), Rules::default());
        let (namespace, queue) = (Namespace::new("n").unwrap(), QueueName::new("q").unwrap());
        let workflow_type = WorkflowType::new("t").unwrap();
        let start = StartRun::new(namespace.clone(), queue.clone(), workflow_type, Payload::json("1"));
        store.start(vec![start]).await.unwrap();
        let claim = Claim {
            namespace: namespace.clone(),
            queues: vec![queue],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("w").unwrap(),
            lease_length: LEASE,
            limit: 1,
            steps_limit: 10,
            operation: OperationId::generate(),
        };
        let lease = store.claim(claim).await.unwrap().remove(0).lease.lease;
        let run_id = lease.run_id;
        let step = NextStep::new(StepId::new("a").unwrap(), 0);
        store.begin_step(BeginStep { lease, step, operation: OperationId::generate() }).await.unwrap();
        let page = kagzi_core::PageRequest::first(10);
        let list = kagzi_core::ListAttempts {
            namespace: namespace.clone(),
            run_id,
            scope: kagzi_core::AttemptScope::All,
            page,
        };
        let attempts = store.list_attempts(&list).await.unwrap().items;
        Snapshot { record: store.get_run(&namespace, run_id).await.unwrap(), attempts }
    }

    #[tokio::test]
    async fn what_differs_is_told_by_run_step_and_field_and_nothing_else() {
        let before = snapshot().await;
        let mut after = before.clone();
        after.record.run.claims = 2;
        after.record.input = Payload::json("2");
        after.attempts[0].attempt = 2;
        assert_eq!(
            lines(&before.differences(&after)),
            "claims: expected 1, seen 2\n\
             input: expected Payload(application/json, 1 bytes), seen Payload(application/json, 1 bytes), \
             another byte at 0\n\
             step a, attempt 1: expected RUNNING, seen none\n\
             step a, attempt 2: expected none, seen RUNNING"
        );
        let mut after = before.clone();
        after.attempts[0].position = 7;
        assert_eq!(lines(&before.differences(&after)), "step a, attempt 1, position: expected 0, seen 7");
        assert!(before.differences(&before).is_empty());
    }

    #[tokio::test]
    async fn an_order_alone_that_differs_is_told() {
        let mut before = snapshot().await;
        before.attempts.push(Attempt { attempt: 2, ..before.attempts[0].clone() });
        let mut after = before.clone();
        after.attempts.reverse();
        assert_eq!(
            lines(&before.differences(&after)),
            "attempts as listed: expected a 1, a 2, seen a 2, a 1"
        );
    }
}
