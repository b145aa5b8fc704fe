//! Is there an order of concurrent operations that explains every answer?
//!
//! The search of Wing and Gong with Lowe's memory: of the operations that are left, any may come next
//! that was called before the first of them returned; a place that was reached before, the same
//! operations done and the same state, is not searched again. Two things that crates on the shelf do
//! not have (stateright's tester for one, which also knows no memory and grows with the factorial):
//!
//! - an operation may have **several** outcomes that fit its answer, since the store read a clock that
//!   was being turned meanwhile;
//! - an operation **may** have had an effect that no answer tells: a reap repairs some runs and reports
//!   numbers. Such an effect can happen at any moment of its interval, any number of times or never.
//!
//! A history is cut where nothing was in flight. Each piece is searched from every state in which the
//! piece before may have ended, so a violation is narrowed to one piece and the states before it.

use std::collections::HashMap;
use std::ops::Range;

/// What operations do to a state, one after the other.
pub trait Specification {
    /// What the operations work on.
    type State: Clone + PartialEq;
    /// An operation together with what it answered.
    type Event;

    /// A number that equal states share, and different ones mostly do not.
    fn fingerprint(&self, state: &Self::State) -> u64;

    /// Whether `event` leaves every state as it is: a read, or a call that was refused.
    fn changes_nothing(&self, event: &Self::Event) -> bool;

    /// Every state that `event` may lead to from `state`, given what it answered. None: it cannot have
    /// happened here.
    fn after(&self, state: &Self::State, event: &Self::Event) -> Vec<Self::State>;
}

/// Whether an event has its place in every order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It happened, once, and its answer must be explained.
    Must,
    /// It may have happened, any number of times.
    May,
}

/// An event and the interval within which it happened, in stamps that are all different.
#[derive(Clone, Debug)]
pub struct Interval<E> {
    /// It did not happen before.
    pub called: u64,
    /// It did not happen after.
    pub returned: u64,
    /// Whether it happened at all.
    pub duty: Duty,
    /// What happened.
    pub event: E,
}

/// What the search found about one piece.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding<S> {
    /// An order explains every answer; these are the states in which the piece may have ended.
    Explained(Vec<S>),
    /// No order does. The furthest one explains this many answers.
    Unexplained {
        /// How many.
        furthest: usize,
    },
    /// There are too many orders to try them all.
    TooTangled,
}

/// A piece that no order explains.
#[derive(Clone, Debug)]
pub struct Unexplained<S> {
    /// Its place in the history.
    pub piece: Range<usize>,
    /// Where each piece up to this one begins, and the states in which the one before may have ended.
    pub trail: Vec<(usize, Vec<S>)>,
    /// What the search found about it.
    pub finding: Finding<S>,
}

/// How many places one search may reach. Pieces of real histories stay far below.
pub const PLACES: usize = 200_000;

/// Searches a whole history, its events by `called`, piece by piece from the state `start`.
pub fn check<S: Specification>(
    specification: &S,
    start: S::State,
    history: &[Interval<S::Event>],
) -> Result<(), Unexplained<S::State>> {
    let mut before = vec![start];
    let mut trail = Vec::new();
    for piece in pieces(history) {
        let finding = explain(specification, &before, &history[piece.clone()]);
        trail.push((piece.start, before));
        match finding {
            Finding::Explained(ends) => before = ends,
            finding => return Err(Unexplained { piece, trail, finding }),
        }
    }
    Ok(())
}

/// Cuts a history where nothing was in flight.
fn pieces<E>(history: &[Interval<E>]) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut from, mut busy_until) = (0, 0);
    for (at, interval) in history.iter().enumerate() {
        if at > from && interval.called > busy_until {
            pieces.push(from..at);
            from = at;
        }
        busy_until = busy_until.max(interval.returned);
    }
    pieces.push(from..history.len());
    pieces
}

/// Which of the events of a piece that must happen have happened.
type Done = Vec<u64>;

fn is_done(done: &Done, at: usize) -> bool {
    done[at / 64] & (1 << (at % 64)) != 0
}

