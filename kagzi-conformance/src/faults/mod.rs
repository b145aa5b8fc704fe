//! Faults between a caller and the store: calls that never arrive, come late, or lose their reply.
//!
//! Callers send again under the same operation id until they are answered (invariant 8). Whatever was
//! lost on the way, they must hear what a caller without faults hears, and leave the rows that a clean
//! run leaves.

mod connection;
mod operations;
mod workflows;

pub(crate) use connection::Connection;

use crate::case::{Case, cases};
use crate::model::{CLIENTS, Line, TIME, WORKERS, agrees};
use crate::scenario::{Scenario, under};
use crate::violation::Verdict;

cases! { "fault";
    [8, 15] random_work_over_a_line_with_faults_ends_as_without;
    [8, 10, 15] random_work_over_a_line_with_faults_while_time_passes_ends_as_without;
    [7, 8, 15] random_clients_over_a_line_with_faults_hear_what_they_hear_without;
}

/// The cases of this group that are made from lists: one for each write of the trait, and whole workflows.
pub(crate) fn more_cases() -> Vec<Case> {
    [operations::cases(), workflows::cases()].into_iter().flatten().collect()
}

async fn random_work_over_a_line_with_faults_ends_as_without(s: Scenario) -> Verdict {
    let share = s.settings().fault_operations;
    under(
        "what workers do over a line with faults ends as without [8]",
        agrees(s, WORKERS, Line::Faulty, 21, share).await,
    )
}

async fn random_work_over_a_line_with_faults_while_time_passes_ends_as_without(s: Scenario) -> Verdict {
    let share = s.settings().fault_operations;
    under(
        "what time does beside a line with faults ends as without [8]",
        agrees(s, TIME, Line::Faulty, 22, share).await,
    )
}

async fn random_clients_over_a_line_with_faults_hear_what_they_hear_without(s: Scenario) -> Verdict {
    let share = s.settings().fault_operations;
    under(
        "what clients hear over a line with faults is what they hear without [8]",
        agrees(s, CLIENTS, Line::Faulty, 23, share).await,
    )
}
