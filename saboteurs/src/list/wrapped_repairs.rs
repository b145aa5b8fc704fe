//! Bugs of what claims and reaps repair in passing, round the reference store.

use std::sync::Arc;

use super::Saboteur;
use super::wrapped::one;
use crate::stores::memory::Memory;
use crate::wrapped::repairs::{
    KnowsItsOwnStarts, LateStepsTakePlaces, ManyTypesAreAny, SweepsTellNobody, TellsItsFirstQueue,
};

/// All of them.
pub(super) fn saboteurs() -> Vec<Saboteur> {
    vec![
        one(
            "a handle takes what it starts first for what comes due first",
            &["claim::a_handle_that_started"],
            Memory::each(|| Arc::new(KnowsItsOwnStarts::default())),
        ),
        one(
            "a claim of more than a thousand pairs takes any type",
            &["claim::the_order_holds_however_many"],
            Memory::wrapped(ManyTypesAreAny),
        ),
        one(
            "each late step of a run takes a place of a reap, which says that nothing is left",
            &["reap::a_run_with_many_late_steps"],
            Memory::each(|| Arc::new(LateStepsTakePlaces::default())),
        ),
        one(
            "a sleeper that a claim wakes and leaves wakes nobody",
            &["wake_up::a_claim_that_wakes_more"],
            Memory::each(|| Arc::new(SweepsTellNobody::of_sleepers())),
        ),
        one(
            "the end of a run that a claim finds wakes nobody",
            &["wake_up::a_claim_that_finds_a_run"],
            Memory::each(|| Arc::new(SweepsTellNobody::of_ends())),
        ),
        one(
            "a claim without room tells its first queue alone",
            &["wake_up::a_claim_without_room"],
            Memory::each(|| Arc::new(TellsItsFirstQueue::default())),
        ),
    ]
}
