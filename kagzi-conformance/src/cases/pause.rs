//! Pausing queues: what a paused queue holds back, and what it does not.

use std::time::Duration;

use kagzi_core::{
    Claim, DeadLetterReason, MAX_PAUSE_REASON_BYTES, OperationId, Pause, QueueChange, QueueDepth,
    QueueOutcome, RunId, RunState, SetQueueState, StartAt, StartRun, Topic,
};

use super::wake_up::woken;
use crate::case::cases;
use crate::scenario::{
    LEASE, Scenario, equal, fatal, hiccup, invalid, queue, race, refused, too_large, workflow_type,
};
use crate::violation::{Verdict, Violation};

cases! {
    "pause";
    [13] a_paused_queue_gives_nothing_and_others_go_on;
    [13] a_paused_queue_gives_nothing_of_the_asked_types_either;
    [13] the_runs_of_a_paused_queue_take_no_place_in_a_claim;
    [11] a_pause_is_of_one_namespace;
    [12] queues_whose_names_differ_by_a_byte_are_paused_apart;
    [10, 13] starts_are_kept_and_taken_in_order_after_the_resumption;
    [2] what_is_held_goes_on_so_that_the_queue_drains;
    [10] a_sleeper_comes_due_and_waits;
    [10] a_retry_comes_due_and_waits;
    [10, 14] an_expired_lease_is_taken_back_and_the_run_waits;
    [14] a_poison_run_is_given_up_in_a_paused_queue;
    [6] a_deadline_passes_in_a_paused_queue;
    [6] cancelling_and_requeueing_go_on;
    [10] resuming_wakes_the_queue;
    [8] a_claim_sent_again_gives_what_it_took_before_the_pause;
    [] a_second_pause_gives_the_new_reason_and_the_old_moment;
    [] resuming_an_open_queue_changes_nothing;
    [8] a_pause_sent_again_is_the_first_one_however_late;
    [8] a_resumption_sent_again_is_the_first_one_however_late;
    [8] an_operation_that_paused_cannot_resume;
    [15] of_many_pauses_at_once_one_pauses;
    [12] a_reason_outside_its_rule_is_refused_and_changes_nothing;
    [12] a_reason_at_its_limit_comes_back_to_the_byte;
    [] queue_depths_tell_of_pauses_with_and_without_runs;
    [9] a_pause_is_there_after_a_reopen needs Reopen;
    [9] what_one_handle_paused_the_other_finds_paused needs SecondHandle;
}

const REASON: &str = "the mail server is away";

fn change(s: &Scenario, change: QueueChange) -> SetQueueState {
    let start = s.start_request();
    let operation = OperationId::generate();
    SetQueueState { namespace: start.namespace, queue: start.queue, change, operation }
}

fn pausing(s: &Scenario) -> SetQueueState {
    change(s, QueueChange::Pause { reason: REASON.to_owned() })
}

fn resuming(s: &Scenario) -> SetQueueState {
    change(s, QueueChange::Resume)
}

async fn set(s: &Scenario, request: SetQueueState) -> Result<QueueOutcome, Violation> {
    s.store().set_queue_state(request).await.map_err(|e| Violation::refused("changing a queue", &e))
}

pub(super) async fn pause(s: &Scenario) -> Verdict {
    let outcome = set(s, pausing(s)).await?;
    equal("an open queue is paused", &QueueOutcome::Changed, &outcome)
}

pub(super) async fn resume(s: &Scenario) -> Verdict {
    let outcome = set(s, resuming(s)).await?;
    equal("a paused queue is resumed", &QueueOutcome::Changed, &outcome)
}

async fn depths(s: &Scenario) -> Result<Vec<QueueDepth>, Violation> {
    s.store().queue_depths(s.namespace()).await.map_err(|e| Violation::refused("queue depths", &e))
}

async fn pauses(s: &Scenario) -> Result<Vec<(String, Option<Pause>)>, Violation> {
    Ok(depths(s).await?.into_iter().map(|depth| (depth.queue.to_string(), depth.pause)).collect())
}

fn ids(claimed: &[kagzi_core::ClaimedRun]) -> Vec<RunId> {
    claimed.iter().map(|run| run.run.run_id).collect()
}

