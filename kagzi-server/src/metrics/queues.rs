//! What is counted by queue. Queues are named by clients, so only so many get series of their own: a share of them
//! for each namespace, so that whoever makes up names hides no queue of another namespace.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use kagzi_core::{Namespace, QueueName};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::label::Book;

/// How many queues of each namespace have series of their own, whatever other namespaces have.
const SHARE: usize = 20;

/// How many more have, of whichever namespaces they are.
const MOST_BEYOND: usize = 200;

/// What stands for the queues beyond, one in each namespace. Namespaces are named by the operator.
pub(crate) const OTHER_QUEUES: &str = "_other";

/// A queue that has series of its own, or nothing for all others of its namespace.
pub(super) type Shown = (Namespace, Option<QueueName>);

/// A queue as labels.
pub(super) type QueueLabels = [(&'static str, String); 2];

type StartLabels = [(&'static str, String); 3];

/// The counters of a queue.
#[derive(Debug)]
pub(super) struct QueueCounters {
    pub(super) created: Counter,
    pub(super) existing: Counter,
    pub(super) claimed: Counter,
}

/// The queues that were seen, as far as they have series.
#[derive(Debug)]
pub(super) struct Queues {
    shown: RwLock<Table>,
    starts: Family<StartLabels, Counter>,
    claimed: Family<QueueLabels, Counter>,
}

#[derive(Debug, Default)]
struct Table {
    each: HashMap<Shown, Arc<QueueCounters>>,
    /// How much of its share a namespace has used.
    shares: HashMap<Namespace, usize>,
    beyond: usize,
}

impl Table {
    /// Whether one more queue of a namespace may have series; if so, it is counted.
    fn has_room(&mut self, namespace: &Namespace) -> bool {
        let share = self.shares.entry(namespace.clone()).or_default();
        let (used, most) = if *share < SHARE { (share, SHARE) } else { (&mut self.beyond, MOST_BEYOND) };
        let room = *used < most;
        *used += usize::from(room);
        room
    }
}

impl Queues {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            shown: RwLock::default(),
            starts: book.register(
                "starts",
                &["namespace", "queue", "outcome"],
                "Starts by outcome: created, or existing where the idempotency key names a run already",
                Family::default(),
            ),
            claimed: book.register(
                "runs_claimed",
                &["namespace", "queue"],
                "Runs that claims took",
                Family::default(),
            ),
        }
    }

    /// The counters of a queue.
    pub(super) fn counters(&self, namespace: &Namespace, queue: &QueueName) -> Arc<QueueCounters> {
        let key = (namespace.clone(), Some(queue.clone()));
        let seen = self.shown.read().unwrap_or_else(PoisonError::into_inner).each.get(&key).map(Arc::clone);
        seen.unwrap_or_else(|| self.show(key).1)
    }

    /// Under which name a queue is shown.
    pub(super) fn name(&self, namespace: &Namespace, queue: &QueueName) -> Shown {
        self.show((namespace.clone(), Some(queue.clone()))).0
    }

    /// Every queue that has series, and what stands for the others.
    pub(super) fn all(&self) -> Vec<Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).each.keys().cloned().collect()
    }

    fn show(&self, key: Shown) -> (Shown, Arc<QueueCounters>) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        let hidden = !shown.each.contains_key(&key) && !shown.has_room(&key.0);
        let key = if hidden { (key.0, None) } else { key };
        let counters = shown.each.entry(key.clone()).or_insert_with(|| Arc::new(self.make(&key)));
        (key, Arc::clone(counters))
    }

    fn make(&self, key: &Shown) -> QueueCounters {
        let [namespace, queue] = labels(key);
        let starts = |outcome: &str| {
            let labels = [namespace.clone(), queue.clone(), ("outcome", outcome.to_owned())];
            self.starts.get_or_create_owned(&labels)
        };
        QueueCounters {
            created: starts("created"),
            existing: starts("existing"),
            claimed: self.claimed.get_or_create_owned(&[namespace.clone(), queue.clone()]),
        }
    }
}

/// A queue as labels.
pub(super) fn labels((namespace, queue): &Shown) -> QueueLabels {
    let queue = queue.as_ref().map_or(OTHER_QUEUES, QueueName::as_str);
    [("namespace", namespace.to_string()), ("queue", queue.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(queues: &Queues, namespace: &Namespace, number: usize) {
        let queue = QueueName::new(format!("q{number}")).unwrap();
        queues.counters(namespace, &queue).claimed.inc();
    }

    #[test]
    fn queues_beyond_the_most_are_counted_together_whoever_makes_them_up() {
        let queues = Queues::register(&mut Book::default());
        let namespace = Namespace::new("n").unwrap();
        let most = SHARE + MOST_BEYOND;
        (0..most + 50).for_each(|number| see(&queues, &namespace, number));
        let shown = queues.shown.read().unwrap();
        assert_eq!(shown.each.len(), most + 1);
        assert_eq!(shown.each[&(namespace.clone(), None)].claimed.get(), 50);
        let first = (namespace.clone(), Some(QueueName::new("q0").unwrap()));
        assert_eq!(shown.each[&first].claimed.get(), 1);
        drop(shown);
        let late = QueueName::new("late").unwrap();
        assert_eq!(queues.name(&namespace, &late), (namespace.clone(), None));
        assert_eq!(queues.name(&namespace, &QueueName::new("q0").unwrap()), first);
    }

    #[test]
    fn a_namespace_of_many_queues_hides_none_of_another() {
        let queues = Queues::register(&mut Book::default());
        let [many, few] = ["many", "few"].map(|name| Namespace::new(name).unwrap());
        (0..10_000).for_each(|number| see(&queues, &many, number));
        (0..SHARE + 5).for_each(|number| see(&queues, &few, number));
        let shown = queues.shown.read().unwrap();
        let own = shown.each.keys().filter(|(namespace, queue)| *namespace == few && queue.is_some());
        assert_eq!(own.count(), SHARE);
        assert_eq!(shown.each[&(few, None)].claimed.get(), 5);
        assert_eq!(shown.each.len(), SHARE + MOST_BEYOND + 1 + SHARE + 1);
    }
}
