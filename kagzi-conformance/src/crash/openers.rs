//! Eight servers that open one empty place at the same moment: they make one store, and all can write.

use std::sync::Arc;

use kagzi_core::SharedStore;
use tokio::runtime::Runtime;

use super::judge::{Acknowledged, all_runs, judge, same_runs};
use super::rounds::open;
use super::script::Script;
use super::writer::WRITERS;
use super::{CrashFixture, DatabaseProcess};
use crate::scenario::race;
use crate::violation::Violation;

/// The name of the test.
pub(super) const CASE: &str = "eight_that_open_an_empty_place_at_once_make_one_store";

/// What the scripts are made from; chance has no part in it.
const SEED: u64 = 1;

/// How many places are opened: each is empty once. A server takes seconds to start.
const fn places(database: DatabaseProcess) -> usize {
    match database {
        DatabaseProcess::Embedded => 5,
        DatabaseProcess::Server => 1,
    }
}

/// Plays the test.
pub(super) fn play(fixture: &Arc<dyn CrashFixture>) -> Result<(), String> {
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        for number in 0..places(fixture.database()) {
            one_place(fixture, &format!("place-{number}")).await?;
        }
        Ok(())
    })
}

async fn one_place(fixture: &Arc<dyn CrashFixture>, round: &str) -> Result<(), String> {
    let place = fixture.place().await.map_err(|error| format!("no place: {error}"))?;
    let stores = race(WRITERS, |number| {
        let (fixture, address, round) = (Arc::clone(fixture), place.address(), round.to_owned());
        async move { opened_and_written(&*fixture, &address, &round, number).await }
    });
    let stores = stores.await.map_err(|violation| violation.to_string())?;
    // Every handle has all of it: the first is judged, and each lists what that one leaves.
    let mut acknowledged = Acknowledged::default();
    for number in 0..WRITERS {
        let script = Script::new(round, SEED, number).map_err(|error| error.to_string())?;
        (0..script.len()).try_for_each(|place| acknowledged.note(&format!("{number} {place}")))?;
    }
    let Some(first) = stores.first() else { return Err("nobody opened the place".to_owned()) };
    let runs = judge(first, round, SEED, &acknowledged).await?;
    let script = Script::new(round, SEED, 0).map_err(|error| error.to_string())?;
    for store in stores {
        let same = all_runs(&*store, script.namespace())
            .await
            .and_then(|listed| same_runs("what one server wrote every other reads [9]", &runs, &listed));
        same.map_err(|violation| violation.to_string())?;
        store.close().await.map_err(|error| format!("closing: {error}"))?;
    }
    Ok(())
}

/// Opens the place, and plays the whole script of this number there at once, while others still open it.
async fn opened_and_written(
    fixture: &dyn CrashFixture,
    address: &str,
    round: &str,
    number: usize,
) -> Result<SharedStore, Violation> {
    let store = open(fixture, address).await.map_err(|error| {
        Violation::new(
            "of several that open an empty place at once each gets a store",
            "a store",
            error.to_string(),
        )
    })?;
    let refused = |error| Violation::refused("a write while others open the store", &error);
    let script = Script::new(round, SEED, number).map_err(refused)?;
    for place in 0..script.len() {
        script.send(&*store, place).await.map_err(refused)?;
    }
    Ok(store)
}
