//! Bugs round the reference store.

use std::sync::Arc;

use kagzi_core::Rules;

use super::{Kind, Saboteur};
use crate::stores::memory::Memory;
use crate::wrapped::answers::{
    AcknowledgesFirst, BeatsAnsweredAsLocked, BeatsFailAsOne, ForgetsAnswers, SleepKeepsTheLease,
    StartsOneByOne, WakesEarly,
};
use crate::wrapped::batching::FirstWritesForAll;
use crate::wrapped::claim::{CarelessClaim, NothingIsRemembered, RepeatsChargeNoInputs};
use crate::wrapped::fencing::{Blind, NoTokenCheck, Owner};
use crate::wrapped::many::{
    BeatsAreAllAlike, LabelsIgnoreCase, LooksAtTen, PagesAreAllAlike, PausesIgnoreCase, ReapsAPiece,
    StartsInPieces,
};
use crate::wrapped::reading::{
    CountsAPage, CountsIgnoreLabels, CursorSkipsTies, ReadsTwice, RemovalCountsWhatItLooksAt, RemovesTooMuch,
};
use crate::wrapped::reap::{NothingIsDue, ReapKnowsNoLimit, ReapMiscounts, ReapSaysDone};
use crate::wrapped::step::{
    BeginReadsFirst, CompletesInHalves, HistoryRenumbers, MemoryIsText, OutputsAreText, SecondBeginExecutes,
};
use crate::wrapped::wake_up::{ResumesLate, ToldBeforeSeen, WakesForLater, WakesNobody};

