//! Where the first worker of a demo waits to be killed.
//!
//! A crash at a random moment might hit a worker between two steps and leave no trace to show. So the
//! first worker stops once at the worst moment there is, when a step has done its work and has not told
//! anybody, and says so; the demo then kills it there. Everything else it was doing at that moment is
//! hit wherever it happens to be. Without a hold (every later worker) this file does nothing.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

/// The step in which to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldPoint {
    /// The first one, which every run comes to, also that of a file that cannot be read.
    Digest,
    /// The one that puts the compressed file into its place.
    Write,
}

/// Where to wait, once: at the end of the `nth` execution of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    point: HoldPoint,
    nth: u32,
}

impl Hold {
    /// At the end of the `nth` execution, counted from 1, of the step `point`.
    pub fn new(point: HoldPoint, nth: u32) -> Self {
        Self { point, nth: nth.max(1) }
    }
}

/// Counts executions until the one to wait in comes.
#[derive(Debug)]
pub struct Countdown {
    hold: Hold,
    executed: AtomicU32,
}

impl Countdown {
    /// A countdown to `hold`.
    pub const fn to(hold: Hold) -> Self {
        Self { hold, executed: AtomicU32::new(0) }
    }

    /// Counts an execution of the step `point`; true exactly once, for the one to wait in.
    pub fn is_over(&self, point: HoldPoint) -> bool {
        point == self.hold.point
            && self.executed.fetch_add(1, Ordering::Relaxed).saturating_add(1) == self.hold.nth
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = match self.point {
            HoldPoint::Digest => "digest",
            HoldPoint::Write => "write",
        };
        write!(f, "{point}:{}", self.nth)
    }
}

impl FromStr for Hold {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("expected digest:N or write:N, got {text:?}");
        let (point, nth) = text.split_once(':').ok_or_else(refuse)?;
        let point = match point {
            "digest" => HoldPoint::Digest,
            "write" => HoldPoint::Write,
            _ => return Err(refuse()),
        };
        Ok(Self::new(point, nth.parse().map_err(|_| refuse())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_once_in_the_nth_execution_of_its_own_step() {
        let hold: Hold = "write:2".parse().unwrap();
        let countdown = Countdown::to(hold);
        let here = [HoldPoint::Write, HoldPoint::Digest, HoldPoint::Write, HoldPoint::Write]
            .map(|p| countdown.is_over(p));
        assert_eq!(here, [false, false, true, false]);
        assert_eq!(hold.to_string(), "write:2");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "write", "write:", "write:x", "verify:1"] {
            assert!(text.parse::<Hold>().is_err(), "{text}");
        }
    }
}
