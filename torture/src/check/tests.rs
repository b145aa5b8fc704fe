//! The judge itself: what a sound engine does is accepted, and each rule catches what breaks it, planted
//! into the record of a sound one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::sync::Arc;

use kagzi_core::{AttemptState, FencingToken, Payload, RunId, RunState};
use kagzi_sdk::transport::Embedded;
use kagzi_sdk::{Client, EngineOptions, MemoryStore, SharedStore, Worker};
use tokio::sync::OnceCell;

use super::{Look, Rule, judge};
use crate::event::{Answer, Begun, Call, Heard, Operation, Then};
use crate::log::{History, Log};
use crate::plan::{self, Item, Plan, QUEUE, WORKFLOW, workflow};
use crate::recording::Recording;

/// A record: what was heard, and what the store held at two moments.
#[derive(Clone)]
struct Record {
    history: Vec<Heard>,
    deeds: Vec<crate::event::Deed>,
    first: Look,
    second: Look,
}

impl Record {
    fn found(&self) -> Vec<Rule> {
        let history = History { heard: self.history.clone(), deeds: self.deeds.clone() };
        let mut found: Vec<Rule> =
            judge(&history, &self.first, &self.second).found.iter().map(|found| found.rule).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Changes what is recorded of a run, at both moments.
    fn record(&mut self, run: RunId, mut change: impl FnMut(&mut super::Stored)) {
        for look in [&mut self.first, &mut self.second] {
            change(look.get_mut(&run).unwrap());
        }
    }

    fn position(&self, wanted: impl Fn(&Heard) -> bool) -> usize {
        self.history.iter().position(wanted).unwrap()
    }

    /// A run that completed with a step that was memoized once, and the place of its last completion.
    fn completed_run(&self) -> (RunId, usize) {
        let replayed = |heard: &&Heard| {
            matches!(&heard.call, Call::Claim { completed, .. } if !completed.is_empty())
                && self.first[&heard.run].record.run.state == RunState::Completed
        };
        let run = self.history.iter().find(replayed).unwrap().run;
        let ends = |heard: &Heard| {
            heard.run == run
                && matches!(&heard.call, Call::Finish { .. } | Call::Complete { then: Then::Finish(_), .. })
        };
        (run, self.history.iter().rposition(ends).unwrap())
    }
}

/// Numbers whose runs take no time worth waiting for.
fn quick(number: u64) -> bool {
    let plan = Plan::of(number);
    let quick = |item: &Item| match item {
        Item::Step { millis, .. } => *millis < 60,
        Item::Fatal { .. } | Item::Pair { .. } => true,
        Item::Limited { .. } | Item::Sleep { .. } => false,
    };
    plan.run_timeout.is_none() && plan.items.iter().all(quick)
}

/// A worker and a client over the reference store, on record.
async fn sound() -> &'static Record {
    static SOUND: OnceCell<Record> = OnceCell::const_new();
    SOUND.get_or_init(play).await
}

async fn play() -> Record {
    let directory = tempfile::tempdir().unwrap();
    let store: SharedStore = Arc::new(MemoryStore::default());
    let path = directory.path().join("worker-0-0.log");
    let log = Arc::new(Log::create(&path).unwrap());
    let embedded = Arc::new(Embedded::new(Arc::clone(&store), EngineOptions::default()));
    let client = Client::over(Arc::new(Recording::new(embedded, Arc::clone(&log))));
    let client = client.in_namespace("alpha").unwrap();
    let worker = Worker::builder(client.clone())
        .worker_id("worker-0-0")
        .queue(QUEUE)
        .register(WORKFLOW, workflow(Arc::clone(&log), "worker-0-0"))
        .build()
        .unwrap();
    let working = tokio::spawn(worker.run());
    let mut runs = Vec::new();
    // Enough that may fail for good for some of them to do so, whatever chance says.
    let fatal = |number: &u64| Plan::of(*number).items.iter().any(|item| matches!(item, Item::Fatal { .. }));
    let all = || (0..).filter(|number| quick(*number));
    for number in all().take(60).chain(all().skip(60).filter(fatal).take(40)) {
        let start = plan::start(number).unwrap().idempotency_key(format!("key-{number}"));
        runs.push(client.start(start.clone()).await.unwrap());
        if number % 7 == 0 {
            client.start(start).await.unwrap();
            client
                .start(plan::start(number + 1).unwrap().idempotency_key(format!("key-{number}")))
                .await
                .unwrap_err();
        }
        if number % 11 == 0 {
            runs.last().unwrap().cancel("enough").await.unwrap();
        }
    }
    for run in &runs {
        let mut record = run.finished().await.unwrap();
        while record.run.state == RunState::Failed {
            client.requeue(run.run_id()).await.unwrap();
            record = run.finished().await.unwrap();
        }
        client.get(run.run_id()).await.unwrap();
    }
    working.abort();
    let first = crate::look::read(&Client::embedded(store).in_namespace("alpha").unwrap()).await.unwrap();
    let mut history = History::default();
    history.read(&path).unwrap();
    history.sort();
    Record { history: history.heard, deeds: history.deeds, second: first.clone(), first }
}

