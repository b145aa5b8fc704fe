//! Wake-ups: how those who wait hear that there may be something for them.
//!
//! A wake-up is a hint and no promise. Whoever waits looks again when woken, and at the latest after
//! a poll interval; whoever misses a hint is late, never wrong. To miss none within a process,
//! subscribe first, then look, then wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Timestamp;
use crate::id::RunId;
use crate::name::{Namespace, QueueName};

/// What can be waited for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A run of this queue may be claimable.
    Queue(Namespace, QueueName),
    /// This run may have finished.
    Run(RunId),
    /// Something may be due earlier than the reaper was told.
    Deadlines,
}

/// Hands hints from those who change something to those who wait for it, within one process.
///
/// Every backend owns one and calls it after a commit; one that serves several processes feeds it
/// from outside too. A topic costs memory only while somebody waits for it.
#[derive(Clone, Debug, Default)]
pub struct WakeHub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    topics: Mutex<HashMap<Topic, Listeners>>,
    /// The number of the next who listens.
    next: AtomicU64,
    /// The moment up to which the reaper sleeps, in microseconds.
    armed_until: AtomicI64,
    /// How far looks without a hint may drift apart, in microseconds.
    longest_rest: AtomicU64,
}

/// Those who listen to one topic, by their numbers.
type Listeners = HashMap<u64, Arc<Listener>>;

/// One who listens, however many topics to: so a hint costs each of them the same.
#[derive(Debug, Default)]
struct Listener {
    /// Whether something was announced that was not heard yet.
    announced: AtomicBool,
    notify: Notify,
}

impl Listener {
    fn tell(&self) {
        self.announced.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }

    /// With the map of topics locked: an announcement is heard by all who listen or by none, so that whoever is woken by it
    /// finds that the others were told, too.
    fn take(&self, _topics: &MutexGuard<'_, HashMap<Topic, Listeners>>) -> bool {
        self.announced.swap(false, Ordering::SeqCst)
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            topics: Mutex::default(),
            next: AtomicU64::new(0),
            armed_until: AtomicI64::new(i64::MIN),
            longest_rest: AtomicU64::new(0),
        }
    }
}

impl WakeHub {
    /// A hub that nobody waits at.
    pub fn new() -> Self {
        Self::default()
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Listeners>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.0.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts listening. Whatever is announced from now on ends the next [`Subscription::wait`].
    pub fn subscribe(&self, topics: impl IntoIterator<Item = Topic>) -> Subscription {
        let (number, listener) = (self.0.next.fetch_add(1, Ordering::Relaxed), Arc::<Listener>::default());
        let topics: Vec<Topic> = topics.into_iter().collect();
        let mut map = self.topics();
        for topic in &topics {
            map.entry(topic.clone()).or_default().insert(number, Arc::clone(&listener));
        }
        Subscription { hub: self.clone(), number, listener, topics }
    }

    /// Wakes everybody who waits for `topic`. Costs next to nothing if nobody does.
    pub fn announce(&self, topic: &Topic) {
        if let Some(listeners) = self.topics().get(topic) {
            for listener in listeners.values() {
                listener.tell();
            }
        }
    }

    /// Whether anybody waits for a topic that `wanted` accepts; backends that would have to ask a
    /// database on their behalf ask nothing when nobody does.
    pub fn anyone_waits(&self, wanted: impl Fn(&Topic) -> bool) -> bool {
        self.topics().keys().any(wanted)
    }

    /// Wakes everybody: after a connection was lost, any hint may have been missed.
    pub fn announce_all(&self) {
        for listener in self.topics().values().flat_map(HashMap::values) {
            listener.tell();
        }
    }

    /// Lets those who wait look less and less often while their looks find nothing and no hint comes: up to so long
    /// apart. For a store in which a look costs much, such as one over many partitions. Zero, as at first: they look
    /// every poll interval.
    pub fn let_rest(&self, longest: Duration) {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        self.0.longest_rest.store(micros, Ordering::Relaxed);
    }

    /// How far apart such looks may be.
    pub fn longest_rest(&self) -> Duration {
        Duration::from_micros(self.0.longest_rest.load(Ordering::Relaxed))
    }

    /// Tells until when the reaper will sleep, so that only earlier deadlines wake it.
    pub fn arm(&self, until: Timestamp) {
        self.0.armed_until.store(until.as_micros(), Ordering::SeqCst);
    }

    /// Tells of a new deadline; wakes the reaper if it would sleep past it.
    pub fn note_deadline(&self, at: Timestamp) {
        if at.as_micros() < self.0.armed_until.load(Ordering::SeqCst) {
            // One wake-up is enough: until the reaper arms again, it is awake.
            self.0.armed_until.store(i64::MIN, Ordering::SeqCst);
            self.announce(&Topic::Deadlines);
        }
    }
}

/// One who listens. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    hub: WakeHub,
    number: u64,
    listener: Arc<Listener>,
    topics: Vec<Topic>,
}

