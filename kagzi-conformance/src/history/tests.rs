//! The checker itself, on histories made by hand: those that some order explains are accepted, those
//! with a bug in them are not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    BeginOutcome, Claim, ClaimedRun, Clock, FencingToken, ManualClock, Namespace, OperationId, RunId,
    SharedStore, Store, Then, Timestamp,
};

use super::checker::{Duty, Finding, Interval, Specification, Unexplained, check, explain};
use super::recorder::{Heard, Recorder};
use super::slot::{SlotRules, take_apart};
use super::tell;
use crate::model::{CROWD, Plan, World};
use crate::record::{Answer, Call, Log, Reply};
use crate::scenario::suite_rules;
use crate::violation::Proves;

/// A register that holds a number: the textbook's example.
#[derive(Debug)]
struct Register;

#[derive(Clone, Debug)]
enum Access {
    Write(u32),
    Read(u32),
}

impl Specification for Register {
    type State = u32;
    type Event = Access;

    fn fingerprint(&self, state: &u32) -> u64 {
        u64::from(*state)
    }

    fn changes_nothing(&self, event: &Access) -> bool {
        matches!(event, Access::Read(_))
    }

    fn after(&self, state: &u32, event: &Access) -> Vec<u32> {
        match event {
            Access::Write(value) => vec![*value],
            Access::Read(value) if value == state => vec![*state],
            Access::Read(_) => Vec::new(),
        }
    }
}

fn must(called: u64, returned: u64, event: Access) -> Interval<Access> {
    Interval { called, returned, duty: Duty::Must, event }
}

fn may(called: u64, returned: u64, event: Access) -> Interval<Access> {
    Interval { duty: Duty::May, ..must(called, returned, event) }
}

fn is_explained(history: &[Interval<Access>]) -> bool {
    check(&Register, 0, history).is_ok()
}

#[test]
fn one_after_the_other_is_explained_by_that_order_and_no_other() {
    use Access::{Read, Write};
    assert!(is_explained(&[must(1, 2, Write(7)), must(3, 4, Read(7))]));
    assert!(!is_explained(&[must(1, 2, Write(7)), must(3, 4, Read(0))]), "a stale read");
    assert!(!is_explained(&[must(1, 2, Read(7)), must(3, 4, Write(7))]), "a read of the future");
}

#[test]
fn what_overlaps_may_come_in_any_order_but_in_one() {
    use Access::{Read, Write};
    for seen in [0, 7] {
        assert!(is_explained(&[must(1, 4, Write(7)), must(2, 3, Read(seen))]));
    }
    // Two readers within one write: once the new value was seen, it stays.
    assert!(is_explained(&[must(1, 9, Write(7)), must(2, 3, Read(0)), must(4, 5, Read(7))]));
    assert!(!is_explained(&[must(1, 9, Write(7)), must(2, 3, Read(7)), must(4, 5, Read(0))]));
    // Two writers and two readers who disagree about which came last.
    let writers = [must(1, 4, Write(1)), must(2, 3, Write(2))];
    for (first, second, explained) in [(1, 1, true), (2, 2, true), (1, 2, false), (2, 1, false)] {
        let readers = [must(5, 6, Read(first)), must(7, 8, Read(second))];
        assert_eq!(is_explained(&[writers.clone(), readers].concat()), explained, "{first} then {second}");
    }
}

#[test]
fn what_may_have_happened_explains_only_what_overlaps_it() {
    use Access::{Read, Write};
    assert!(is_explained(&[may(1, 5, Write(7)), must(2, 3, Read(7))]));
    assert!(is_explained(&[may(1, 5, Write(7)), must(2, 3, Read(0))]), "it need not have happened");
    assert!(!is_explained(&[must(1, 2, Read(7)), may(3, 4, Write(7)), must(5, 6, Read(7))]), "not before");
    assert!(!is_explained(&[may(1, 2, Write(7)), must(3, 4, Read(0)), must(5, 6, Read(7))]), "nor after");
    // Any number of times.
    let often = [may(1, 9, Write(7)), must(2, 3, Write(0)), must(4, 5, Read(7)), must(6, 7, Write(0))];
    assert!(is_explained(&[&often[..], &[must(8, 10, Read(7))]].concat()));
}