/// Plants something into the sound record; the rule must catch it.
async fn caught(rule: Rule, plant: impl FnOnce(&mut Record)) {
    let mut record = sound().await.clone();
    plant(&mut record);
    let found = record.found();
    assert!(found.contains(&rule), "{rule:?} was not caught, but {found:?}");
}

fn any_other(run: RunId, record: &Record) -> RunId {
    *record.first.keys().find(|other| **other != run).unwrap()
}

fn operation() -> Operation {
    Operation(kagzi_core::OperationId::generate())
}

#[tokio::test]
async fn what_a_sound_engine_does_is_accepted() {
    let record = sound().await;
    assert_eq!(record.found(), []);
    let calls = |wanted: fn(&Call) -> bool| record.history.iter().filter(|heard| wanted(&heard.call)).count();
    // Nothing is proved by a record that lacks what the rules are about.
    for (what, count) in [
        ("failures", calls(|call| matches!(call, Call::Fail { .. }))),
        ("requeues", calls(|call| matches!(call, Call::Requeue { .. }))),
        ("cancels", calls(|call| matches!(call, Call::Cancel { .. }))),
        ("replays", calls(|call| matches!(call, Call::Claim { completed, .. } if !completed.is_empty()))),
    ] {
        assert!(count > 0, "no {what}");
    }
}

#[tokio::test]
async fn a_start_that_was_lost_is_caught() {
    caught(Rule::StartIsKept, |record| {
        let (run, _) = record.completed_run();
        record.first.remove(&run);
        record.second.remove(&run);
    })
    .await;
}

#[tokio::test]
async fn a_start_with_another_input_is_caught() {
    caught(Rule::StartIsKept, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.record.input = Payload::json("{\"number\":999}"));
    })
    .await;
}

#[tokio::test]
async fn a_key_that_names_two_runs_is_caught() {
    caught(Rule::KeyNamesOneRun, |record| {
        let at = record.position(|heard| matches!(heard.answer, Answer::Started { .. }));
        let other = any_other(record.history[at].run, record);
        let mut again = record.history[at].clone();
        again.answer = Answer::Started { run: other, created: false };
        record.history.push(again);
    })
    .await;
}

#[tokio::test]
async fn a_run_that_nobody_asked_for_is_caught() {
    caught(Rule::RunWasAskedFor, |record| {
        let (run, _) = record.completed_run();
        record.history.retain(|heard| heard.run != run);
    })
    .await;
}

#[tokio::test]
async fn a_look_at_a_run_of_another_namespace_is_caught() {
    caught(Rule::NamespaceKept, |record| {
        let at = record.position(|heard| matches!(heard.call, Call::Look { .. }));
        record.history[at].namespace = "beta".into();
    })
    .await;
}

#[tokio::test]
async fn a_run_that_never_ends_is_caught() {
    caught(Rule::RunEnded, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.record.run.state = RunState::Sleeping);
    })
    .await;
}

