//! The catalogue: one file a topic.

mod amounts;
mod batching;
mod batching_dropped;
mod claim;
mod claim_order;
mod claim_steps;
mod dead_letters;
mod distinct;
mod durability;
mod fencing;
mod fencing_races;
mod fidelity;
mod finish;
mod input;
mod isolation;
mod keeping;
mod lease;
mod pause;
mod reading;
mod reap;
mod reap_due;
mod retry;
mod sleep;
mod start;
mod start_batches;
mod step;
mod step_refused;
mod step_together;
mod wake;

use crate::case::Case;

/// Every case, in the order of the catalogue.
pub fn all_cases() -> Vec<Case> {
    [
        start::cases(),
        start_batches::cases(),
        claim::cases(),
        claim_order::cases(),
        claim_steps::cases(),
        amounts::cases(),
        lease::cases(),
        fencing::cases(),
        fencing_races::cases(),
        step::cases(),
        step_refused::cases(),
        step_together::cases(),
        fidelity::cases(),
        sleep::cases(),
        finish::cases(),
        reap::cases(),
        reap_due::cases(),
        retry::cases(),
        dead_letters::cases(),
        pause::cases(),
        reading::cases(),
        keeping::cases(),
        isolation::cases(),
        isolation::operation_cases(),
        distinct::cases(),
        input::cases(),
        durability::cases(),
        durability::operation_cases(),
        wake::cases(),
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
