//! Every interleaving of a small world: two workers, a reaper, a client, two steps, a turned clock.
//!
//! All orders of their actions are searched over the rules of the core, each state once, with the
//! invariants checked in every state and over every transition: that looks for holes in the contract,
//! where cases and random runs look for holes in a backend. The crate stateright does such searches,
//! but brings 57 crates (a web server among them) into every backend's test build; the search needed
//! here is [`explore::explore`], a page long.
//!
//! Of the orders, a few show together every answer that any order can show; a backend plays those, side
//! by side with the reference store.

mod explore;
mod invariants;
mod program;

use std::sync::Arc;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{AttemptScope, ListAttempts, PageRequest};

use crate::case::cases;
use crate::record::{Answer, Call, Describe};
use crate::scenario::{LEASE, Scenario, check, suite_rules};
use crate::violation::{Verdict, Violation};
use explore::{Explored, explore};
use program::{Action, Actors, Bounds, Names};

cases! { "interleaving";
    [1, 2, 3, 4, 5, 6, 8, 10, 14, 15] orders_that_show_every_answer_there_is_agree_with_the_reference;
}

/// For a backend's suite, where the search is only to find the orders to play.
const FEW: Bounds = Bounds { claims: 2, beats: 0, crashes: 0, reaps: 1, turns: 1 };

async fn orders_that_show_every_answer_there_is_agree_with_the_reference(s: Scenario) -> Verdict {
    let Explored { states, transitions, orders } = explore(&Names::new(&s, 0)?, &suite_rules(), FEW)?;
    s.log().remark(format!(
        "{states} states and {transitions} transitions of the rules keep the invariants; {} orders, which show every \
         answer, were played",
        orders.len()
    ));
    let reference = MemoryStore::new(Arc::new(s.clock().clone()), suite_rules());
    for (play, order) in (1..).zip(&orders) {
        let names = Names::new(&s, play)?;
        let played = play_order(&s, &reference, &names, order).await;
        played.map_err(|violation| Violation {
            rule: format!("{}\nin the order {order:?}", violation.rule),
            ..violation
        })?;
    }
    Ok(())
}

async fn play_order(s: &Scenario, reference: &MemoryStore, names: &Names, order: &[Action]) -> Verdict {
    same(s, reference, &Call::Start(vec![names.start.clone()])).await.map(drop)?;
    let mut actors = Actors::new();
    for action in order {
        let sent = match actors.call(names, *action) {
            None => None,
            Some(call) => {
                let answer = same(s, reference, &call).await?;
                Some((call, answer))
            }
        };
        if *action == Action::Turn {
            s.turn(LEASE);
        }
        actors.learn(*action, sent);
    }
    let (namespace, run_id) = (names.start.namespace.clone(), names.start.run_id());
    same(s, reference, &Call::GetRun(namespace.clone(), run_id)).await.map(drop)?;
    let (scope, page) = (AttemptScope::All, PageRequest::first(1000));
    let list = ListAttempts { namespace, run_id, scope, page };
    same(s, reference, &Call::ListAttempts(list)).await.map(drop)?;
    // The next order finds a store in which nothing is alive.
    let cancel = actors.call(names, Action::Cancel);
    match cancel {
        Some(call) => same(s, reference, &call).await.map(drop),
        None => Ok(()),
    }
}

async fn same(s: &Scenario, reference: &MemoryStore, call: &Call) -> Result<Answer, Violation> {
    let expected = call.send(reference).await;
    let seen = call.send(s.store()).await;
    check(
        expected == seen,
        "a small order is answered as by the reference store",
        expected.describe(),
        seen.describe(),
    )?;
    Ok(seen)
}

#[cfg(test)]
mod tests;