impl Subscription {
    /// Waits until one of the topics is announced; at once if that happened since the last wait (or
    /// since the subscription). Cancel safe: a dropped wait loses no announcement.
    pub async fn wait(&mut self) {
        // What was notified and is taken already ends a turn of this and no more.
        while !self.take_announcement() {
            self.listener.notify.notified().await;
        }
    }

    /// Whether one of the topics was announced since the last wait or the last call of this; never waits.
    pub fn take_announcement(&mut self) -> bool {
        self.listener.take(&self.hub.topics())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut map = self.hub.topics();
        for topic in &self.topics {
            let Some(listeners) = map.get_mut(topic) else { continue };
            listeners.remove(&self.number);
            if listeners.is_empty() {
                map.remove(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use futures_lite_check::is_ready;

    use super::*;

    fn topic(queue: &str) -> Topic {
        Topic::Queue(Namespace::new("n").unwrap(), QueueName::new(queue).unwrap())
    }

    /// A future polled once tells whether it would wait.
    mod futures_lite_check {
        use std::future::Future;
        use std::pin::pin;
        use std::task::{Context, Waker};

        pub fn is_ready(future: impl Future<Output = ()>) -> bool {
            pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        }
    }

    #[test]
    fn an_announcement_between_subscribing_and_waiting_is_not_missed() {
        let hub = WakeHub::new();
        let mut waiter = hub.subscribe([topic("a"), topic("b")]);
        assert!(!is_ready(waiter.wait()));
        hub.announce(&topic("b"));
        assert!(is_ready(waiter.wait()));
        assert!(!is_ready(waiter.wait()), "one announcement, one wake-up");
        hub.announce(&topic("c"));
        assert!(!is_ready(waiter.wait()));
    }

    /// A group of polls has a subscription of its own beside those of the polls: one of them that was woken and did not find
    /// that the group had heard, too, would go back to sleep.
    #[test]
    fn who_hears_an_announcement_finds_that_all_others_have_heard_it() {
        const ROUNDS: usize = 2_000;
        let hub = WakeHub::new();
        let mut pair = [hub.subscribe([topic("a")]), hub.subscribe([topic("a")])];
        let (go_on, announcing) = std::sync::mpsc::sync_channel(0);
        std::thread::scope(|scope| {
            let hub = hub.clone();
            scope.spawn(move || {
                while announcing.recv().is_ok() {
                    hub.announce(&topic("a"));
                }
            });
            for round in 0..ROUNDS {
                go_on.send(()).unwrap();
                let [first, second] = &mut pair;
                while !first.take_announcement() {
                    std::thread::yield_now();
                }
                assert!(second.take_announcement(), "round {round}");
                pair.swap(0, 1);
            }
            drop(go_on);
        });
    }

    #[test]
    fn of_many_topics_each_wakes_and_several_at_once_wake_once() {
        let hub = WakeHub::new();
        let names: Vec<Topic> = (0..1000).map(|number| topic(&number.to_string())).collect();
        let mut waiter = hub.subscribe(names.iter().chain(&names).cloned());
        for name in &names {
            hub.announce(name);
            assert!(is_ready(waiter.wait()) && !is_ready(waiter.wait()));
        }
        for name in &names {
            hub.announce(name);
        }
        assert!(waiter.take_announcement() && !is_ready(waiter.wait()));
        hub.announce_all();
        assert!(is_ready(waiter.wait()) && !waiter.take_announcement());
        drop(waiter);
        assert!(!hub.anyone_waits(|_| true));
    }

    #[test]
    fn topics_are_forgotten_with_their_last_waiter() {
        let hub = WakeHub::new();
        let first = hub.subscribe([topic("a")]);
        let second = hub.subscribe([topic("a")]);
        drop(first);
        assert!(hub.anyone_waits(|_| true));
        drop(second);
        assert!(!hub.anyone_waits(|_| true));
    }

    #[test]
    fn only_deadlines_before_the_armed_moment_wake_the_reaper() {
        let hub = WakeHub::new();
        let mut reaper = hub.subscribe([Topic::Deadlines]);
        let at = |micros| Timestamp::from_micros(micros).unwrap();
        hub.arm(at(100));
        hub.note_deadline(at(100));
        assert!(!is_ready(reaper.wait()));
        hub.note_deadline(at(99));
        assert!(is_ready(reaper.wait()));
    }

    /// A hint that falls between looking and marking it as seen must not be marked with the rest.
    #[test]
    fn an_announcement_while_announcements_are_taken_is_not_missed() {
        let hub = WakeHub::new();
        let mut waiter = hub.subscribe([topic("a")]);
        for round in 0..5_000 {
            let begun = AtomicBool::new(false);
            let taken = std::thread::scope(|threads| {
                let announcing = threads.spawn(|| {
                    while !begun.load(Ordering::SeqCst) {
                        // Not spinning: on a busy machine the other would wait for this one's turn to end.
                        std::thread::yield_now();
                    }
                    hub.announce(&topic("a"));
                });
                begun.store(true, Ordering::SeqCst);
                let mut taken = false;
                while !announcing.is_finished() {
                    taken |= waiter.take_announcement();
                }
                taken | waiter.take_announcement()
            });
            assert!(taken, "round {round}");
        }
    }
}
