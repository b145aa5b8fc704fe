//! Bugs of listings round the reference store.

use super::Saboteur;
use super::wrapped::one;
use crate::stores::memory::Memory;
use crate::wrapped::listing::{
    Forgotten, HandsOverNoTrace, ListsInPart, LongPagesEnd, OnePieceOfEach, PagesForget, SinceItIsDue,
};

/// All of them.
pub(super) fn saboteurs() -> Vec<Saboteur> {
    const PAGES: &[&str] = &["reading::every_page"];
    let forgets = |name, part| one(name, PAGES, Memory::wrapped(PagesForget(part)));
    vec![
        forgets("later pages are of any queue", Forgotten::Queue),
        forgets("later pages are of any type", Forgotten::Type),
        forgets("later pages have any labels", Forgotten::Labels),
        forgets("later pages go back as far as there are runs", Forgotten::Since),
        forgets("later pages keep to the states alone", Forgotten::AllButStates),
        one(
            "a page of runs ends at a thousand and says that it is the last",
            &["reading::a_page_of_two_thousand_runs"],
            Memory::wrapped(LongPagesEnd::OfRuns),
        ),
        one(
            "a page of attempts ends at a thousand and says that it is the last",
            &["reading::a_page_of_two_thousand_attempts"],
            Memory::wrapped(LongPagesEnd::OfAttempts),
        ),
        one(
            "runs are listed without labels and trace",
            &["reading::a_run_is_listed_and_handed_over"],
            Memory::wrapped(ListsInPart),
        ),
        one(
            "runs are handed over without their trace",
            &["reading::a_run_is_listed_and_handed_over"],
            Memory::wrapped(HandsOverNoTrace),
        ),
        one(
            "runs created since a moment are those that are due since",
            &["reading::a_run_that_is_due_later"],
            Memory::wrapped(SinceItIsDue),
        ),
        one(
            "a listing ends where a piece of one partition does",
            &["reading::runs_whose_ids_lead"],
            Memory::wrapped(OnePieceOfEach),
        ),
    ]
}
