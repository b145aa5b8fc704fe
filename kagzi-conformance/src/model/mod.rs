//! Random sequences of operations, played side by side over the reference store and the backend.
//!
//! Both see the same calls by the same clock, so every answer and every row must be the same. A
//! difference is shrunk to the shortest sequence that still shows one, on a fresh store each time, and
//! told with its seed and its calls.
//!
//! Why not the crate `proptest-state-machine` (looked at: 0.9): it plans the whole sequence before the
//! backend hears of the first call, by a reference whose state can be cloned and whose `apply` is a plain
//! function. Ours is a store behind async calls that shares its data between clones, and a call is planned
//! from what the answers before it brought: leases, attempts, keys. It could be made to fit with a second
//! reference that is such a value, or with no state at all, as a list of numbers that stand for dice. The
//! first is a second truth about the rules; the second leaves of the crate only its way of shrinking, which
//! leaves out one call at a time and asks synchronously: some 500 fresh databases for a sequence, where
//! [`shrink`] asks of at most [`TRIES`]. And it needs proptest with `fork` and `timeout`, 20 crates more in
//! the test build of every backend.

mod play;
mod shrink;
mod theme;
mod world;

pub(crate) use shrink::shortest;
pub(crate) use theme::{CLIENTS, CROWD, CROWD_IN_TIME, TIME, Theme, WORKERS};
pub(crate) use world::{Plan, World};

pub(crate) use play::Line;
use play::{Difference, Side};

use crate::case::cases;
use crate::scenario::{Scenario, under};
use crate::settings::SEED_VARIABLE;
use crate::violation::{Verdict, Violation};

cases! { "model";
    [1, 2, 3, 4, 5, 8, 15] what_workers_do_agrees_with_the_reference;
    [1, 5, 10, 13, 14] what_time_does_agrees_with_the_reference;
    [6, 7, 8, 11, 13] what_clients_and_keepers_do_agrees_with_the_reference;
    [2, 6, 8, 15] all_kinds_of_operations_mixed_agree_with_the_reference;
}

/// How long a sequence is: long enough for lives of several runs, short enough to shrink.
const SEQUENCE: usize = 500;

/// How many shorter sequences are tried at most.
const TRIES: usize = 150;

async fn what_workers_do_agrees_with_the_reference(s: Scenario) -> Verdict {
    let share = share(&s);
    under(
        "what workers do is answered as by the reference",
        agrees(s, WORKERS, Line::Reliable, 1, share).await,
    )
}

async fn what_time_does_agrees_with_the_reference(s: Scenario) -> Verdict {
    let share = share(&s);
    under("what time does is as in the reference", agrees(s, TIME, Line::Reliable, 2, share).await)
}

async fn what_clients_and_keepers_do_agrees_with_the_reference(s: Scenario) -> Verdict {
    let share = share(&s);
    under(
        "what clients and keepers do is answered as by the reference",
        agrees(s, CLIENTS, Line::Reliable, 3, share).await,
    )
}

async fn all_kinds_of_operations_mixed_agree_with_the_reference(s: Scenario) -> Verdict {
    let share = share(&s);
    under(
        "all kinds of operations mixed are answered as by the reference",
        agrees(s, CROWD, Line::Reliable, 4, share).await,
    )
}

/// How many operations each case plays.
fn share(s: &Scenario) -> usize {
    s.settings().model_operations.div_ceil(cases().len())
}

/// Plays `share` operations, in sequences on a fresh store each.
pub(crate) async fn agrees(s: Scenario, theme: Theme, line: Line, salt: u64, share: usize) -> Verdict {
    let seed = s.settings().seed;
    let mut dice = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(salt));
    let mut played = 0;
    while played < share {
        let length = SEQUENCE.min(share - played);
        let sequence: Vec<u64> = (0..length).map(|_| dice.u64(..)).collect();
        let difference = if played == 0 {
            play::play(&s, theme, line, &sequence).await
        } else {
            on_a_fresh_store(&s, (theme, line), &sequence, Side::Aside).await?
        };
        if let Err(difference) = difference {
            return Err(shrunk(&s, (theme, line), sequence, difference, seed).await?);
        }
        played += length;
    }
    Ok(())
}

async fn on_a_fresh_store(
    s: &Scenario,
    (theme, line): (Theme, Line),
    sequence: &[u64],
    side: Side,
) -> Result<Result<(), Difference>, Violation> {
    let (fresh, stage) = s.fresh().await?;
    let outcome = play::play(&fresh, theme, line, sequence).await;
    if side == Side::Shown {
        s.log().replace_by(fresh.log());
    }
    drop(fresh);
    stage
        .discard()
        .await
        .map_err(|error| Violation::new("the fixture can discard a store", "no error", error.to_string()))?;
    Ok(outcome)
}

/// The shortest sequence that shows a difference, its calls in the log of `s`.
async fn shrunk(
    s: &Scenario,
    work: (Theme, Line),
    mut sequence: Vec<u64>,
    difference: Difference,
    seed: u64,
) -> Result<Violation, Violation> {
    sequence.truncate(difference.steps);
    let length = sequence.len();
    let shortest = shortest(sequence, TRIES, |shorter| async move {
        matches!(on_a_fresh_store(s, work, &shorter, Side::Aside).await, Ok(Err(_)))
    })
    .await;
    let shown = on_a_fresh_store(s, work, &shortest, Side::Shown).await?;
    let Difference { violation, .. } = match shown {
        Err(again) => again,
        // It does not come back on a fresh store: what was seen first is all there is to tell.
        Ok(()) => difference,
    };
    Ok(violation.found_by(format!(
        "{seed}: {SEED_VARIABLE}={seed} plays the same again. It was found in {length} steps and shrunk to the {} \
         shown below",
        shortest.len()
    )))
}
