//! Every order of the actions, searched from state to state, each state once.

use std::collections::{BTreeMap, HashMap};

use kagzi_core::{ClaimedRun, Reaped, Rules, Timestamp};

use super::invariants;
use super::program::{Action, Actors, Bounds, Names};
use crate::history::Rows;
use crate::record::{Answer, Call, Refusal, Reply};
use crate::scenario::LEASE;
use crate::violation::Violation;

/// The rows and the actors at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) rows: Rows,
    pub(super) actors: Actors,
    /// Who was told to execute which attempt.
    pub(super) told: BTreeMap<(String, u32), usize>,
}

/// What a whole search found.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) transitions: usize,
    /// Orders that together show every answer which any order can show.
    pub(super) orders: Vec<Vec<Action>>,
}

/// A state on the way, how it was reached, and from where.
struct Reached {
    state: State,
    by: Option<(usize, Action)>,
}

/// Searches all orders from a run that was just started, and checks the invariants in every state and
/// over every transition.
pub(super) fn explore(names: &Names, rules: &Rules, bounds: Bounds) -> Result<Explored, Violation> {
    let began = Timestamp::UNIX_EPOCH;
    let first =
        State { rows: Rows::started(&names.start, began), actors: Actors::new(), told: BTreeMap::new() };
    let mut reached = vec![Reached { state: first, by: None }];
    let mut known: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    let mut answers: BTreeMap<(Action, String), usize> = BTreeMap::new();
    let (mut at, mut transitions) = (0, 0);
    // Breadth first, so that the order which leads to a violation is a shortest one.
    while at < reached.len() {
        let state = reached[at].state.clone();
        for action in state.actors.actions(bounds) {
            let now = began.saturating_add(LEASE * u32::from(state.actors.turns));
            let (next, sent) = act(&state, action, names, rules, now);
            transitions += 1;
            invariants::check(&state, action, sent.as_ref(), &next, rules, now).map_err(|violation| {
                let mut order = order_to(&reached, at);
                order.push(action);
                Violation { seen: format!("{}\nafter {order:?}", violation.seen), ..violation }
            })?;
            let label = (action, sent.as_ref().map_or(String::new(), |(_, answer)| kind(answer)));
            let key = (next.rows.fingerprint(), next.actors.fingerprint());
            let alike = known.entry(key).or_default();
            let place = alike.iter().copied().find(|place| reached[*place].state == next);
            let place = place.unwrap_or_else(|| {
                alike.push(reached.len());
                reached.push(Reached { state: next, by: Some((at, action)) });
                reached.len() - 1
            });
            answers.entry(label).or_insert(place);
        }
        at += 1;
    }
    let orders = covering(answers.values().map(|place| order_to(&reached, *place)).collect());
    Ok(Explored { states: reached.len(), transitions, orders })
}

/// Orders without those that another one begins with.
fn covering(mut orders: Vec<Vec<Action>>) -> Vec<Vec<Action>> {
    orders.sort_unstable();
    orders.dedup();
    let all = orders.clone();
    orders.retain(|order| !all.iter().any(|other| other.len() > order.len() && other.starts_with(order)));
    orders
}

fn order_to(reached: &[Reached], mut place: usize) -> Vec<Action> {
    let mut order = Vec::new();
    while let Some((from, action)) = reached[place].by {
        order.push(action);
        place = from;
    }
    order.reverse();
    order
}

/// An answer without its numbers.
fn kind(answer: &Answer) -> String {
    match answer {
        Ok(Reply::Claimed(claimed)) => {
            let runs =
                claimed.iter().map(|c| format!("{} steps, {:?}", c.steps.len(), c.lease.lease.fencing_token));
            format!("claimed {:?}", runs.collect::<Vec<_>>())
        }
        Ok(Reply::Beats(verdicts)) => format!("{:?}", verdicts.iter().map(Result::is_ok).collect::<Vec<_>>()),
        Ok(reply) => format!("{reply:?}"),
        Err(refusal) => {
            format!("{} {}", refusal.reason, refusal.message.rsplit(':').next().unwrap_or_default())
        }
    }
}

/// The state after an action, and what was sent and heard.
fn act(
    state: &State,
    action: Action,
    names: &Names,
    rules: &Rules,
    now: Timestamp,
) -> (State, Option<(Call, Answer)>) {
    let mut next = state.clone();
    let sent = state.actors.call(names, action).map(|call| {
        let (answer, rows) = ask(&state.rows, &call, rules, now);
        next.rows = rows;
        (call, answer)
    });
    next.actors.learn(action, sent.clone());
    if let Action::GoOn(number) = action
        && let Some((call, Ok(reply))) = &sent
        && let Some(executed) = invariants::told_to_execute(call, reply)
    {
        next.told.entry(executed).or_insert(number);
    }
    (next, sent)
}

/// What the rules answer to a call, and the rows after it.
fn ask(rows: &Rows, call: &Call, rules: &Rules, now: Timestamp) -> (Answer, Rows) {
    match call {
        Call::Claim(claim) => {
            let swept = rows.repaired(rules, now).unwrap_or_else(|| rows.clone());
            match swept.claimed(claim, rules, now) {
                Some((taken, lease)) => {
                    let run = taken.run.clone();
                    let input = taken.input().clone();
                    let steps = taken.latest_of_each().cloned().collect();
                    let claimed = ClaimedRun { lease, run, input, steps, more_steps: None };
                    (Ok(Reply::Claimed(vec![claimed])), taken)
                }
                None => (Ok(Reply::Claimed(Vec::new())), swept),
            }
        }
        Call::Reap(_) => {
            let repaired = rows.repaired(rules, now);
            let leases_expired = u32::from(repaired.is_some());
            let reaped = Reaped { leases_expired, ..Reaped::default() };
            (Ok(Reply::Reaped(reaped)), repaired.unwrap_or_else(|| rows.clone()))
        }
        Call::Heartbeat(batch) => {
            let mut after = rows.clone();
            let mut verdicts = Vec::new();
            for beat in batch {
                verdicts.push(after.beat(beat, now).map_err(Refusal::from).map(|(granted, rows)| {
                    after = rows;
                    granted
                }));
            }
            (Ok(Reply::Beats(verdicts)), after)
        }
        call => match rows.ask(call, rules, now) {
            Ok((reply, after)) => (Ok(reply), after),
            Err(error) => (Err(Refusal::from(error)), rows.clone()),
        },
    }
}
