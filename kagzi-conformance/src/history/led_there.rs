//! Which calls led to what an order was to answer: all that happened, without what makes no difference.

use kagzi_core::Timestamp;

use super::checker::{Interval, Order, Unexplained, order_to};
use super::difference::{differences, names};
use super::slot::{Event, Judged, Slot, SlotRules};

/// One event of an order.
struct Step<'e> {
    event: &'e Event,
    /// The moment at which it led to what came of it.
    moment: Timestamp,
}

/// An order from the first event of a slot up to where `last` begins, and then through `last`; its events by
/// their places in `events`, which has them all. `from` is the place at which those of `last` begin.
pub(super) fn whole_order(
    rules: &SlotRules,
    events: &[Interval<Event>],
    unexplained: &Unexplained<Slot>,
    from: usize,
    last: Order<Slot>,
) -> Order<Slot> {
    let mut whole = Order {
        from: last.from,
        events: last.events.into_iter().map(|(at, state)| (at + from, state)).collect(),
    };
    let mut end = from;
    for (begin, before) in unexplained.trail.iter().rev().filter(|(begin, _)| *begin < from) {
        let Some(order) = order_to(rules, before, &events[*begin..end], &whole.from) else { break };
        let earlier = order.events.into_iter().map(|(at, state)| (at + begin, state));
        whole.events.splice(0..0, earlier);
        whole.from = order.from;
        end = *begin;
    }
    whole
}

/// Of the events of an order, by their places, those without which something else would be expected of
/// `stuck`.
pub(super) fn needed(
    rules: &SlotRules,
    events: &[Interval<Event>],
    order: &Order<Slot>,
    stuck: &Event,
) -> Vec<usize> {
    let mut before = &order.from;
    let mut steps = Vec::new();
    for (at, after) in &order.events {
        let event = &events[*at].event;
        if after != before {
            let leads = |now: &&Timestamp| rules.at(before, &event.part, Judged::Not, **now).contains(after);
            let moment = event.moments.iter().find(leads).or(event.moments.last());
            steps.extend(moment.map(|moment| (*at, Step { event, moment: *moment })));
        }
        before = after;
    }
    let expected = differences(rules, order.end(), stuck);
    let mut place = 0;
    while place < steps.len() {
        let without =
            steps.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, (_, step))| step);
        let end = played(rules, &order.from, without);
        if names(&differences(rules, &end, stuck)) == names(&expected) {
            steps.remove(place);
        } else {
            place += 1;
        }
    }
    steps.into_iter().map(|(at, _)| at).collect()
}

/// What comes of some events, whatever was answered.
fn played<'s, 'e: 's>(rules: &SlotRules, from: &Slot, steps: impl Iterator<Item = &'s Step<'e>>) -> Slot {
    steps.fold(from.clone(), |slot, step| {
        let after = rules.at(&slot, &step.event.part, Judged::Not, step.moment);
        after.into_iter().next().unwrap_or(slot)
    })
}
