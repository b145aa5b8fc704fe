//! The catalogue: one file a topic.

mod start;

use crate::case::Case;

/// Every case, in the order of the catalogue.
pub fn all_cases() -> Vec<Case> {
    [start::cases()].into_iter().flatten().collect()
}
