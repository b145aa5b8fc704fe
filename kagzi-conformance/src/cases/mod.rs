//! The catalogue: one file a topic.

mod claim;
mod claim_order;
mod fencing;
mod fencing_races;
mod lease;
mod start;

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
    ]
    .into_iter()
    .flatten()
    .collect()
}
