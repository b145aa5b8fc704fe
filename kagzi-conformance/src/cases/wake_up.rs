//! Wake-ups: who waits hears of what happened.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::engine::{Engine, EngineOptions};
use kagzi_core::{RunId, StartAt, StartRun, Store, Subscription, Topic};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::case::cases;
use crate::proof;
use crate::scenario::{Held, LEASE, Scenario, check, equal, fatal, hiccup, in_turn, race, under};
use crate::violation::{Verdict, Violation};

cases! {
    "wake_up";
    [10] a_start_wakes_its_queue;
    [10] a_batch_of_starts_wakes_every_queue_of_it;
    [10] a_release_wakes_the_queue;
    [10] a_requeue_wakes_the_queue;
    [10] a_reaped_lease_wakes_the_queue;
    [10] a_woken_sleeper_wakes_the_queue;
    [10] a_retry_without_delay_wakes_the_queue;
    [10] a_sleep_of_zero_wakes_the_queue;
    [10] every_waiter_of_a_queue_is_woken;
    [10] completing_wakes_who_waits_for_the_run;
    [10] failing_wakes_who_waits_for_the_run;
    [10] cancelling_wakes_who_waits_for_the_run;
    [10] a_step_that_finishes_the_run_wakes_who_waits_for_it;
    [10] a_timeout_wakes_who_waits_for_the_run;
    [10] a_poisoned_run_wakes_who_waits_for_it;
    [10, 14] an_earlier_deadline_wakes_the_reaper;
    [10, 14] the_lease_of_a_claim_wakes_the_reaper;
    [10, 14] a_sleep_wakes_the_reaper;
    [10, 14] a_step_timeout_wakes_the_reaper;
    [10] a_start_between_subscribing_and_waiting_is_heard;
    [10] a_hint_finds_the_run_that_it_is_for;
    [10, 14] a_delayed_start_wakes_the_reaper_and_nobody_else_before_its_time;
    [10] a_poll_that_is_woken_for_nothing_goes_on_waiting_and_changes_nothing;
    [10] a_thousand_polls_that_wait_ask_a_few_times_a_start;
}

/// A hint that has not come by then will not come. A guard: no case waits for it where the rule is kept.
const GUARD: Duration = Duration::from_secs(10);

pub(super) fn queue_of(s: &Scenario) -> Subscription {
    let start = s.start_request();
    s.store().wake_hub().subscribe([Topic::Queue(start.namespace, start.queue)])
}

pub(super) fn run_of(s: &Scenario, run_id: RunId) -> Subscription {
    s.store().wake_hub().subscribe([Topic::Run(run_id)])
}

/// Waits for a hint: it is given after the commit, so it may come a moment after the answer.
pub(super) async fn woken(mut waiter: Subscription, rule: &str) -> Verdict {
    tokio::time::timeout(GUARD, waiter.wait())
        .await
        .map_err(|_| Violation::new(rule, "a wake-up", format!("none within {GUARD:?}")))?;
    proof::kept(rule);
    Ok(())
}

async fn a_start_wakes_its_queue(s: Scenario) -> Verdict {
    let waiter = queue_of(&s);
    s.start_one().await?;
    woken(waiter, "a start wakes its queue [10]").await
}

async fn a_batch_of_starts_wakes_every_queue_of_it(s: Scenario) -> Verdict {
    let others: Vec<Scenario> =
        ["a", "b", "c"].into_iter().map(|q| s.on_queue(q)).collect::<Result<_, _>>()?;
    let waiters: Vec<Subscription> = others.iter().map(queue_of).collect();
    s.start_all(others.iter().map(Scenario::start_request).collect()).await?;
    for waiter in waiters {
        woken(waiter, "each queue of a batch is woken [10]").await?;
    }
    Ok(())
}

async fn a_release_wakes_the_queue(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let waiter = queue_of(&s);
    held.release().await?;
    woken(waiter, "a release wakes the queue [10]").await
}

async fn a_requeue_wakes_the_queue(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.fail_run(fatal()).await?;
    let waiter = queue_of(&s);
    s.requeue(held.run_id()).await?;
    woken(waiter, "a requeue wakes the queue [10]").await
}

async fn a_reaped_lease_wakes_the_queue(s: Scenario) -> Verdict {
    s.held().await?;
    s.turn(LEASE);
    let waiter = queue_of(&s);
    s.reap(10).await?;
    woken(waiter, "a lease taken back wakes the queue [10]").await
}

