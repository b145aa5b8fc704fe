//! How much one claim hands over: a budget in bytes, over all of its runs together.

use crate::limits::Rules;
use crate::op::{AttemptScope, ListAttempts};
use crate::page::{Page, PageRequest};
use crate::run::Run;
use crate::step::Attempt;

/// What a recorded step weighs beside its payloads.
const STEP_BYTES: usize = 256;

/// The room that is left in the answer to one claim; see [`Rules::max_claim_bytes`].
///
/// A backend asks [`takes`](Self::takes) for one run after the other, in the order of claims, and takes
/// no more after the first no: the runs that follow stay PENDING, and it announces the queues, since
/// fewer runs than were asked for do not mean here that there are no more. Then it cuts the recorded
/// steps of the runs it took, in the same order, with [`steps`](Self::steps). Inputs go first, so that a
/// long history never keeps a run from being taken.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRoom {
    left_bytes: usize,
    any_taken: bool,
}

impl ClaimRoom {
    /// All the room that `rules` give.
    pub const fn new(rules: &Rules) -> Self {
        Self { left_bytes: rules.max_claim_bytes, any_taken: false }
    }

    /// How much is left, in bytes: nobody needs to read more than that.
    pub const fn left_bytes(&self) -> usize {
        self.left_bytes
    }

    /// Whether the next run is taken, by the size of its input. The first one always is.
    pub const fn takes(&mut self, input_bytes: usize) -> bool {
        if self.any_taken && input_bytes > self.left_bytes {
            self.left_bytes = 0;
            return false;
        }
        self.any_taken = true;
        self.left_bytes = self.left_bytes.saturating_sub(input_bytes);
        true
    }

    /// The steps to hand over with `run`: of the first page of its latest attempts, those that there is
    /// room for, and where to go on. From the first step on that has no room, over all runs, none is
    /// handed over.
    pub fn steps(&mut self, run: &Run, mut page: Page<Attempt>) -> Page<Attempt> {
        let Some(kept) = page.items.iter().position(|step| !self.has_room_for(step)) else { return page };
        page.items.truncate(kept);
        let listing = ListAttempts {
            namespace: run.namespace.clone(),
            run_id: run.run_id,
            scope: AttemptScope::Latest,
            page: PageRequest::first(1),
        };
        let next =
            page.items.last().map_or_else(|| listing.cursor_at_start(), |last| listing.cursor_after(last));
        Page { items: page.items, next: Some(next) }
    }

    fn has_room_for(&mut self, step: &Attempt) -> bool {
        let left = self.left_bytes.checked_sub(weight(step));
        self.left_bytes = left.unwrap_or(0);
        left.is_some()
    }
}

/// About how many bytes a recorded step takes; never less than its output and 256.
fn weight(step: &Attempt) -> usize {
    let failure = step.failure.as_ref().map_or(0, |failure| {
        failure.code.len()
            + failure.message.len()
            + failure.details.as_ref().map_or(0, crate::Payload::len_bytes)
    });
    STEP_BYTES + step.output.as_ref().map_or(0, crate::Payload::len_bytes) + failure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: usize) -> ClaimRoom {
        ClaimRoom::new(&Rules { max_claim_bytes: bytes, ..Rules::default() })
    }

    #[test]
    fn the_first_run_is_taken_whatever_its_size_and_the_rest_as_far_as_they_fit() {
        let mut room = room(10);
        assert!(room.takes(1000));
        assert!(room.takes(0), "nothing fits everywhere");
        assert!(!room.takes(1));
        let mut room = self::room(10);
        assert!(room.takes(4) && room.takes(6));
        assert!(!room.takes(1));
    }

    #[test]
    fn what_comes_behind_a_run_that_has_no_room_has_none_either() {
        let mut room = room(10);
        assert!(room.takes(5));
        assert!(!room.takes(6));
        assert!(!room.takes(1), "the order of claims would break");
    }
}