async fn a_paused_queue_gives_nothing_and_others_go_on(s: Scenario) -> Verdict {
    let (mail, orders) = (s.on_queue("mail")?, s.on_queue("orders")?);
    mail.start_many(3).await?;
    let going_on = orders.start_many(3).await?.len();
    pause(&mail).await?;
    mail.nothing_claimable("a claim takes nothing from a paused queue").await?;
    let queues = vec![queue("mail")?, queue("orders")?, queue("mail")?];
    let taken = s.claim_as(Claim { queues, ..s.claim_request("w1", 10)? }).await?;
    let from: Vec<&str> = taken.iter().map(|run| run.run.queue.as_str()).collect();
    equal("a claim over several queues takes from the open ones", &vec!["orders"; going_on], &from)?;
    resume(&mail).await?;
    equal("and from the others once they are resumed [10]", &3, &mail.claim("w1", 10).await?.len())
}

async fn a_paused_queue_gives_nothing_of_the_asked_types_either(s: Scenario) -> Verdict {
    let (mail, orders) = (s.on_queue("mail")?, s.on_queue("orders")?);
    mail.start_one().await?;
    let other = orders.start_one().await?;
    pause(&mail).await?;
    let workflow_types = vec![workflow_type("ship")?, workflow_type("bill")?];
    let queues = vec![queue("mail")?, queue("orders")?];
    let taken = s.claim_as(Claim { queues, workflow_types, ..s.claim_request("w1", 10)? }).await?;
    equal("a claim of certain types takes nothing from a paused queue", &vec![other], &ids(&taken))
}

async fn the_runs_of_a_paused_queue_take_no_place_in_a_claim(s: Scenario) -> Verdict {
    let (mail, orders) = (s.on_queue("mail")?, s.on_queue("orders")?);
    mail.start_many(50).await?;
    s.turn(Duration::from_secs(1));
    let behind = orders.start_one().await?;
    pause(&mail).await?;
    let queues = vec![queue("mail")?, queue("orders")?];
    let taken = s.claim_as(Claim { queues, ..s.claim_request("w1", 1)? }).await?;
    equal("what is held back in front hides nothing behind it [10]", &vec![behind], &ids(&taken))
}

async fn a_pause_is_of_one_namespace(s: Scenario) -> Verdict {
    let other = s.in_namespace("globex")?;
    s.start_one().await?;
    let theirs = other.start_one().await?;
    pause(&s).await?;
    equal(
        "a queue of the same name goes on elsewhere [11]",
        &theirs,
        &other.claim_one("w1").await?.run_id(),
    )?;
    equal(
        "nothing is told of the pause there [11]",
        &vec![("orders".to_owned(), None)],
        &pauses(&other).await?,
    )?;
    let outcome = set(&other, resuming(&other)).await?;
    equal("nor is there anything to resume [11]", &QueueOutcome::Unchanged, &outcome)?;
    s.nothing_claimable("a pause is ended by no other namespace [11]").await
}

async fn queues_whose_names_differ_by_a_byte_are_paused_apart(s: Scenario) -> Verdict {
    let names = ["mail", "Mail", "mail ä", "mail a\u{308}", "mai", "mail'", "mail%"];
    for name in names {
        s.on_queue(name)?.start_one().await?;
    }
    pause(&s.on_queue("mail")?).await?;
    for name in names {
        let expected = usize::from(name != "mail");
        let taken = s.on_queue(name)?.claim("w1", 10).await?.len();
        equal("a pause is of the queue of exactly this name [12]", &(name, expected), &(name, taken))?;
    }
    Ok(())
}

async fn starts_are_kept_and_taken_in_order_after_the_resumption(s: Scenario) -> Verdict {
    let mut started = vec![s.start_one().await?];
    pause(&s).await?;
    for _ in 0..5 {
        s.turn(Duration::from_secs(1));
        started.push(s.start_one().await?);
    }
    let states = [RunState::Pending; 6];
    for (run_id, state) in started.iter().zip(states) {
        equal("a start while the queue is paused is kept", &state, &s.run(*run_id).await?.run.state)?;
    }
    resume(&s).await?;
    let taken = s.claim("w1", 10).await?;
    equal("what was started while it was paused is taken in its order [13]", &started, &ids(&taken))
}

