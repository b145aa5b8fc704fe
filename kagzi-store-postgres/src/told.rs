//! The time that the database told a moment ago.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kagzi_core::Timestamp;

/// For so long the time is counted on from what the database told, before it is asked again: a process's own
/// clock goes wrong by less than a tenth of a millisecond in it, and what is dated so takes longer to commit.
const GOOD_FOR: Duration = Duration::from_millis(500);

/// What the database told last. It is old by the way of the answer, so what is dated by it is never in the
/// database's future.
#[derive(Debug, Default)]
pub(crate) struct TimeTold(Mutex<Option<(Timestamp, Instant)>>);

impl TimeTold {
    /// Notes what the database just told.
    pub(crate) fn note(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Instant::now()));
    }

    /// The time, if it was told a moment ago.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        let (told, at) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = at.elapsed();
        (since < GOOD_FOR).then(|| told.saturating_add(since))
    }
}
