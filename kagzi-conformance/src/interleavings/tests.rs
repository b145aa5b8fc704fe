//! The whole search, larger than in the suite, and what it says about rules that are broken.

use std::collections::BTreeMap;

use kagzi_core::{RunState, StartRun, Timestamp};

use super::explore::{State, explore};
use super::invariants;
use super::program::{Action, Actors, Bounds, Names};
use crate::history::Rows;
use crate::record::{Call, Reply};
use crate::scenario::{queue, suite_rules, workflow_type};

/// Each worker claims twice and dies once; one reap, one turn of the clock.
const MANY: Bounds = Bounds { claims: 2, beats: 0, crashes: 1, reaps: 1, turns: 1 };

fn names() -> Names {
    let namespace = crate::scenario::namespace("acme").unwrap();
    let start = StartRun::new(
        namespace,
        queue("orders").unwrap(),
        workflow_type("ship").unwrap(),
        kagzi_core::Payload::json("1"),
    );
    Names::of(start, 0).unwrap()
}

#[test]
fn every_order_keeps_every_invariant() {
    let explored = explore(&names(), &suite_rules(), MANY).unwrap();
    println!(
        "{} states, {} transitions, {} orders show every answer",
        explored.states,
        explored.transitions,
        explored.orders.len()
    );
    assert!(explored.states > 40_000, "{} states are not all", explored.states);
}

fn at_the_start() -> State {
    let rows = Rows::started(&names().start, Timestamp::UNIX_EPOCH);
    State { rows, actors: Actors::new(), told: BTreeMap::new() }
}

fn judge(before: &State, action: Action, call: Call, reply: Reply, after: &State) -> Result<(), String> {
    let sent = (call, Ok(reply));
    invariants::check(before, action, Some(&sent), after, &suite_rules(), Timestamp::UNIX_EPOCH)
        .map_err(|violation| violation.rule)
}

#[test]
fn a_transition_out_of_a_terminal_state_is_found() {
    let mut before = at_the_start();
    before.rows.run.state = RunState::Cancelled;
    let after = at_the_start();
    let found = judge(&before, Action::Reap, Call::Reap(1), Reply::Released, &after).unwrap_err();
    assert!(found.contains("terminal states are final"), "{found}");
}

#[test]
fn a_claim_without_a_token_of_its_own_is_found() {
    let before = at_the_start();
    let mut after = at_the_start();
    after.rows.run.claims = 1;
    let found = judge(&before, Action::Reap, Call::Reap(1), Reply::Released, &after).unwrap_err();
    assert!(found.contains("a token of its own"), "{found}");
}

#[test]
fn a_run_that_is_held_by_nobody_is_found() {
    let before = at_the_start();
    let mut after = at_the_start();
    after.rows.run.state = RunState::Running;
    let found = judge(&before, Action::Reap, Call::Reap(1), Reply::Released, &after).unwrap_err();
    assert!(found.contains("exactly while RUNNING"), "{found}");
}