async fn what_is_held_goes_on_so_that_the_queue_drains(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let waiting = s.start_one().await?;
    held.begin("a").await?;
    pause(&s).await?;
    s.turn(Duration::from_secs(10));
    held.heartbeat().await?;
    held.complete("a", 1, "1").await?;
    held.step("b", "2").await?;
    let running: Vec<u64> = depths(&s).await?.iter().map(|depth| depth.running).collect();
    equal("a lease is kept while its queue is paused [1]", &vec![1], &running)?;
    held.complete_run("3").await?;
    let state = s.run(held.run_id()).await?.run.state;
    equal("what is held is worked on to its end [2]", &RunState::Completed, &state)?;
    let left: Vec<_> = depths(&s).await?.iter().map(|depth| (depth.running, depth.pending)).collect();
    equal("and then the queue has drained", &vec![(0, 1)], &left)?;
    equal("what waits stays as it is", &RunState::Pending, &s.run(waiting).await?.run.state)
}

/// A run that waits in a paused queue is PENDING, is not handed out, and is once the queue is resumed.
async fn waits(s: &Scenario, run_id: RunId, rule: &str) -> Verdict {
    s.nothing_claimable("what comes due in a paused queue is not handed out").await?;
    equal(rule, &RunState::Pending, &s.run(run_id).await?.run.state)?;
    resume(s).await?;
    equal("and is handed out once the queue is resumed [10]", &run_id, &s.claim_one("w2").await?.run_id())
}

async fn a_sleeper_comes_due_and_waits(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let delayed = StartRun { start_at: StartAt::After(LEASE * 10), ..s.start_request() };
    s.start(delayed).await?;
    pause(&s).await?;
    held.sleep("nap", LEASE).await?;
    s.turn(LEASE);
    equal("a reap wakes the sleepers of a paused queue [10]", &1, &s.reap_all().await?.woken)?;
    waits(&s, held.run_id(), "a sleeper of a paused queue comes due [10]").await
}

async fn a_retry_comes_due_and_waits(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    pause(&s).await?;
    held.fail("a", 1, hiccup()).await?;
    s.turn(Duration::from_mins(1));
    waits(&s, held.run_id(), "a retry in a paused queue comes due, by a claim that may not take it [10]")
        .await
}

async fn an_expired_lease_is_taken_back_and_the_run_waits(s: Scenario) -> Verdict {
    let held = s.held().await?;
    pause(&s).await?;
    s.turn(LEASE);
    let reaped = s.reap_all().await?;
    equal("a reap takes back the leases of a paused queue [14]", &1, &reaped.leases_expired)?;
    waits(&s, held.run_id(), "a run that lost its lease in a paused queue is due [10]").await
}

async fn a_poison_run_is_given_up_in_a_paused_queue(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for number in 0..3 {
        s.claim_one(&format!("w{number}")).await?;
        if number == 2 {
            pause(&s).await?;
        }
        s.turn(LEASE);
    }
    equal("a poison run of a paused queue is given up [14]", &1, &s.reap_all().await?.poisoned)?;
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter);
    equal(
        "and is a dead letter, paused or not [14]",
        &(RunState::Failed, Some(DeadLetterReason::Poison)),
        &found,
    )
}

async fn a_deadline_passes_in_a_paused_queue(s: Scenario) -> Verdict {
    let run_id = s.start(StartRun { run_timeout: Some(LEASE), ..s.start_request() }).await?.run_id;
    pause(&s).await?;
    s.turn(LEASE);
    equal("a pause is no reprieve from a deadline", &1, &s.reap_all().await?.runs_timed_out)?;
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter);
    equal("it is a dead letter [6]", &(RunState::Failed, Some(DeadLetterReason::RunTimeout)), &found)
}

async fn cancelling_and_requeueing_go_on(s: Scenario) -> Verdict {
    let dead = s.held().await?;
    dead.fail_run(fatal()).await?;
    let held = s.held().await?.run_id();
    let unwanted = s.start_one().await?;
    pause(&s).await?;
    for run_id in [unwanted, held] {
        s.cancel(run_id).await?;
        let state = s.run(run_id).await?.run.state;
        equal("a run of a paused queue is cancelled at once", &RunState::Cancelled, &state)?;
    }
    s.requeue(dead.run_id()).await?;
    waits(&s, dead.run_id(), "a dead letter is put back to work in a paused queue").await
}

