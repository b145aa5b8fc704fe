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

/// A place in a search: what has happened, and what came of it.
struct Place<S> {
    done: Done,
    state: S,
    /// The place before, and the event that led here; none at a start.
    by: Option<(usize, usize)>,
    /// How many events led here.
    depth: usize,
}

/// A search in progress.
struct Search<'a, S: Specification> {
    specification: &'a S,
    piece: &'a [Interval<S::Event>],
    /// Every place that was reached.
    places: Vec<Place<S::State>>,
    known: HashMap<(u64, u64), Vec<usize>>,
    open: Vec<usize>,
}

/// Searches one piece from any of the states `before`.
pub fn explain<S: Specification>(
    specification: &S,
    before: &[S::State],
    piece: &[Interval<S::Event>],
) -> Finding<S::State> {
    let mut search = Search::from(specification, before, piece);
    if !search.run() {
        return Finding::TooTangled;
    }
    let (must, mut ends, mut furthest) = (search.must(), Vec::<S::State>::new(), 0);
    for place in search.places {
        let count = count(&place.done);
        furthest = furthest.max(count);
        if count == must && !ends.contains(&place.state) {
            ends.push(place.state);
        }
    }
    if ends.is_empty() { Finding::Unexplained { furthest } } else { Finding::Explained(ends) }
}

fn count(done: &Done) -> usize {
    done.iter().map(|word| word.count_ones() as usize).sum()
}

/// Events by their places in a piece, each with the state after it, from a state before the piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order<S> {
    pub(super) from: S,
    pub(super) events: Vec<(usize, S)>,
}

impl<S: Clone> Order<S> {
    /// The state at its end.
    pub(super) fn end(&self) -> &S {
        self.events.last().map_or(&self.from, |(_, state)| state)
    }
}

/// An order that explains a whole piece and ends in the state `end`.
pub(super) fn order_to<S: Specification>(
    specification: &S,
    before: &[S::State],
    piece: &[Interval<S::Event>],
    end: &S::State,
) -> Option<Order<S::State>> {
    let mut search = Search::from(specification, before, piece);
    search.run();
    let must = search.must();
    let there = |place: &Place<S::State>| count(&place.done) == must && place.state == *end;
    let ends = search.places.iter().enumerate().filter(|(_, place)| there(place));
    let (shortest, _) = ends.min_by_key(|(_, place)| place.depth)?;
    Some(search.order(shortest))
}

/// Of a piece that no order explains: one that explains as much as any, and an event that cannot come next
/// there though it must, chosen so that `distance`, asked for a state and an event, is least.
pub(super) fn nearest<S: Specification>(
    specification: &S,
    before: &[S::State],
    piece: &[Interval<S::Event>],
    distance: impl Fn(&S::State, usize) -> usize,
) -> Option<(Order<S::State>, usize)> {
    let mut search = Search::from(specification, before, piece);
    search.run();
    let furthest = search.places.iter().map(|place| count(&place.done)).max()?;
    let at_last = search.places.iter().enumerate().filter(|(_, place)| count(&place.done) == furthest);
    let (_, place, stuck) = at_last
        .flat_map(|(at, place)| search.due(&place.done).map(move |event| (at, place, event)))
        .map(|(at, place, event)| ((distance(&place.state, event), place.depth), at, event))
        .min()?;
    Some((search.order(place), stuck))
}

impl<'a, S: Specification> Search<'a, S> {
    fn from(specification: &'a S, before: &[S::State], piece: &'a [Interval<S::Event>]) -> Self {
        let mut search =
            Self { specification, piece, places: Vec::new(), known: HashMap::new(), open: Vec::new() };
        let nothing = vec![0; piece.len().div_ceil(64).max(1)];
        for state in before {
            search.reach(nothing.clone(), state.clone(), None);
        }
        search
    }

    /// Reaches every place that can be reached; false if there are too many.
    fn run(&mut self) -> bool {
        while let Some(at) = self.open.pop() {
            if self.places.len() > PLACES {
                return false;
            }
            self.go_on(at);
        }
        true
    }

    /// How many events must happen.
    fn must(&self) -> usize {
        self.piece.iter().filter(|interval| interval.duty == Duty::Must).count()
    }

    fn order(&self, mut at: usize) -> Order<S::State> {
        let mut events = Vec::new();
        while let Some((before, event)) = self.places[at].by {
            events.push((event, self.places[at].state.clone()));
            at = before;
        }
        events.reverse();
        Order { from: self.places[at].state.clone(), events }
    }

    /// The events that must happen and may come next.
    fn due<'d>(&self, done: &'d Done) -> impl Iterator<Item = usize> + use<'a, 'd, S> {
        let piece = self.piece;
        let bound = self.bound(done);
        let left = |at: &usize| piece[*at].duty == Duty::Must && !is_done(done, *at);
        (0..piece.len()).filter(left).filter(move |at| piece[*at].called < bound)
    }

    /// Whatever is called after one of those left has returned comes after that one.
    fn bound(&self, done: &Done) -> u64 {
        let all = self.piece.iter().enumerate();
        let left = all.filter(|(at, one)| one.duty == Duty::Must && !is_done(done, *at));
        left.map(|(_, one)| one.returned).min().unwrap_or(u64::MAX)
    }

    /// Goes on from a place with every event that may come next.
    fn go_on(&mut self, from: usize) {
        let piece = self.piece;
        let (done, state) = (&self.places[from].done.clone(), &self.places[from].state.clone());
        let left = |at: &usize| piece[*at].duty == Duty::Must && !is_done(done, *at);
        let all = || 0..piece.len();
        let bound = self.bound(done);
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
                return self.reach(with(done, at), state.clone(), Some((from, at)));
            }
        }
        for (at, interval) in next() {
            match interval.duty {
                Duty::Must if is_done(done, at) => {}
                Duty::Must => {
                    for next in self.specification.after(state, &interval.event) {
                        self.reach(with(done, at), next, Some((from, at)));
                    }
                }
                Duty::May if interval.returned < latest => {}
                Duty::May => {
                    for next in self.specification.after(state, &interval.event) {
                        self.reach(done.clone(), next, Some((from, at)));
                    }
                }
            }
        }
    }

    /// Notes a place and opens it, unless it was reached before.
    fn reach(&mut self, done: Done, state: S::State, by: Option<(usize, usize)>) {
        let key = (
            done.iter().fold(0, |sum: u64, word| sum.rotate_left(7) ^ word),
            self.specification.fingerprint(&state),
        );
        let alike = self.known.entry(key).or_default();
        if alike.iter().any(|at| self.places[*at].done == done && self.places[*at].state == state) {
            return;
        }
        let depth = by.map_or(0, |(before, _)| self.places[before].depth + 1);
        alike.push(self.places.len());
        self.open.push(self.places.len());
        self.places.push(Place { done, state, by, depth });
    }
}
