//! Bugs of memory and of hints round the reference store.

use std::sync::Arc;

use super::{Kind, Saboteur};
use crate::stores::memory::Memory;
use crate::wrapped::claim::{CarelessClaim, StepsReadLater};
use crate::wrapped::stale::{
    BeatsAPiece, BeatsBuryTheDue, FirstOfAKeyWins, HoldersOutliveRuns, LastTwinWins, QuietUntil,
    ReadsAHundred, ReaperMisses, RemembersTheLastSteps, RemovesByItsList, RepeatsAreInProgress,
    StumblesOverTwins, TellsOfAHundredQueues, TellsSystemTime, TellsTimeWhenClosed, TimeoutsTellNobody,
};

fn one(name: &'static str, meant: &'static [&'static str], memory: Memory) -> Saboteur {
    Saboteur { name, kind: Kind::Memory, meant, fixture: Arc::new(memory) }
}

/// All of them.
pub(super) fn saboteurs() -> Vec<Saboteur> {
    [memories(), hints()].into_iter().flatten().collect()
}

fn hints() -> Vec<Saboteur> {
    vec![
        one(
            "nobody tells the reaper of the timeout of a next step",
            &["wake_up::the_timeout_of_a_step_begun"],
            Memory::wrapped(ReaperMisses::NextSteps),
        ),
        one(
            "nobody tells the reaper of a retry",
            &["wake_up::a_retry_that_waits"],
            Memory::wrapped(ReaperMisses::Retries),
        ),
        one(
            "nobody tells the reaper of the deadline of a requeued run",
            &["wake_up::the_fresh_deadline"],
            Memory::wrapped(ReaperMisses::Requeues),
        ),
        one(
            "a step timeout that ends its run wakes nobody",
            &["wake_up::a_step_timeout_that_ends"],
            Memory::each(|| Arc::new(TimeoutsTellNobody::of(false))),
        ),
        one(
            "a step timeout that is retried at once wakes nobody",
            &["wake_up::a_step_timeout_that_is_retried"],
            Memory::each(|| Arc::new(TimeoutsTellNobody::of(true))),
        ),
    ]
}

fn memories() -> Vec<Saboteur> {
    vec![
        one(
            "a handle remembers until when nothing comes due, whatever other handles start",
            &["claim::a_sleeper_that_another_handle"],
            Memory::each(|| Arc::new(QuietUntil::default())),
        ),
        one(
            "each heartbeat leaves an entry behind that a claim looks through before it looks for sleepers",
            &["claim::a_long_held_run"],
            Memory::each(|| Arc::new(BeatsBuryTheDue::default())),
        ),
        one(
            "whoever held a run that was removed may extend the lease of its next life",
            &["fencing::the_lease_of_a_removed_run"],
            Memory::wrapped(HoldersOutliveRuns::default()),
        ),
        one(
            "a claim hands over 256 steps and says that these are all",
            &["claim::a_history_of_hundreds"],
            Memory::wrapped(CarelessClaim::StepsBeyond256),
        ),
        one(
            "the steps of claimed runs are read after the claim, whoever holds them by then",
            &["claim::a_claim_that_pauses"],
            Memory::wrapped(StepsReadLater),
        ),
        one(
            "a removal takes what was requeued since it made its list",
            &["dead_letters::a_requeue_against_a_removal"],
            Memory::wrapped(RemovesByItsList),
        ),
        one(
            "a store tells the system's time and writes by its own clock",
            &["reading::the_time_that_a_store_tells"],
            Memory::wrapped(TellsSystemTime),
        ),
        one(
            "an operation twice in a batch of starts is an error",
            &["start::an_operation_twice_in_one_batch_makes"],
            Memory::wrapped(StumblesOverTwins),
        ),
        one(
            "of two starts of one operation in a batch the last is taken for both",
            &["start::an_operation_twice_in_one_batch_for"],
            Memory::wrapped(LastTwinWins),
        ),
        one(
            "a completion sent again is told that its known next step is in progress",
            &["step::complete_and_begin_next_sent_again_gives_the_memoized"],
            Memory::wrapped(RepeatsAreInProgress::default()),
        ),
        one(
            "heartbeats beyond the thousandth of a batch are answered and not written",
            &["lease::thousands_of_leases"],
            Memory::wrapped(BeatsAPiece),
        ),
        one(
            "no more than a hundred runs are read at once",
            &["reading::hundreds_of_runs"],
            Memory::wrapped(ReadsAHundred),
        ),
        one(
            "no more than a hundred queues are told of",
            &["reading::the_depths_of_hundreds"],
            Memory::wrapped(TellsOfAHundredQueues),
        ),
        one(
            "a worker's steps but the last 256 are forgotten while it holds the run",
            &["step::the_first_of_hundreds_of_steps"],
            Memory::wrapped(RemembersTheLastSteps),
        ),
        one(
            "of two starts under one key in a batch the first is taken for both",
            &["start::a_key_twice_in_one_batch_for"],
            Memory::wrapped(FirstOfAKeyWins),
        ),
        one(
            "a closed store tells the time",
            &["durability::no_call_to_a_closed_store"],
            Memory::wrapped(TellsTimeWhenClosed),
        ),
    ]
}
