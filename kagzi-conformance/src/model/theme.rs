//! Which calls a random workload is made of, and how often each comes.

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Start,
    Claim,
    Heartbeat,
    Begin,
    Complete,
    CompleteAndBegin,
    CompleteAndFinish,
    Fail,
    Sleep,
    CompleteRun,
    FailRun,
    Release,
    Cancel,
    Requeue,
    Reap,
    Delete,
    /// A queue is paused or, more often, resumed.
    SetQueue,
    Look,
    List,
    /// A write that was sent before is sent again, to the letter.
    Again,
    /// The clock is turned.
    Turn,
}

/// A mixture: each move with its weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    pub(crate) weights: &'static [(Move, u32)],
    /// How many runs are alive at one time, about.
    pub(crate) runs: usize,
    /// How many namespaces there are.
    pub(crate) namespaces: usize,
}

/// What workers do, most of it in order.
pub(crate) const WORKERS: Theme = Theme {
    weights: &[
        (Move::Start, 6),
        (Move::Claim, 14),
        (Move::Heartbeat, 5),
        (Move::Begin, 16),
        (Move::Complete, 10),
        (Move::CompleteAndBegin, 8),
        (Move::CompleteAndFinish, 3),
        (Move::Fail, 6),
        (Move::Sleep, 5),
        (Move::CompleteRun, 3),
        (Move::FailRun, 2),
        (Move::Release, 4),
        (Move::Requeue, 2),
        (Move::Reap, 4),
        (Move::Look, 4),
        (Move::Again, 5),
        (Move::Turn, 6),
    ],
    runs: 5,
    namespaces: 1,
};

/// What time does: leases expire, sleepers wake, timeouts fall.
pub(crate) const TIME: Theme = Theme {
    weights: &[
        (Move::Start, 8),
        (Move::Claim, 18),
        (Move::Heartbeat, 6),
        (Move::Begin, 14),
        (Move::Complete, 6),
        (Move::Fail, 4),
        (Move::Sleep, 8),
        (Move::Requeue, 6),
        (Move::Reap, 12),
        (Move::SetQueue, 4),
        (Move::Look, 4),
        (Move::Turn, 18),
    ],
    runs: 5,
    namespaces: 2,
};

/// What clients and keepers do, in two namespaces that use the same names.
pub(crate) const CLIENTS: Theme = Theme {
    weights: &[
        (Move::Start, 20),
        (Move::Claim, 8),
        (Move::Begin, 5),
        (Move::CompleteAndFinish, 5),
        (Move::FailRun, 5),
        (Move::Cancel, 8),
        (Move::Requeue, 7),
        (Move::Delete, 5),
        (Move::SetQueue, 6),
        (Move::Look, 8),
        (Move::List, 14),
        (Move::Again, 8),
        (Move::Turn, 7),
    ],
    runs: 12,
    namespaces: 2,
};

/// Everything at once over a handful of runs, for callers that compete.
pub(crate) const CROWD: Theme = Theme {
    weights: &[
        (Move::Start, 5),
        (Move::Claim, 12),
        (Move::Heartbeat, 8),
        (Move::Begin, 18),
        (Move::Complete, 12),
        (Move::CompleteAndBegin, 8),
        (Move::CompleteAndFinish, 2),
        (Move::Fail, 4),
        (Move::Sleep, 3),
        (Move::CompleteRun, 2),
        (Move::FailRun, 2),
        (Move::Release, 4),
        (Move::Cancel, 2),
        (Move::Requeue, 5),
        (Move::Reap, 6),
        (Move::Delete, 1),
        (Move::Look, 8),
        (Move::Again, 6),
        (Move::Turn, 1),
    ],
    runs: 4,
    namespaces: 1,
};

/// The same while the clock jumps: leases expire under their holders, sleepers wake.
pub(crate) const CROWD_IN_TIME: Theme = Theme {
    weights: &[
        (Move::Start, 5),
        (Move::Claim, 12),
        (Move::Heartbeat, 12),
        (Move::Begin, 18),
        (Move::Complete, 12),
        (Move::CompleteAndBegin, 8),
        (Move::CompleteAndFinish, 2),
        (Move::Fail, 4),
        (Move::Sleep, 3),
        (Move::CompleteRun, 2),
        (Move::FailRun, 2),
        (Move::Release, 4),
        (Move::Cancel, 2),
        (Move::Requeue, 5),
        (Move::Reap, 12),
        (Move::Delete, 1),
        (Move::Look, 8),
        (Move::Again, 6),
        (Move::Turn, 9),
    ],
    runs: 4,
    namespaces: 1,
};
