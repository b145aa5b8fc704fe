//! Concurrent histories: many callers over few runs, every call and answer recorded with its interval,
//! and the record judged by the rules themselves.
//!
//! The question is the one that linearizability asks: is there one order of these operations, each at
//! some moment between its call and its answer, in which the rules give every caller the answer that it
//! heard? See [`checker`] for the search, [`slot`] for how runs are judged one by one, [`rows`] for the
//! rules, and [`tell`] for what a violation says.

pub mod checker;
mod difference;
mod led_there;
mod recorder;
mod rows;
mod slot;
mod tell;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use kagzi_core::{AttemptScope, ListAttempts, PageRequest, SharedStore};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::case::cases;
use crate::model::{CROWD, CROWD_IN_TIME, Plan, Theme, World};
use crate::record::Call;
use crate::scenario::{Scenario, suite_rules, under};
use crate::settings::{HISTORY_VARIABLE, SEED_VARIABLE};
use crate::violation::{Verdict, Violation};

pub(crate) use rows::{Rows, lease_of};

use recorder::Recorder;
use slot::SlotRules;

cases! { "history";
    [1, 2, 3, 4, 5, 6, 8, 15] some_order_explains_what_concurrent_callers_heard;
    [1, 2, 5, 6, 10, 14, 15] some_order_explains_what_they_heard_while_the_clock_jumped;
    [1, 2, 3, 4, 5, 6, 8, 15] some_order_explains_what_callers_of_two_servers_heard needs SecondHandle;
    [1, 2, 5, 6, 10, 14, 15] some_order_explains_what_they_heard_of_two_servers_while_the_clock_jumped
        needs SecondHandle;
}

/// How many callers there are.
const CALLERS: usize = 6;

/// How many calls each makes until all pause and every run is read.
const BURST: usize = 8;

/// How many bursts make a history.
const BURSTS: usize = 12;

async fn some_order_explains_what_concurrent_callers_heard(s: Scenario) -> Verdict {
    let store = s.shared_store();
    under(
        "some order explains what callers heard",
        histories(&s, CROWD, [Arc::clone(&store), store], 11).await,
    )
}

async fn some_order_explains_what_they_heard_while_the_clock_jumped(s: Scenario) -> Verdict {
    let store = s.shared_store();
    under(
        "some order explains what callers heard while the clock jumped",
        histories(&s, CROWD_IN_TIME, [Arc::clone(&store), store], 12).await,
    )
}

async fn some_order_explains_what_callers_of_two_servers_heard(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    under(
        "some order explains what callers of two servers heard",
        histories(&s, CROWD, [s.shared_store(), second.shared_store()], 13).await,
    )
}

async fn some_order_explains_what_they_heard_of_two_servers_while_the_clock_jumped(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    under(
        "some order explains what callers of two servers heard while the clock jumped",
        histories(&s, CROWD_IN_TIME, [s.shared_store(), second.shared_store()], 14).await,
    )
}

/// Plays and judges this case's share of the operations, one history after the other.
async fn histories(s: &Scenario, theme: Theme, handles: [SharedStore; 2], salt: u64) -> Verdict {
    let seed = s.settings().seed;
    let share = s.settings().history_operations.div_ceil(cases().len());
    // One world over all histories, so that no operation id comes twice; each has runs of its own.
    let world = Arc::new(Mutex::new(World::new(theme)?));
    let (number, mut played) = (share.div_ceil(CALLERS * BURST * BURSTS), 0);
    for plan in plans(seed).take(number) {
        let recorder = Arc::new(Recorder::new(s.clock().clone()));
        play(&recorder, &world, &handles, plan, salt).await?;
        judge(s, &recorder, &again(plan))?;
        played += recorder.history().len();
        s.log().remark(format!("{played} calls, each judged with its interval; seed {seed}"));
        close(&recorder, &world, &handles[0]).await;
    }
    Ok(())
}

/// The seeds of the histories that `seed` plays: itself first, so that any history can be played alone.
fn plans(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |plan| Some(Rng::with_seed(*plan).u64(..)))
}

