//! One sequence over both stores.

use std::fmt::Debug;
use std::sync::Arc;

use fastrand::Rng;
use kagzi_core::memory::MemoryStore;
use kagzi_core::{AttemptScope, ListAttempts, ListRuns, PageRequest, RunFilter};

use super::theme::Theme;
use super::world::{Plan, World};
use crate::faults::Connection;
use crate::record::{Answer, Call, Describe};
use crate::scenario::{Scenario, differ, suite_rules};
use crate::violation::Violation;

/// After how many steps all rows are compared, and not the answers alone.
const ROWS_EVERY: usize = 80;

/// How many runs are read whole then, the youngest.
const READ_WHOLE: usize = 8;

/// Whether the calls of a sequence are to be shown to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Shown,
    Aside,
}

/// How the calls reach the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Reliable,
    /// Half of the tries meet a fault; callers insist. The reference hears each call once.
    Faulty,
}

/// A difference, and how many steps it took.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) steps: usize,
    pub(super) violation: Violation,
}

/// Plays a sequence, each step by dice of its own, so that a step does what it did when others are
/// dropped, as far as it can.
pub(super) async fn play(s: &Scenario, theme: Theme, line: Line, sequence: &[u64]) -> Result<(), Difference> {
    let store = s.shared_store();
    let connection = match line {
        Line::Reliable => Connection::reliable(store),
        Line::Faulty => Connection::faulty(store, 0),
    };
    let reference = MemoryStore::new(Arc::new(s.clock().clone()), suite_rules());
    let found = |steps, violation| Difference { steps, violation };
    let mut world = World::new(theme).map_err(|violation| found(0, violation))?;
    for (at, seed) in sequence.iter().enumerate() {
        let steps = at + 1;
        connection.reseed(*seed);
        match world.plan(&mut Rng::with_seed(*seed), s.now()) {
            Plan::Turn(by) => s.turn(by),
            Plan::Send(call) => {
                let answer = same(&connection, &reference, &call)
                    .await
                    .map_err(|violation| found(steps, violation))?;
                world.learn(&call, &answer);
            }
        }
        if steps % ROWS_EVERY == 0 || steps == sequence.len() {
            same_rows(&connection, &reference, &world).await.map_err(|violation| found(steps, violation))?;
        }
    }
    Ok(())
}

/// Sends a call to both and compares the answers.
async fn same(line: &Connection, reference: &MemoryStore, call: &Call) -> Result<Answer, Violation> {
    let expected = call.send(reference).await;
    let seen = line.insist(call).await?;
    if expected == seen {
        return Ok(expected);
    }
    Err(differs(call, &expected, &seen))
}

fn differs<T: Debug + Describe>(call: &Call, expected: &T, seen: &T) -> Violation {
    let (left, right) = differ::sides(&differ::fields(expected, seen));
    let fields = |text: String| {
        if text.is_empty() { "(payloads differ in their bytes)".to_owned() } else { text }
    };
    Violation::new(
        format!("the store answers and records what the reference store does; asked {}", call.describe()),
        format!("{}\n{}", expected.describe(), fields(left)),
        format!("{}\n{}", seen.describe(), fields(right)),
    )
}

/// Compares everything that can be read.
async fn same_rows(line: &Connection, reference: &MemoryStore, world: &World) -> Result<(), Violation> {
    let page = PageRequest::first(1000);
    let mut reads = vec![Call::NextDue];
    for namespace in world.namespaces().iter().cloned() {
        reads.push(Call::QueueDepths(namespace.clone()));
        let filter = RunFilter::default();
        reads.push(Call::ListRuns(ListRuns { namespace, filter, page: page.clone() }));
    }
    for (namespace, run_id) in world.runs().iter().rev().take(READ_WHOLE).cloned() {
        reads.push(Call::GetRun(namespace.clone(), run_id));
        let scope = AttemptScope::All;
        reads.push(Call::ListAttempts(ListAttempts { namespace, run_id, scope, page: page.clone() }));
    }
    for read in reads {
        same(line, reference, &read).await.map(drop)?;
    }
    Ok(())
}