#[tokio::test]
async fn a_run_that_changes_after_its_end_is_caught() {
    caught(Rule::EndIsFinal, |record| {
        let (run, _) = record.completed_run();
        record.second.get_mut(&run).unwrap().record.run.claims += 1;
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_without_a_cause_is_caught() {
    caught(Rule::EndIsExplained, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| {
            stored.record.run.state = RunState::Failed;
            stored.record.run.dead_letter = Some(kagzi_core::DeadLetterReason::RetriesExhausted);
        });
    })
    .await;
}

#[tokio::test]
async fn a_cancellation_that_nobody_asked_for_is_caught() {
    caught(Rule::EndIsExplained, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.record.run.state = RunState::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn a_gap_in_the_attempts_is_caught() {
    caught(Rule::AttemptsAreDense, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.attempts[0].attempt += 1);
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_is_open_after_the_end_is_caught() {
    caught(Rule::AttemptsAreDense, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.attempts[0].state = AttemptState::Running);
    })
    .await;
}

#[tokio::test]
async fn a_step_that_completed_twice_is_caught() {
    caught(Rule::CompletedOnce, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| {
            let mut again = stored
                .attempts
                .iter()
                .filter(|attempt| attempt.state == AttemptState::Completed)
                .max_by_key(|attempt| attempt.attempt)
                .unwrap()
                .clone();
            again.attempt += 1;
            again.fencing_token = again.fencing_token.next();
            stored.attempts.push(again);
        });
    })
    .await;
}

#[tokio::test]
async fn a_completion_that_was_lost_is_caught() {
    caught(Rule::CompletionIsKept, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.attempts.retain(|a| a.state != AttemptState::Completed));
    })
    .await;
}

#[tokio::test]
async fn an_output_that_is_not_the_one_that_was_acknowledged_is_caught() {
    caught(Rule::CompletionIsKept, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| {
            for attempt in &mut stored.attempts {
                attempt.output = Some(Payload::json("\"another\""));
            }
        });
    })
    .await;
}

#[tokio::test]
async fn a_completion_that_nobody_sent_under_its_token_is_caught() {
    caught(Rule::CompletionWasSent, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| {
            for attempt in &mut stored.attempts {
                attempt.fencing_token = FencingToken::new(attempt.fencing_token.get() + 7).unwrap();
            }
        });
    })
    .await;
}

#[tokio::test]
async fn a_result_that_is_not_that_of_the_steps_is_caught() {
    caught(Rule::ResultIsKept, |record| {
        let (run, _) = record.completed_run();
        record.record(run, |stored| stored.record.output = Some(Payload::json("[\"another\"]")));
    })
    .await;
}

#[tokio::test]
async fn a_replay_that_gives_something_else_is_caught() {
    caught(Rule::ReplayIsTheRecord, |record| {
        let (run, _) = record.completed_run();
        let claims =
            record.deeds.iter().filter(|deed| deed.run == run).map(|deed| deed.claims).max().unwrap();
        let replayed =
            |deed: &&mut crate::event::Deed| deed.run == run && deed.claims == claims && deed.got.is_some();
        record.deeds.iter_mut().find(replayed).unwrap().got = Some("\"another\"".to_owned());
    })
    .await;
}

#[tokio::test]
async fn an_execution_that_nobody_permitted_is_caught() {
    caught(Rule::ExecutedByPermission, |record| {
        let mut deed = record.deeds[0].clone();
        (deed.step, deed.got) = ("step-77".to_owned(), None);
        record.deeds.push(deed);
    })
    .await;
}

#[tokio::test]
async fn a_second_execution_of_an_attempt_is_caught() {
    caught(Rule::OneExecutionAnAttempt, |record| {
        let deed = record.deeds.iter().find(|deed| deed.got.is_none()).unwrap().clone();
        record.deeds.push(deed);
    })
    .await;
}

#[tokio::test]
async fn a_repeat_with_another_answer_is_caught() {
    caught(Rule::RepeatsAgree, |record| {
        let at = record
            .position(|heard| matches!(heard.call, Call::Cancel { .. }) && heard.answer == Answer::Done);
        let mut again = record.history[at].clone();
        again.answer = Answer::AlreadyFinished(RunState::Completed);
        record.history.push(again);
    })
    .await;
}