/// How to play the history of this seed again.
fn again(plan: u64) -> String {
    format!(
        "{plan}: {SEED_VARIABLE}={plan} {HISTORY_VARIABLE}=1 plays this plan again, alone: which caller throws which \
         dice.\nThe callers are concurrent and go on from what they hear, so their calls may come in another order, and \
         then be others:\nif nothing is found, play it some more times."
    )
}

/// Plays one history: a burst of calls, then every run is read, and so on.
async fn play(
    recorder: &Arc<Recorder>,
    world: &Arc<Mutex<World>>,
    handles: &[SharedStore; 2],
    plan: u64,
    salt: u64,
) -> Verdict {
    let mut dice = Rng::with_seed(plan.wrapping_mul(31).wrapping_add(salt));
    locked(world, World::forget);
    for _ in 0..BURSTS {
        burst(recorder, world, handles, &mut dice).await?;
        read_all(recorder, world, &handles[0]).await;
    }
    Ok(())
}

fn locked<T>(world: &Mutex<World>, what: impl FnOnce(&mut World) -> T) -> T {
    // A world is a guess at what the store holds; a half-learned one is as good as any.
    what(&mut world.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Lets all callers loose at one moment, for [`BURST`] calls each.
async fn burst(
    recorder: &Arc<Recorder>,
    world: &Arc<Mutex<World>>,
    handles: &[SharedStore; 2],
    dice: &mut Rng,
) -> Verdict {
    let barrier = Arc::new(Barrier::new(CALLERS));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let (recorder, world, barrier) = (Arc::clone(recorder), Arc::clone(world), Arc::clone(&barrier));
        let store = Arc::clone(&handles[number % 2]);
        let mut dice = dice.fork();
        callers.spawn(async move {
            barrier.wait().await;
            let caller = format!("caller {} by handle {}", number + 1, number % 2 + 1);
            for _ in 0..BURST {
                match locked(&world, |world| world.plan(&mut dice, recorder.now())) {
                    Plan::Turn(by) if dice.u8(..6) == 0 => recorder.turn(Duration::ZERO, by),
                    Plan::Turn(by) => recorder.turn(by, Duration::ZERO),
                    Plan::Send(call) => {
                        let answer = recorder.send(&caller, &*store, (*call).clone()).await;
                        locked(&world, |world| world.learn(&call, &answer));
                    }
                }
            }
        });
    }
    while let Some(joined) = callers.join_next().await {
        joined.map_err(|error| {
            Violation::new("a store does not panic under concurrent callers", "answers", error.to_string())
        })?;
    }
    Ok(())
}

/// Reads every run of this history while nothing is in flight: all that was written must be explained.
async fn read_all(recorder: &Recorder, world: &Mutex<World>, store: &SharedStore) {
    let page = PageRequest::first(1000);
    for (namespace, run_id) in locked(world, |world| world.runs().to_vec()) {
        recorder.send("reader", &**store, Call::GetRun(namespace.clone(), run_id)).await.ok();
        let list = ListAttempts { namespace, run_id, scope: AttemptScope::All, page: page.clone() };
        recorder.send("reader", &**store, Call::ListAttempts(list)).await.ok();
    }
}

/// Ends what a history left alive, so that the next one begins with an empty store.
async fn close(recorder: &Recorder, world: &Mutex<World>, store: &SharedStore) {
    for call in locked(world, World::farewell) {
        recorder.send("closing", &**store, call).await.ok();
    }
}

/// Judges the history of each run.
fn judge(s: &Scenario, recorder: &Recorder, again: &str) -> Verdict {
    let history = recorder.history();
    let rules = SlotRules(suite_rules());
    for events in slot::take_apart(&history).into_values() {
        if let Err(unexplained) = checker::check(&rules, None, &events) {
            return Err(tell::violation(s.log(), &rules, &history, &events, &unexplained, again));
        }
    }
    Ok(())
}