fn with(done: &Done, at: usize) -> Done {
    let mut more = done.clone();
    more[at / 64] |= 1 << (at % 64);
    more
}

/// A search in progress.
struct Search<'a, S: Specification> {
    specification: &'a S,
    piece: &'a [Interval<S::Event>],
    /// Every place that was reached.
    places: Vec<(Done, S::State)>,
    known: HashMap<(u64, u64), Vec<usize>>,
    open: Vec<usize>,
}

/// Searches one piece from any of the states `before`.
pub fn explain<S: Specification>(
    specification: &S,
    before: &[S::State],
    piece: &[Interval<S::Event>],
) -> Finding<S::State> {
    let mut search =
        Search { specification, piece, places: Vec::new(), known: HashMap::new(), open: Vec::new() };
    let nothing = vec![0; piece.len().div_ceil(64).max(1)];
    for state in before {
        search.reach(nothing.clone(), state.clone());
    }
    let must = piece.iter().filter(|interval| interval.duty == Duty::Must).count();
    let (mut ends, mut furthest): (Vec<S::State>, usize) = (Vec::new(), 0);
    while let Some(at) = search.open.pop() {
        if search.places.len() > PLACES {
            return Finding::TooTangled;
        }
        let (done, state) = search.places[at].clone();
        let count = done.iter().map(|word| word.count_ones() as usize).sum();
        furthest = furthest.max(count);
        if count == must && !ends.contains(&state) {
            ends.push(state.clone());
        }
        search.go_on(&done, &state);
    }
    if ends.is_empty() { Finding::Unexplained { furthest } } else { Finding::Explained(ends) }
}

impl<S: Specification> Search<'_, S> {
    /// Goes on from a place with every event that may come next.
    fn go_on(&mut self, done: &Done, state: &S::State) {
        let piece = self.piece;
        let left = |at: &usize| piece[*at].duty == Duty::Must && !is_done(done, *at);
        let all = || 0..piece.len();
        // Whatever is called after one of those left has returned comes after that one.
        let bound = all().filter(left).map(|at| piece[at].returned).min().unwrap_or(u64::MAX);
        let latest = all().filter(|at| is_done(done, *at)).map(|at| piece[at].called).max().unwrap_or(0);
        let next = || piece.iter().enumerate().filter(|(_, interval)| interval.called < bound);
        // What changes nothing and is explained here can as well come now, and nothing else need be
        // tried: it would be explained here in any other order too. Only what may happen and ended
        // before it was called must not be passed by.
        for (at, interval) in next().filter(|(at, _)| left(at)) {
            let passed_by = |may: &Interval<S::Event>| {
                may.duty == Duty::May && may.returned >= latest && may.returned < interval.called
            };
            if self.specification.changes_nothing(&interval.event)
                && !piece.iter().any(passed_by)
                && !self.specification.after(state, &interval.event).is_empty()
            {
                return self.reach(with(done, at), state.clone());
            }
        }
        for (at, interval) in next() {
            match interval.duty {
                Duty::Must if is_done(done, at) => {}
                Duty::Must => {
                    for next in self.specification.after(state, &interval.event) {
                        self.reach(with(done, at), next);
                    }
                }
                Duty::May if interval.returned < latest => {}
                Duty::May => {
                    for next in self.specification.after(state, &interval.event) {
                        self.reach(done.clone(), next);
                    }
                }
            }
        }
    }

    /// Notes a place and opens it, unless it was reached before.
    fn reach(&mut self, done: Done, state: S::State) {
        let key = (
            done.iter().fold(0, |sum: u64, word| sum.rotate_left(7) ^ word),
            self.specification.fingerprint(&state),
        );
        let alike = self.known.entry(key).or_default();
        if alike.iter().any(|at| self.places[*at].0 == done && self.places[*at].1 == state) {
            return;
        }
        alike.push(self.places.len());
        self.open.push(self.places.len());
        self.places.push((done, state));
    }
}