pub(super) fn one(name: &'static str, meant: &'static [&'static str], memory: Memory) -> Saboteur {
    Saboteur { name, kind: Kind::Memory, meant, fixture: Arc::new(memory) }
}

fn blind(blind: Blind, owner: Owner) -> Memory {
    Memory::wrapped(NoTokenCheck { blind, owner })
}

/// All of them.
pub(super) fn saboteurs() -> Vec<Saboteur> {
    [fencing(), claims(), steps(), answers(), keeping(), rules(), many()].into_iter().flatten().collect()
}

fn fencing() -> Vec<Saboteur> {
    vec![
        one(
            "no write looks at the token",
            &["fencing::", "lease::a_heartbeat_with_a_stale_token"],
            blind(Blind::All, Owner::Anybody),
        ),
        one(
            "ownership goes by the worker's name",
            &["by_the_same_worker_id"],
            blind(Blind::All, Owner::WorkerName),
        ),
        one(
            "completing a step does not look at the token",
            &["fencing::complete_step", "fencing::a_worker_that_was_frozen"],
            blind(Blind::CompleteStep, Owner::Anybody),
        ),
        one(
            "a late failure is taken from whoever held the run",
            &["fencing::fail_step"],
            blind(Blind::FailStep, Owner::Anybody),
        ),
        one(
            "a frozen worker's heartbeat extends its successor's lease",
            &["fencing::heartbeat", "lease::a_heartbeat"],
            blind(Blind::Heartbeat, Owner::Anybody),
        ),
        one(
            "a late release strips the next holder of its lease",
            &["fencing::release", "lease::a_second_release"],
            blind(Blind::Release, Owner::WorkerName),
        ),
    ]
}

fn claims() -> Vec<Saboteur> {
    vec![
        one(
            "a claim takes any type",
            &["claim::only_the_asked_types", "claim::a_type_filter"],
            Memory::wrapped(CarelessClaim::Types),
        ),
        one("a claim takes one run too many", &["claim::the_limit"], Memory::wrapped(CarelessClaim::Limit)),
        one(
            "a claim looks at its first queue only",
            &["claim::one_claim_takes_from_several_queues"],
            Memory::wrapped(CarelessClaim::Queues),
        ),
        one(
            "a claim sent again takes more",
            &["claim::the_same_claim_again", "claim::concurrent_repeats"],
            Memory::wrapped(CarelessClaim::Operation),
        ),
        one(
            "a claim keeps silent about steps beyond its page",
            &["claim::says_how_to_get"],
            Memory::wrapped(CarelessClaim::MoreSteps),
        ),
        one(
            "a claim hands over no steps",
            &["claim::carries", "step::begin_after_complete"],
            Memory::wrapped(CarelessClaim::Steps),
        ),
        one(
            "a claim hands over a hundred steps and says that these are all",
            &["claim::a_long_history"],
            Memory::wrapped(CarelessClaim::StepsBeyondAHundred),
        ),
        one(
            "a claim sent again does not count its inputs",
            &["claim::a_claim_sent_again_charges_the_inputs"],
            Memory::wrapped(RepeatsChargeNoInputs::default()),
        ),
        one(
            "a claim that found nothing finds nothing for ever",
            &["wake_up::a_poll_that_is_woken_for_nothing", "wake_up::a_thousand_polls"],
            Memory::wrapped(NothingIsRemembered::default()),
        ),
    ]
}

fn steps() -> Vec<Saboteur> {
    vec![
        one(
            "a begin reads before it writes",
            &["step::thirty_two_concurrent_begins_of_one_step"],
            Memory::wrapped(BeginReadsFirst),
        ),
        one(
            "a second begin executes the step again",
            &["step::another_begin_under_the_same_lease"],
            Memory::wrapped(SecondBeginExecutes),
        ),
        one("outputs are written as text", &["step::outputs_come_back"], Memory::wrapped(OutputsAreText)),
        one(
            "memoized outputs are read as text",
            &["step::outputs_come_back", "step::begin_after_complete"],
            Memory::wrapped(MemoryIsText),
        ),
        one(
            "a completion and what follows are two writes",
            &["step::if_the", "step::the_next_step", "step::complete_and"],
            Memory::wrapped(CompletesInHalves::AtOnce),
        ),
        one(
            "who goes away in the middle of a completion leaves half of it",
            &["batching::a_dropped_complete_and"],
            Memory::wrapped(CompletesInHalves::WithAWait),
        ),
        one(
            "who goes away while writing for all leaves all without answer",
            &["batching::a_dropped_begin"],
            Memory::wrapped(FirstWritesForAll::default()),
        ),
        one(
            "the history is renumbered without its abandoned attempts",
            &["step::begin_under_a_new_lease", "step::a_hundred_attempts"],
            Memory::wrapped(HistoryRenumbers),
        ),
    ]
}

fn answers() -> Vec<Saboteur> {
    vec![
        one(
            "a repeat of a rare operation is a new one",
            &["sent_again", "_again_"],
            Memory::wrapped(ForgetsAnswers),
        ),
        one(
            "the runs of a batch are started one by one",
            &["start::a_batch"],
            Memory::wrapped(StartsOneByOne),
        ),
        one(
            "one lost lease fails the heartbeats beside it",
            &["lease::every_lease_of_a_batch", "fencing::a_batch_of_the_frozen"],
            Memory::wrapped(BeatsFailAsOne),
        ),
        one(
            "the verdicts of a batch of heartbeats come in another order",
            &["lease::every_lease_of_a_batch"],
            Memory::wrapped(BeatsAnsweredAsLocked),
        ),
        one("a sleeper wakes a microsecond early", &["sleep::a_sleeper"], Memory::wrapped(WakesEarly)),
        one(
            "a sleep keeps the lease and the run awake",
            &["sleep::a_sleeper", "sleep::the_old_lease"],
            Memory::wrapped(SleepKeepsTheLease),
        ),
        one(
            "the end of a run is acknowledged before it is written",
            &["finish::completing"],
            Memory::wrapped(AcknowledgesFirst),
        ),
    ]
}

fn keeping() -> Vec<Saboteur> {
    vec![
        one("a reap knows no limit", &["reap::at_most_the_limit"], Memory::wrapped(ReapKnowsNoLimit)),
        one(
            "a reap reports other things than it did",
            &["reap::the_numbers_reported"],
            Memory::wrapped(ReapMiscounts),
        ),
        one(
            "a reap at its limit says that nothing more is due",
            &["reap::at_most_the_limit", "reap::repeated_reaps"],
            Memory::wrapped(ReapSaysDone),
        ),
        one("nothing is ever due next", &["reap::next_due"], Memory::wrapped(NothingIsDue)),
        one("nobody is woken", &["wake_up::"], Memory::wrapped(WakesNobody::default())),
        one(
            "a queue is resumed by the next claim, and wakes nobody",
            &["pause::resuming_wakes_the_queue"],
            Memory::wrapped(ResumesLate::default()),
        ),
        one(
            "a removal takes what finished at its very moment",
            &["reading::a_removal_takes_only_what_finished_before"],
            Memory::wrapped(RemovesTooMuch),
        ),
        one(
            "the limit of a removal counts what it looked at",
            &["reading::the_limit_of_a_removal"],
            Memory::wrapped(RemovalCountsWhatItLooksAt),
        ),
        one(
            "a page ends and the rest of its moment is skipped",
            &["reading::pages", "reading::a_filtered_listing"],
            Memory::wrapped(CursorSkipsTies),
        ),
        one(
            "counts pass over labels",
            &["reading::counts_agree", "reading::all_filters"],
            Memory::wrapped(CountsIgnoreLabels),
        ),
        one("a count ends at two thousand", &["reading::a_count_knows"], Memory::wrapped(CountsAPage)),
        one(
            "a run and its output are read one after the other",
            &["reading::a_run_that_is_seen_to_have_completed"],
            Memory::wrapped(ReadsTwice),
        ),
        one(
            "a queue is woken before its run can be seen",
            &["wake_up::a_hint_finds_the_run"],
            Memory::wrapped(ToldBeforeSeen::default()),
        ),
        one(
            "a queue is woken for a run that is to start later",
            &["wake_up::a_delayed_start_wakes"],
            Memory::wrapped(WakesForLater),
        ),
    ]
}

fn rules() -> Vec<Saboteur> {
    vec![
        one(
            "payloads are not limited",
            &["over_the_limit"],
            Memory::under(|rules| Rules { max_payload_bytes: rules.max_payload_bytes + 1, ..rules }),
        ),
        one(
            "a failure that must not be retried is",
            &["retry::a_non_retryable_code"],
            Memory::under(|mut rules| {
                rules.default_retry.non_retryable_codes.clear();
                rules
            }),
        ),
        one(
            "a poison run is never given up",
            &["reap::a_poison_run", "claim::a_run_that_lost_too_many"],
            Memory::under(|rules| Rules { poison_after: u32::MAX, ..rules }),
        ),
    ]
}

fn many() -> Vec<Saboteur> {
    vec![
        one("a large batch is started in pieces", &["start::a_large_batch"], Memory::wrapped(StartsInPieces)),
        one(
            "a claim looks at its first ten queues",
            &["claim::a_claim_of_many_queues"],
            Memory::wrapped(LooksAtTen::Queues),
        ),
        one(
            "a claim looks at its first ten types",
            &["claim::a_claim_of_many_queues"],
            Memory::wrapped(LooksAtTen::Types),
        ),
        one(
            "labels are found whatever the case of their values",
            &["isolation::labels_that_are"],
            Memory::wrapped(LabelsIgnoreCase),
        ),
        one(
            "a pause is of the queue of that name in small letters",
            &["isolation::queues_that_are_nearly_the_same_are_paused"],
            Memory::wrapped(PausesIgnoreCase),
        ),
        one(
            "all pages are as long as the first",
            &["reading::a_page_may_be"],
            Memory::wrapped(PagesAreAllAlike::default()),
        ),
        one(
            "all leases of a batch are extended by the first length",
            &["lease::every_lease_of_a_batch_is_extended"],
            Memory::wrapped(BeatsAreAllAlike),
        ),
        one(
            "a large reap treats a piece and says that this was all",
            &["reap::a_large_reap"],
            Memory::wrapped(ReapsAPiece),
        ),
    ]
}