#[test]
fn the_piece_that_no_order_explains_is_found_with_the_states_before_it() {
    use Access::{Read, Write};
    let history = [
        must(1, 4, Write(1)),
        must(2, 3, Write(2)),
        must(5, 8, Read(1)),
        must(6, 7, Read(1)),
        must(9, 12, Write(3)),
        must(10, 11, Read(2)),
    ];
    let unexplained = check(&Register, 0, &history).unwrap_err();
    assert_eq!(unexplained.piece, 4..6);
    let last = unexplained.trail.last().unwrap();
    assert_eq!(*last, (4, vec![1]), "what was read tells which write came last");
    assert_eq!(unexplained.finding, Finding::Unexplained { furthest: 1 });
}

#[test]
fn many_in_flight_together_are_judged_in_little_time() {
    use Access::{Read, Write};
    // 28 operations at once have 28! orders; the memory makes them few.
    let mut history: Vec<_> = (0..8).map(|n| must(1 + n, 100 + n, Write(7))).collect();
    history.extend((0..20).map(|n| must(20 + n, 120 + n, Read(7))));
    assert!(is_explained(&history));
    history.push(must(40, 150, Read(8)));
    assert_eq!(explain(&Register, &[0], &history), Finding::Unexplained { furthest: 28 });
}

/// Plays random calls one at a time over the reference store and gives the record.
async fn recorded(calls: usize) -> (MemoryStore, Recorder) {
    let clock = ManualClock::default();
    let store = MemoryStore::new(std::sync::Arc::new(clock.clone()), suite_rules());
    let recorder = Recorder::new(clock.clone());
    let mut world = World::new(CROWD).unwrap();
    let mut dice = fastrand::Rng::with_seed(5);
    for _ in 0..calls {
        match world.plan(&mut dice, clock.now()) {
            Plan::Turn(by) => recorder.turn(by, Duration::ZERO),
            Plan::Send(call) => {
                let answer = recorder.send("one", &store, (*call).clone()).await;
                world.learn(&call, &answer);
            }
        }
    }
    (store, recorder)
}

type History = Vec<(Heard, Vec<Timestamp>)>;

