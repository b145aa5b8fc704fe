//! The catalogue: one file a topic.

mod claim;
mod claim_order;
mod fencing;
mod fencing_races;
mod fidelity;
mod finish;
mod isolation;
mod lease;
mod reap;
mod reap_due;
mod sleep;
mod start;
mod step;
mod step_together;

use crate::case::Case;

/// Every case, in the order of the catalogue.
pub fn all_cases() -> Vec<Case> {
    [
        start::cases(),
        claim::cases(),
        claim_order::cases(),
        lease::cases(),
        fencing::cases(),
        fencing_races::cases(),
        step::cases(),
        step_together::cases(),
        fidelity::cases(),
        sleep::cases(),
        finish::cases(),
        reap::cases(),
        reap_due::cases(),
        isolation::cases(),
        isolation::operation_cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