async fn resuming_wakes_the_queue(s: Scenario) -> Verdict {
    s.start_one().await?;
    pause(&s).await?;
    let topic = Topic::Queue(s.namespace().clone(), s.start_request().queue);
    let waiter = s.store().wake_hub().subscribe([topic]);
    resume(&s).await?;
    woken(waiter, "a resumption wakes who waits for the queue [10]").await
}

async fn a_claim_sent_again_gives_what_it_took_before_the_pause(s: Scenario) -> Verdict {
    s.start_many(3).await?;
    let request = s.claim_request("w1", 2)?;
    let first = s.claim_as(request.clone()).await?;
    pause(&s).await?;
    let again = s.claim_as(request).await?;
    equal("a claim sent again after a pause gets its first answer [8]", &first, &again)
}

async fn a_second_pause_gives_the_new_reason_and_the_old_moment(s: Scenario) -> Verdict {
    let since = s.now();
    pause(&s).await?;
    s.turn(Duration::from_secs(5));
    let reason = "and will be for days".to_owned();
    let outcome = set(&s, change(&s, QueueChange::Pause { reason: reason.clone() })).await?;
    equal("a paused queue is paused already", &QueueOutcome::Unchanged, &outcome)?;
    let expected = vec![("orders".to_owned(), Some(Pause { reason, since }))];
    equal("the reason is the last one, the moment the first", &expected, &pauses(&s).await?)?;
    resume(&s).await?;
    s.turn(Duration::from_secs(5));
    let since = s.now();
    pause(&s).await?;
    let expected = vec![("orders".to_owned(), Some(Pause { reason: REASON.to_owned(), since }))];
    equal("a pause after a resumption begins anew", &expected, &pauses(&s).await?)
}

async fn resuming_an_open_queue_changes_nothing(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let before = s.snapshot(run_id).await?;
    let outcome = set(&s, resuming(&s)).await?;
    equal("a queue that nobody paused is open", &QueueOutcome::Unchanged, &outcome)?;
    equal("and told of as before", &vec![("orders".to_owned(), None)], &pauses(&s).await?)?;
    s.unchanged(&before, "a resumption touches no run").await?;
    equal("so it gives its run [10]", &run_id, &s.claim_one("w1").await?.run_id())
}

async fn a_pause_sent_again_is_the_first_one_however_late(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let first = pausing(&s);
    set(&s, first.clone()).await?;
    let again = set(&s, first.clone()).await?;
    equal("a pause sent again gets its first answer [8]", &QueueOutcome::Changed, &again)?;
    resume(&s).await?;
    let late = set(&s, first).await?;
    equal("however late it comes [8]", &QueueOutcome::Changed, &late)?;
    equal(
        "a pause sent again after the resumption pauses nothing [8]",
        &run_id,
        &s.claim_one("w1").await?.run_id(),
    )
}

async fn a_resumption_sent_again_is_the_first_one_however_late(s: Scenario) -> Verdict {
    s.start_one().await?;
    let idle = resuming(&s);
    set(&s, idle.clone()).await?;
    pause(&s).await?;
    let again = set(&s, idle).await?;
    equal("a resumption sent again gets its first answer [8]", &QueueOutcome::Unchanged, &again)?;
    let second = resuming(&s);
    set(&s, second.clone()).await?;
    pause(&s).await?;
    let again = set(&s, second).await?;
    equal("also one that resumed [8]", &QueueOutcome::Changed, &again)?;
    s.nothing_claimable("a resumption sent again after another pause resumes nothing [8]").await
}

async fn an_operation_that_paused_cannot_resume(s: Scenario) -> Verdict {
    s.start_one().await?;
    let first = pausing(&s);
    let operation = first.operation;
    set(&s, first).await?;
    let before = pauses(&s).await?;
    let answer = s.store().set_queue_state(SetQueueState { operation, ..resuming(&s) }).await;
    refused(&answer, "OPERATION_CONFLICT", "the id of a pause stands for no resumption [8]")?;
    equal("and the conflict changes nothing [15]", &before, &pauses(&s).await?)?;
    s.nothing_claimable("the queue stays paused [15]").await
}