async fn a_woken_sleeper_wakes_the_queue(s: Scenario) -> Verdict {
    s.held().await?.sleep("nap", LEASE).await?;
    s.turn(LEASE);
    let waiter = queue_of(&s);
    s.reap(10).await?;
    woken(waiter, "the end of a sleep wakes the queue [10]").await
}

async fn a_retry_without_delay_wakes_the_queue(s: Scenario) -> Verdict {
    let mut retry = crate::scenario::suite_rules().default_retry;
    retry.first_delay = Duration::ZERO;
    s.start(StartRun { retry: Some(retry), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    let waiter = queue_of(&s);
    held.fail_run(hiccup()).await?;
    woken(waiter, "a retry that is due at once wakes the queue [10]").await
}

async fn a_sleep_of_zero_wakes_the_queue(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let waiter = queue_of(&s);
    held.sleep("nap", Duration::ZERO).await?;
    woken(waiter, "a sleep that is over at once wakes the queue [10]").await
}

async fn every_waiter_of_a_queue_is_woken(s: Scenario) -> Verdict {
    let waiters: Vec<Subscription> = (0..1000).map(|_| queue_of(&s)).collect();
    s.start_one().await?;
    for waiter in waiters {
        woken(waiter, "a thousand waiters hear of one start [10]").await?;
    }
    Ok(())
}

async fn completing_wakes_who_waits_for_the_run(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let waiter = run_of(&s, held.run_id());
    held.complete_run("1").await?;
    under(
        "completing a run wakes who waits for it [10]",
        woken(waiter, "the end of a run wakes who waits for it [10]").await,
    )
}

async fn failing_wakes_who_waits_for_the_run(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let waiter = run_of(&s, held.run_id());
    held.fail_run(fatal()).await?;
    under(
        "failing a run wakes who waits for it [10]",
        woken(waiter, "the end of a run wakes who waits for it [10]").await,
    )
}

async fn cancelling_wakes_who_waits_for_the_run(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let waiter = run_of(&s, run_id);
    s.cancel(run_id).await?;
    under(
        "cancelling a run wakes who waits for it [10]",
        woken(waiter, "the end of a run wakes who waits for it [10]").await,
    )
}

async fn a_step_that_finishes_the_run_wakes_who_waits_for_it(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let waiter = run_of(&s, held.run_id());
    let then = kagzi_core::Then::CompleteRun(kagzi_core::Payload::empty());
    held.complete_then("a", 1, "1", then).await?;
    under(
        "completing a step and its run wakes who waits for the run [10]",
        woken(waiter, "the end of a run wakes who waits for it [10]").await,
    )
}

async fn a_timeout_wakes_who_waits_for_the_run(s: Scenario) -> Verdict {
    let run_id = s.start(StartRun { run_timeout: Some(LEASE), ..s.start_request() }).await?.run_id;
    s.turn(LEASE);
    let waiter = run_of(&s, run_id);
    s.reap(10).await?;
    under(
        "the timeout of a run wakes who waits for it [10]",
        woken(waiter, "the end of a run wakes who waits for it [10]").await,
    )
}

async fn a_poisoned_run_wakes_who_waits_for_it(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for _ in 0..3 {
        s.claim_one("w1").await?;
        s.turn(LEASE);
    }
    let waiter = run_of(&s, run_id);
    // A claim may be the one that finds it out.
    s.nothing_claimable("a poison run is not taken again [14]").await?;
    s.reap_all().await?;
    under(
        "giving up a poison run wakes who waits for it [10]",
        woken(waiter, "the end of a run wakes who waits for it [10]").await,
    )
}

/// A reaper that believes that nothing is due for a day.
pub(super) fn reaper(s: &Scenario) -> Subscription {
    let hub = s.store().wake_hub();
    let waiter = hub.subscribe([Topic::Deadlines]);
    hub.arm(s.now().saturating_add(Duration::from_hours(24)));
    waiter
}

async fn an_earlier_deadline_wakes_the_reaper(s: Scenario) -> Verdict {
    let delayed = StartRun { start_at: StartAt::After(LEASE), ..s.start_request() };
    let bounded = StartRun { run_timeout: Some(LEASE), ..s.start_request() };
    for start in [delayed, bounded] {
        let waiter = reaper(&s);
        s.start(start).await?;
        woken(waiter, "a reaper that would sleep too long is woken [10, 14]").await?;
    }
    Ok(())
}

async fn the_lease_of_a_claim_wakes_the_reaper(s: Scenario) -> Verdict {
    s.start_one().await?;
    let waiter = reaper(&s);
    s.claim_one("w1").await?;
    woken(waiter, "a reaper that would sleep past a lease is woken [10, 14]").await
}

async fn a_sleep_wakes_the_reaper(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let waiter = reaper(&s);
    held.sleep("nap", LEASE).await?;
    woken(waiter, "a reaper that would sleep longer than a sleeper is woken [10]").await
}

async fn a_step_timeout_wakes_the_reaper(s: Scenario) -> Verdict {
    let held: Held = s.held().await?;
    let waiter = reaper(&s);
    let mut begin = held.begin_request("a")?;
    begin.step.timeout = Some(LEASE);
    s.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
    woken(waiter, "a reaper that would sleep past a step's timeout is woken [14]").await
}

async fn a_start_between_subscribing_and_waiting_is_heard(s: Scenario) -> Verdict {
    let waiter = queue_of(&s);
    s.nothing_claimable("nothing is there yet").await?;
    s.start_one().await?;
    let store: &dyn Store = s.store();
    let ready = store.wake_hub().anyone_waits(|topic| matches!(topic, Topic::Queue(..)));
    check(ready, "the waiter is known", true, ready)?;
    woken(waiter, "who subscribes before looking misses nothing [10]").await
}

async fn a_hint_finds_the_run_that_it_is_for(s: Scenario) -> Verdict {
    const STARTS: usize = 200;
    const RULE: &str = "who looks at a hint and finds nothing is told again once the run is there [10]";
    for number in 0..STARTS {
        let both = |number| {
            // Before the start has begun.
            let (s, mut waiter) = (s.clone(), queue_of(&s));
            async move {
                if number == 0 {
                    return Ok(vec![s.start_one().await?]);
                }
                loop {
                    tokio::time::timeout(GUARD, waiter.wait()).await.map_err(|_| {
                        Violation::new(RULE, "another wake-up", format!("none within {GUARD:?}"))
                    })?;
                    let taken = s.claim("w1", 10).await?;
                    if !taken.is_empty() {
                        return Ok(taken.iter().map(|run| run.run.run_id).collect());
                    }
                }
            }
        };
        let found = if number % 2 == 0 { race(2, both).await? } else { in_turn(2, both).await? };
        let [started, taken] = found.as_slice() else {
            return Err(Violation::new(RULE, "a start and a claim", format!("{} answers", found.len())));
        };
        equal("the run that was started is the one that is found [10]", started, taken)?;
    }
    proof::kept(RULE);
    Ok(())
}

async fn a_delayed_start_wakes_the_reaper_and_nobody_else_before_its_time(s: Scenario) -> Verdict {
    const STARTS: u32 = 20;
    let other = s.on_queue("fence")?;
    let mut hinted = 0;
    for number in 0..STARTS {
        let delay = LEASE * (number + 1);
        let start_at =
            if number % 2 == 0 { StartAt::After(delay) } else { StartAt::At(s.now().saturating_add(delay)) };
        let (mut waiter, reaper, fence) = (queue_of(&s), reaper(&s), queue_of(&other));
        s.start(StartRun { start_at, ..s.start_request() }).await?;
        // Hints come in the order of what they tell of: what was to come for the first start has come by then.
        other.start_one().await?;
        woken(fence, "a start beside delayed ones wakes its own queue [10]").await?;
        hinted += u32::from(waiter.take_announcement());
        woken(reaper, "a reaper that would sleep past a delayed start is woken [10, 14]").await?;
    }
    // A hint without cause is allowed, as after a connection was lost; one for each of them has a cause.
    check(
        hinted < STARTS,
        "a run that is to start later wakes nobody who waits for its queue [10]",
        format!("no hint for most of {STARTS} starts"),
        hinted,
    )?;
    s.nothing_claimable("and is not there before its time [10]").await?;
    let waiter = queue_of(&s);
    s.turn(LEASE);
    s.reap(10).await?;
    woken(waiter, "when its time has come its queue is woken [10]").await?;
    s.claim_one("w1").await.map(drop)
}

async fn a_poll_that_is_woken_for_nothing_goes_on_waiting_and_changes_nothing(s: Scenario) -> Verdict {
    const HINTS: usize = 10;
    let run_id = s.start(StartRun { start_at: StartAt::After(LEASE), ..s.start_request() }).await?.run_id;
    let before = s.snapshot(run_id).await?;
    let options = EngineOptions { poll_interval: Duration::from_hours(1), ..EngineOptions::default() };
    let engine = Engine::new(s.shared_store(), options);
    let waiting = Arc::new(Semaphore::new(0));
    let (claim, begun) = (s.claim_request("w1", 1)?, Arc::clone(&waiting));
    let stop = async move {
        // Asked for the first time when the poll has looked and begins to wait.
        begun.add_permits(1);
        std::future::pending::<()>().await;
    };
    let poll = tokio::spawn(async move { engine.poll_until(claim, Duration::from_hours(2), stop).await });
    all_wait(&waiting, 1).await?;
    let hub = s.store().wake_hub();
    let start = s.start_request();
    for _ in 0..HINTS {
        let asked = s.log().count();
        hub.announce(&Topic::Queue(start.namespace.clone(), start.queue.clone()));
        let looked = async {
            while s.log().count() == asked {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GUARD, looked)
            .await
            .map_err(|_| Violation::new("who is woken looks again [10]", "a claim", "none"))?;
    }
    check(!poll.is_finished(), "a poll that is woken for nothing waits on [10]", "it waits", "it ended")?;
    s.unchanged(&before, "looks for nothing change nothing [15]").await?;
    s.turn(LEASE);
    s.reap(10).await?;
    let taken = tokio::time::timeout(GUARD, poll).await;
    let taken = match taken {
        Ok(Ok(answer)) => answer.map_err(|e| Violation::refused("a poll", &e))?,
        other => return Err(Violation::new("a poll ends", "its run", format!("{other:?}"))),
    };
    let ids: Vec<RunId> = taken.iter().map(|run| run.run.run_id).collect();
    equal("a poll that found nothing so often takes the run when its time has come [10]", &vec![run_id], &ids)
}

async fn a_thousand_polls_that_wait_ask_a_few_times_a_start(s: Scenario) -> Verdict {
    const POLLS: u32 = 1000;
    const STARTS: usize = 10;
    /// A start, the claim that takes it, a look or two that find no more; twice that, since hints may echo.
    const CALLS_A_START: usize = 8;
    let options = EngineOptions { poll_interval: Duration::from_hours(1), ..EngineOptions::default() };
    let engine = Engine::new(s.shared_store(), options);
    let waiting = Arc::new(Semaphore::new(0));
    let (stop, stopped) = watch::channel(());
    let mut polls = JoinSet::new();
    for number in 0..POLLS {
        let (engine, begun, mut stopped) = (engine.clone(), Arc::clone(&waiting), stopped.clone());
        let claim = s.claim_request(&format!("w{number}"), 1)?;
        polls.spawn(async move {
            let stop = async move {
                // Asked for the first time when the poll has looked and begins to wait.
                begun.add_permits(1);
                // An error says that the other end is gone, which is how it stops.
                stopped.changed().await.ok();
            };
            engine.poll_until(claim, Duration::from_hours(2), stop).await
        });
        // The first looks, and finds the queue dry; those after it need not.
        if number == 0 {
            all_wait(&waiting, 1).await?;
        }
    }
    all_wait(&waiting, POLLS - 1).await?;
    let before = s.log().count();
    for _ in 0..STARTS {
        let run_id = s.start_one().await?;
        let ended = tokio::time::timeout(GUARD, polls.join_next()).await;
        let claimed = match ended {
            Ok(Some(Ok(answer))) => answer.map_err(|e| Violation::refused("a poll", &e))?,
            other => {
                return Err(Violation::new("a start ends one poll [10]", "its run", format!("{other:?}")));
            }
        };
        let taken: Vec<RunId> = claimed.iter().map(|run| run.run.run_id).collect();
        equal("a start ends one poll, which takes it [10]", &vec![run_id], &taken)?;
    }
    // Whoever was woken for nothing gets its turn to ask.
    for _ in 0..POLLS {
        tokio::task::yield_now().await;
    }
    let asked = s.log().count() - before;
    check(
        asked <= STARTS * CALLS_A_START,
        "those who wait share a few looks, and no look wakes them again [10]",
        format!("at most {CALLS_A_START} calls for each of {STARTS} starts"),
        asked,
    )?;
    drop(stop);
    for answer in polls.join_all().await {
        let left = answer.map_err(|e| Violation::refused("a poll", &e))?;
        check(left.is_empty(), "and nothing is there for the others", "no run", left)?;
    }
    Ok(())
}

/// Until `count` more polls have begun to wait.
async fn all_wait(waiting: &Semaphore, count: u32) -> Verdict {
    match tokio::time::timeout(GUARD, waiting.acquire_many(count)).await {
        Ok(Ok(begun)) => {
            begun.forget();
            Ok(())
        }
        other => Err(Violation::new("a poll that finds nothing waits", "it waits", format!("{other:?}"))),
    }
}
