//! How long a demo bears that nothing moves while calls keep failing.

use std::time::{Duration, Instant};

/// Troubles further apart than this have nothing to do with each other: no repeat waits longer.
const RELATED: Duration = Duration::from_secs(15);

/// How often a trouble that lasts is mentioned again.
const REMINDER: Duration = Duration::from_secs(10);

/// Watches whether files get through and what stands in the way. A large file alone takes as long as it
/// takes: only failures that are repeated, with nothing getting through meanwhile, exhaust it.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    through: u64,
    trouble: Option<Trouble>,
}

/// What progress does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// A trouble is over.
    Relieved,
    /// There was none, or there still is.
    Unchanged,
}

#[derive(Debug)]
struct Trouble {
    latest: String,
    since: Instant,
    seen_at: Instant,
    mentioned_at: Option<Instant>,
}

impl Patience {
    /// Patience for `limit`.
    pub const fn new(limit: Duration) -> Self {
        Self { limit, through: 0, trouble: None }
    }

    /// How many files were through when that was last known.
    pub const fn through(&self) -> u64 {
        self.through
    }

    /// So many files are through now. If that ends a trouble, it answers [`Mood::Relieved`].
    pub fn progress(&mut self, through: u64) -> Mood {
        if through <= self.through {
            return Mood::Unchanged;
        }
        self.through = through;
        match self.trouble.take() {
            Some(_) => Mood::Relieved,
            None => Mood::Unchanged,
        }
    }

    /// Something failed that is tried again. Answers what to say about it, unless that was said just now.
    pub fn trouble(&mut self, what: String, now: Instant) -> Option<&str> {
        let known = self.trouble.take().filter(|known| now.duration_since(known.seen_at) <= RELATED);
        let trouble = match known {
            Some(known) => Trouble { latest: what, seen_at: now, ..known },
            None => Trouble { latest: what, since: now, seen_at: now, mentioned_at: None },
        };
        let trouble = self.trouble.insert(trouble);
        if trouble.mentioned_at.is_some_and(|at| now.duration_since(at) < REMINDER) {
            return None;
        }
        trouble.mentioned_at = Some(now);
        Some(&trouble.latest)
    }

    /// Whether it is at its end: then what failed last.
    pub fn exhausted(&self, now: Instant) -> Option<&str> {
        let lasting = self.trouble.as_ref().filter(|trouble| {
            now.duration_since(trouble.seen_at) <= RELATED && now.duration_since(trouble.since) >= self.limit
        });
        lasting.map(|trouble| trouble.latest.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_in_a_row_exhaust_it_and_the_last_one_is_told() {
        let (mut patience, begun) = (Patience::new(30 * SECOND), Instant::now());
        for second in 0..30 {
            patience.trouble(format!("call {second}"), begun + second * SECOND);
            assert_eq!(patience.exhausted(begun + second * SECOND), None);
        }
        assert_eq!(patience.exhausted(begun + 30 * SECOND), Some("call 29"));
    }

    #[test]
    fn whatever_gets_through_restores_it() {
        let (mut patience, begun) = (Patience::new(30 * SECOND), Instant::now());
        patience.trouble("call".to_owned(), begun);
        assert_eq!(patience.progress(1), Mood::Relieved);
        patience.trouble("call".to_owned(), begun + 20 * SECOND);
        assert_eq!(patience.progress(1), Mood::Unchanged);
        assert_eq!(patience.exhausted(begun + 31 * SECOND), None);
        patience.trouble("call".to_owned(), begun + 35 * SECOND);
        assert_eq!(patience.exhausted(begun + 50 * SECOND), Some("call"));
    }

    #[test]
    fn a_long_silence_is_work_and_no_trouble() {
        let (mut patience, begun) = (Patience::new(30 * SECOND), Instant::now());
        patience.trouble("call".to_owned(), begun);
        assert_eq!(patience.exhausted(begun + 60 * SECOND), None);
        patience.trouble("call".to_owned(), begun + 60 * SECOND);
        assert_eq!(patience.exhausted(begun + 60 * SECOND), None);
    }

    #[test]
    fn a_lasting_trouble_is_mentioned_now_and_then() {
        let (mut patience, begun) = (Patience::new(60 * SECOND), Instant::now());
        let mentioned =
            (0..25).filter(|second| patience.trouble(String::new(), begun + *second * SECOND).is_some());
        assert_eq!(mentioned.collect::<Vec<_>>(), [0, 10, 20]);
    }
}