async fn of_many_pauses_at_once_one_pauses(s: Scenario) -> Verdict {
    for round in 0..5 {
        let outcomes = race(16, |_| {
            let s = s.clone();
            async move { set(&s, pausing(&s)).await }
        })
        .await?;
        let changed = outcomes.iter().filter(|outcome| **outcome == QueueOutcome::Changed).count();
        equal("of many pauses at once one finds the queue open [15]", &(round, 1), &(round, changed))?;
        resume(&s).await?;
    }
    Ok(())
}

async fn a_reason_outside_its_rule_is_refused_and_changes_nothing(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let with = |reason: String| change(&s, QueueChange::Pause { reason });
    let long = with("x".repeat(MAX_PAUSE_REASON_BYTES + 1));
    too_large(&s.store().set_queue_state(long).await, "reason", "the length of a reason is limited [12]")?;
    for reason in ["two\nlines", "nothing\0", "\u{1b}[2J"] {
        let answer = s.store().set_queue_state(with(reason.to_owned())).await;
        invalid(&answer, "reason", "a reason is text of one line [12]")?;
    }
    let rule = "a pause that is refused pauses nothing [15]";
    equal(rule, &run_id, &s.claim_one("w1").await?.run_id())
}

async fn a_reason_at_its_limit_comes_back_to_the_byte(s: Scenario) -> Verdict {
    let longest = format!("'\"\\%🦀 {}", "ä".repeat((MAX_PAUSE_REASON_BYTES - 9) / 2));
    for reason in [longest, String::new(), " ".to_owned()] {
        set(&s, change(&s, QueueChange::Pause { reason: reason.clone() })).await?;
        let told: Vec<String> =
            pauses(&s).await?.into_iter().filter_map(|(_, pause)| Some(pause?.reason)).collect();
        equal("a reason comes back to the byte [12]", &vec![reason], &told)?;
    }
    Ok(())
}

async fn queue_depths_tell_of_pauses_with_and_without_runs(s: Scenario) -> Verdict {
    let since = s.now();
    s.on_queue("b")?.start_one().await?;
    for name in ["a", "c", "b", "d"] {
        pause(&s.on_queue(name)?).await?;
    }
    resume(&s.on_queue("d")?).await?;
    s.turn(Duration::from_secs(1));
    let pause = Some(Pause { reason: REASON.to_owned(), since });
    let empty = |name: &str| Ok(QueueDepth { pause: pause.clone(), ..QueueDepth::empty(queue(name)?) });
    let b = QueueDepth { pending: 1, oldest_due_at: Some(since), ..empty("b")? };
    let expected = vec![empty("a")?, b, empty("c")?];
    equal("depths show what is paused, by name, with runs and without", &expected, &depths(&s).await?)
}

async fn a_pause_is_there_after_a_reopen(s: Scenario) -> Verdict {
    s.start_one().await?;
    let request = pausing(&s);
    set(&s, request.clone()).await?;
    s.turn(Duration::from_secs(1));
    let before = pauses(&s).await?;
    let s = s.reopen().await?;
    s.nothing_claimable("what was paused stays paused over a restart [9]").await?;
    equal("with its reason and its moment [9]", &before, &pauses(&s).await?)?;
    let again = set(&s, request).await?;
    equal("and its operation is remembered [8, 9]", &QueueOutcome::Changed, &again)?;
    resume(&s).await?;
    let s = s.reopen().await?;
    let taken = s.claim("w1", 10).await?.len();
    equal("and what was resumed stays resumed [9]", &1, &taken)
}

async fn what_one_handle_paused_the_other_finds_paused(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    s.start_one().await?;
    // Both have looked at the open queue, so that whatever they remember of it is put to the test.
    s.claim_one("w1").await?.release().await?;
    second.claim_one("w2").await?.release().await?;
    pause(&s).await?;
    second.nothing_claimable("a pause holds for every handle at once [9]").await?;
    resume(&second).await?;
    let taken = s.claim("w1", 1).await?.len();
    equal("and so does its end [9]", &1, &taken)
}
