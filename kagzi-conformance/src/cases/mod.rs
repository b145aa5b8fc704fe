//! The catalogue. The cases of a group stand in the file of its name, or in those whose names begin with it; the
//! groups `model`, `history`, `fault` and `interleaving` are played by the modules of these names.

mod batching;
mod batching_dropped;
mod claim;
mod claim_amounts;
mod claim_order;
mod claim_repairs;
mod claim_steps;
mod dead_letters;
mod durability;
mod durability_answers;
mod fencing;
mod fencing_races;
mod finish;
mod input;
mod input_large;
mod isolation;
mod isolation_names;
mod lease;
mod pause;
mod pause_races;
mod reading;
mod reading_many;
mod reading_pages;
mod reading_removal;
mod reap;
mod reap_due;
mod retry;
mod sleep;
mod start;
mod start_batches;
mod step;
mod step_fidelity;
mod step_refused;
mod step_together;
mod wake_up;
mod wake_up_late;

use crate::case::Case;

/// Every case, in the order of the catalogue.
pub fn all_cases() -> Vec<Case> {
    [
        start::cases(),
        start_batches::cases(),
        claim::cases(),
        claim_order::cases(),
        claim_steps::cases(),
        claim_amounts::cases(),
        claim_repairs::cases(),
        lease::cases(),
        fencing::cases(),
        fencing_races::cases(),
        step::cases(),
        step_refused::cases(),
        step_together::cases(),
        step_fidelity::cases(),
        sleep::cases(),
        finish::cases(),
        reap::cases(),
        reap_due::cases(),
        retry::cases(),
        dead_letters::cases(),
        pause::cases(),
        pause_races::cases(),
        reading::cases(),
        reading_pages::cases(),
        reading_removal::cases(),
        reading_many::cases(),
        isolation::cases(),
        isolation::operation_cases(),
        isolation_names::cases(),
        input::cases(),
        input_large::cases(),
        durability::cases(),
        durability::operation_cases(),
        durability_answers::cases(),
        wake_up::cases(),
        wake_up_late::cases(),
        batching::cases(),
        batching_dropped::cases(),
        crate::model::cases(),
        crate::history::cases(),
        crate::faults::cases(),
        crate::faults::more_cases(),
        crate::interleavings::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