#[tokio::test]
async fn a_token_that_was_given_twice_is_caught() {
    caught(Rule::TokensDiffer, |record| {
        let at = record.position(|heard| matches!(heard.call, Call::Claim { .. }));
        let mut again = record.history[at].clone();
        again.who = "worker-1-0".into();
        record.history.push(again);
    })
    .await;
}

#[tokio::test]
async fn a_look_into_the_past_is_caught() {
    caught(Rule::SomeOrder, |record| {
        let (run, end) = record.completed_run();
        let mut look = record.history[end].clone();
        let token = record.first[&run].record.run.fencing_token.get();
        look.call =
            Call::Look { seen: crate::event::Seen { state: RunState::Running, token, dead_letter: None } };
        (look.called, look.returned, look.answer) = (look.returned + 1, look.returned + 2, Answer::Done);
        record.history.push(look);
        record.history.sort_by_key(|heard| heard.called);
    })
    .await;
}

#[tokio::test]
async fn a_write_that_was_accepted_under_a_lease_that_was_taken_is_caught() {
    caught(Rule::SomeOrder, |record| {
        let (run, end) = record.completed_run();
        // Just before the last write another worker got the run, with all that was completed by then.
        let held = record.history[..end]
            .iter()
            .rfind(|heard| heard.run == run && matches!(heard.call, Call::Claim { .. }));
        let mut stolen = held.unwrap().clone();
        let mut by_then = std::collections::BTreeMap::new();
        for heard in record.history[..end].iter().filter(|heard| heard.run == run) {
            if let (Call::Complete { step, output, .. }, true) =
                (&heard.call, heard.answer.is_acknowledgement())
            {
                by_then.insert(step.clone(), output.clone());
            }
        }
        if let Call::Claim { token, claims, completed, .. } = &mut stolen.call {
            (*token, *claims, *completed) = (*token + 1, *claims + 1, by_then);
        }
        let moment = record.history[end].called;
        (stolen.called, stolen.returned, stolen.who) = (moment - 2, moment - 1, "worker-1-0".into());
        record.history.push(stolen);
        record.history.sort_by_key(|heard| heard.called);
        record.record(run, |stored| {
            stored.record.run.fencing_token = stored.record.run.fencing_token.next();
        });
    })
    .await;
}

#[tokio::test]
async fn a_claim_without_a_step_that_was_acknowledged_is_caught() {
    caught(Rule::SomeOrder, |record| {
        let at = record
            .position(|heard| matches!(&heard.call, Call::Claim { completed, .. } if !completed.is_empty()));
        if let Call::Claim { completed, .. } = &mut record.history[at].call {
            completed.clear();
        }
    })
    .await;
}

#[tokio::test]
async fn a_begin_that_skips_a_number_is_caught() {
    caught(Rule::SomeOrder, |record| {
        let at = record.position(|heard| heard.answer == Answer::Begun(Begun::Execute(1)));
        record.history[at].answer = Answer::Begun(Begun::Execute(2));
    })
    .await;
}

#[tokio::test]
async fn a_requeue_of_a_run_that_did_not_fail_is_caught() {
    caught(Rule::SomeOrder, |record| {
        let (_, end) = record.completed_run();
        let mut requeue = record.history[end].clone();
        requeue.call = Call::Requeue { operation: operation() };
        (requeue.called, requeue.returned, requeue.answer) =
            (requeue.returned + 1, requeue.returned + 2, Answer::Done);
        record.history.push(requeue);
        record.history.sort_by_key(|heard| heard.called);
    })
    .await;
}

#[tokio::test]
async fn an_effect_of_which_nobody_heard_explains_what_is_seen_after_it_and_not_what_was_seen_before() {
    let mut record = sound().await.clone();
    let (run, end) = record.completed_run();
    // The last answer was lost: that the run completed explains itself by the call.
    record.history[end].answer = Answer::Unknown;
    record.history[end].returned = u64::MAX;
    assert_eq!(record.found(), []);
    // Nobody else could have completed it.
    record.history.remove(end);
    let found = record.found();
    assert!(found.contains(&Rule::SomeOrder) && found.contains(&Rule::CompletionWasSent), "{run}: {found:?}");
}
