//! Pausing a queue while others claim from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pause::{pause, resume};
use crate::case::cases;
use crate::scenario::{Scenario, equal, race, under};
use crate::violation::Verdict;

cases! {
    "pause";
    [15] no_claim_that_begins_after_the_answer_of_a_pause_takes_a_run;
    [15] no_claim_of_another_handle_takes_a_run_after_the_answer_of_a_pause needs SecondHandle;
}

async fn no_claim_that_begins_after_the_answer_of_a_pause_takes_a_run(s: Scenario) -> Verdict {
    under(
        "a claim that begins after the answer of a pause takes nothing [15]",
        pauses_beside_claims(s.clone(), s).await,
    )
}

async fn no_claim_of_another_handle_takes_a_run_after_the_answer_of_a_pause(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    under(
        "a claim of another handle that begins after the answer of a pause takes nothing [15]",
        pauses_beside_claims(s, second).await,
    )
}

/// Claimers and starters go on without a break while the queue is paused and resumed beside them.
///
/// `paused` is odd from a moment after the answer of a pause until a moment before its end is asked for. So
/// a claim that sees the same odd number before its call and after its answer lay within a pause.
async fn pauses_beside_claims(s: Scenario, other: Scenario) -> Verdict {
    const CLAIMERS: usize = 4;
    const ROUNDS: usize = 12;
    /// Each round lasts until so many claims were answered within the pause, and so many runs taken after it.
    const CLAIMS: usize = 8;
    let paused = Arc::new(AtomicUsize::new(0));
    let within = Arc::new(AtomicUsize::new(0));
    let taken = Arc::new(AtomicUsize::new(0));
    race(CLAIMERS + 1, |number| {
        let (s, other) = (s.clone(), other.clone());
        let (paused, within, taken) = (Arc::clone(&paused), Arc::clone(&within), Arc::clone(&taken));
        async move {
            if number == CLAIMERS {
                return pause_and_resume(&s, &paused, &within, &taken, (ROUNDS, CLAIMS)).await;
            }
            let s = if number % 2 == 0 { s } else { other };
            while paused.load(Ordering::SeqCst) < 2 * ROUNDS {
                s.start_one().await?;
                let before = paused.load(Ordering::SeqCst);
                let claimed = s.claim(&format!("w{number}"), 2).await?.len();
                taken.fetch_add(claimed, Ordering::SeqCst);
                if before % 2 == 1 && paused.load(Ordering::SeqCst) == before {
                    equal("what lies within a pause takes nothing", &0, &claimed)?;
                    within.fetch_add(1, Ordering::SeqCst);
                }
                // A store in memory never waits: the one that pauses wants its turn.
                tokio::task::yield_now().await;
            }
            Ok(())
        }
    })
    .await
    .map(drop)
}

async fn pause_and_resume(
    s: &Scenario,
    paused: &AtomicUsize,
    within: &AtomicUsize,
    taken: &AtomicUsize,
    (rounds, claims): (usize, usize),
) -> Verdict {
    let at_least = async |counter: &AtomicUsize, more: usize| {
        let enough = counter.load(Ordering::SeqCst) + more;
        while counter.load(Ordering::SeqCst) < enough {
            tokio::task::yield_now().await;
        }
    };
    for _ in 0..rounds {
        pause(s).await?;
        paused.fetch_add(1, Ordering::SeqCst);
        at_least(within, claims).await;
        paused.fetch_add(1, Ordering::SeqCst);
        resume(s).await?;
        if paused.load(Ordering::SeqCst) < 2 * rounds {
            at_least(taken, claims).await;
        }
    }
    Ok(())
}