fn judged(history: &History) -> Result<(), String> {
    let rules = SlotRules(suite_rules());
    for events in take_apart(history).into_values() {
        if let Err(unexplained) = check(&rules, None, &events) {
            let log = Log::default();
            let violation = tell::violation(&log, &rules, history, &events, &unexplained, "by hand");
            return Err(format!("{violation}\n{}", log.render().text()));
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_the_reference_store_answers_is_explained() {
    let (_, recorder) = recorded(1_500).await;
    judged(&recorder.history()).unwrap();
}

/// Changes one answer of a good history by `spoil`, at each place where that can be done.
async fn spoilt(spoil: impl Fn(&mut Heard) -> bool) {
    let (_, recorder) = recorded(1_500).await;
    let good = recorder.history();
    let mut spoilt = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        if spoil(&mut bad[at].0) {
            assert!(judged(&bad).is_err(), "{:?} was explained", bad[at]);
            spoilt += 1;
        }
        if spoilt == 20 {
            break;
        }
    }
    assert!(spoilt > 0, "the history has no place for it");
}

#[tokio::test]
async fn an_attempt_with_another_number_is_not_explained() {
    spoilt(|heard| match &mut heard.answer {
        Ok(Reply::Begun(BeginOutcome::Execute { attempt })) => {
            *attempt += 1;
            true
        }
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn a_begin_that_was_told_to_execute_what_another_executes_is_not_explained() {
    spoilt(|heard| match &mut heard.answer {
        Ok(Reply::Begun(outcome @ BeginOutcome::InProgress { .. })) => {
            *outcome = BeginOutcome::Execute { attempt: 1 };
            true
        }
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn a_claim_with_a_token_that_does_not_grow_is_not_explained() {
    spoilt(|heard| match &mut heard.answer {
        Ok(Reply::Claimed(claimed)) if !claimed.is_empty() => {
            let run = &mut claimed[0].run;
            run.fencing_token = FencingToken::new(run.fencing_token.get() - 1).unwrap();
            true
        }
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn a_write_that_was_accepted_from_a_lease_that_is_lost_is_not_explained() {
    spoilt(|heard| match (&heard.call, &heard.answer) {
        (Call::Release(_), Err(refusal)) if refusal.reason == "LEASE_LOST" => {
            heard.answer = Ok(Reply::Released);
            true
        }
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn a_row_that_lost_an_update_is_not_explained() {
    spoilt(|heard| match &mut heard.answer {
        Ok(Reply::Record(record)) if record.run.claims > 0 => {
            record.run.claims -= 1;
            true
        }
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn two_claims_that_both_got_one_run_under_one_token_are_told_in_few_calls() {
    let (store, recorder) = recorded(200).await;
    let claim = |by: &str| Claim {
        namespace: crate::scenario::namespace("acme").unwrap(),
        queues: vec![crate::scenario::queue("orders").unwrap()],
        workflow_types: Vec::new(),
        worker_id: crate::scenario::worker(by).unwrap(),
        lease_length: Duration::from_secs(30),
        limit: 1,
        steps_limit: 1000,
        operation: OperationId::generate(),
    };
    recorder.turn(Duration::from_hours(1), Duration::ZERO);
    let first = claim("w1");
    let answer = recorder.send("one", &store, Call::Claim(first)).await;
    let mut history = recorder.history();
    // Another claim, at the same time, was given the same lease under its own name.
    let (mut stolen, moments) = history.last().unwrap().clone();
    let second = claim("w2");
    let Ok(Reply::Claimed(taken)) = answer else { panic!("nothing to claim: {answer:?}") };
    let forged: Vec<ClaimedRun> = taken
        .into_iter()
        .map(|mut taken| {
            taken.lease.lease.worker_id = second.worker_id.clone();
            taken.run.worker_id = Some(second.worker_id.clone());
            taken.run.claim_operation = Some(second.operation);
            taken
        })
        .collect();
    stolen.call = Call::Claim(second);
    stolen.answer = Answer::Ok(Reply::Claimed(forged));
    history.push((stolen, moments));
    let told = judged(&history).unwrap_err();
    assert!(told.contains("no order explains the 2 calls marked with *"), "{told}");
    let claims: Vec<&str> = told.lines().filter(|line| line.contains("] one: claim(")).collect();
    assert_eq!(claims.iter().filter(|line| line.contains("  * [")).count(), 2, "{told}");
    // How the run came to be there to be taken, and why the second claim should not have it.
    assert!(told.contains("] one: start("), "{told}");
    assert!(told.contains("the run: not handed over, it is"), "{told}");
    assert!(told.contains("the run: handed over to w"), "{told}");
    store.close().await.unwrap();
}

/// The runs that calls of a history completed.
fn completed(history: &History) -> Vec<(Namespace, RunId)> {
    let by = |heard: &Heard| match (&heard.call, &heard.answer) {
        (Call::CompleteRun(complete), Ok(_)) => Some(complete.lease.clone()),
        (Call::CompleteStep(complete), Ok(_)) if matches!(complete.then, Then::CompleteRun(_)) => {
            Some(complete.lease.clone())
        }
        _ => None,
    };
    history.iter().filter_map(|(heard, _)| by(heard)).map(|lease| (lease.namespace, lease.run_id)).collect()
}

#[tokio::test]
async fn an_output_that_is_not_there_is_told_with_the_call_that_gave_it() {
    let (store, recorder) = recorded(600).await;
    let completed = completed(&recorder.history());
    assert!(completed.len() > 2, "{completed:?}");
    for (namespace, run_id) in completed.into_iter().rev().take(5) {
        recorder.send("reader", &store, Call::GetRun(namespace, run_id)).await.ok();
        let mut bad = recorder.history();
        // The run may have been removed since.
        let Some((Heard { answer: Ok(Reply::Record(record)), .. }, _)) = bad.last_mut() else { continue };
        let right = record.output.take().unwrap();
        let told = judged(&bad).unwrap_err();
        let different =
            [format!("  output: {right:?}\nseen      output: none\n"), ", output none".to_owned()];
        for part in different {
            assert!(told.contains(&part), "{part} is missing in {told}");
        }
        // The call that read it, and the one that completed the run, however long ago.
        let line = |parts: [&str; 2]| told.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(line(["  * [", "] reader: get_run("]), "{told}");
        assert!(line(["] one: ", "complete_run("]) || line(["] one: ", "then complete the run"]), "{told}");
        assert!(line(["] one: ", "claim("]) && line(["] one: ", "start("]), "and what led there: {told}");
        return;
    }
    panic!("every completed run was removed");
}

#[tokio::test]
async fn every_call_in_conflict_is_told_however_many_there_are() {
    let (_, recorder) = recorded(1_500).await;
    let good = recorder.history();
    let rules = SlotRules(suite_rules());
    let mut told_of = 0;
    for at in 0..good.len() {
        if told_of == 15 {
            break;
        }
        let mut bad = good.clone();
        let Ok(Reply::Begun(BeginOutcome::Execute { attempt })) = &mut bad[at].0.answer else { continue };
        *attempt += 1;
        for events in take_apart(&bad).into_values() {
            let Err(unexplained) = check(&rules, None, &events) else { continue };
            let log = Log::default();
            let told = tell::violation(&log, &rules, &bad, &events, &unexplained, "by hand");
            let text = log.render().text().to_owned();
            let marked = text.lines().filter(|line| line.contains("  * [")).count();
            let (_, counted) = told.seen.split_once("no order explains the ").unwrap();
            let counted = counted.split(' ').next().unwrap().parse().unwrap_or(1);
            assert!(marked > 0 && marked == counted, "{told}\n{text}");
            assert!(!told.expected.is_empty() && told.seen.contains("attempt"), "{told}\n{text}");
            told_of += 1;
        }
    }
    assert!(told_of > 10, "{told_of} are too few");
}

#[tokio::test]
async fn what_cannot_be_judged_is_no_fault_of_the_store() {
    let (_, recorder) = recorded(50).await;
    let history = recorder.history();
    let rules = SlotRules(suite_rules());
    let events = take_apart(&history).into_values().next().unwrap();
    let (piece, trail) = (0..events.len(), vec![(0, vec![None])]);
    let unexplained = Unexplained { piece, trail, finding: Finding::TooTangled };
    let told = tell::violation(&Log::default(), &rules, &history, &events, &unexplained, "by hand");
    assert_eq!(told.proves, Proves::Nothing, "{told}");
    assert!(told.rule.contains("says nothing of the store"), "{told}");
}

/// The kinds of calls with which the caller that went first began a history.
async fn began(plan: u64) -> Vec<std::mem::Discriminant<Call>> {
    let clock = ManualClock::default();
    let store: SharedStore = Arc::new(MemoryStore::new(Arc::new(clock.clone()), suite_rules()));
    let recorder = Arc::new(Recorder::new(clock));
    let world = Arc::new(Mutex::new(World::new(CROWD).unwrap()));
    super::play(&recorder, &world, &[Arc::clone(&store), store], plan, 11).await.unwrap();
    let calls = recorder.history();
    let first = calls[0].0.caller.clone();
    let of_first = calls.into_iter().take_while(|(heard, _)| heard.caller == first);
    of_first.map(|(heard, _)| std::mem::discriminant(&heard.call)).collect()
}

// On one thread a caller that meets nobody's answers goes on until its burst is over.
#[tokio::test]
async fn the_seed_that_is_told_plays_the_same_plan() {
    let plans: Vec<u64> = super::plans(1).take(3).collect();
    assert_eq!(plans[0], 1, "the seed itself plays first");
    assert_eq!(super::plans(plans[2]).next(), Some(plans[2]), "and so does any other");
    let again = super::again(plans[2]);
    let variables = format!("KAGZI_CONFORMANCE_SEED={} KAGZI_CONFORMANCE_HISTORY_OPERATIONS=1 ", plans[2]);
    assert!(again.contains(&variables), "{again}");
    assert!(began(plans[2]).await.len() > 3);
    assert!(began(plans[2]).await == began(plans[2]).await, "the same dice");
    assert!(began(plans[1]).await != began(plans[2]).await, "other dice");
}
