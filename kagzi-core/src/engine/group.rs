//! Those who wait for the same work share what they know of it.
//!
//! A hundred idle workers that poll the same queues for the same types are one group. As long as no
//! hint came since the group last found the queues dry, and that was less than a poll interval ago,
//! nobody of the group asks the store: so they cost one look a poll interval together, not one each,
//! and one started run costs a look or two, not a hundred.
//!
//! Where the store lets them rest, each further look that finds nothing without a hint is twice as far away as the one
//! before; a hint, or work that was found, brings the poll interval back.
//!
//! Whoever polls for other queues is another group, and a look for a thousand queues costs the store ten times as much as
//! one for a single one. So the groups of a namespace rest for so long that their looks without a hint take a fifth of one
//! connection's time together, however many they are: they keep nobody else from the store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::name::{Namespace, QueueName, WorkflowType};
use crate::op::Claim;
use crate::wake::{Subscription, Topic, WakeHub};

/// In parts of the time that looks without a hint take, how long a namespace's groups rest together.
const RESTS: u32 = 5;

/// What makes two polls ask for the same work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Interest {
    namespace: Namespace,
    queues: Vec<QueueName>,
    workflow_types: Vec<WorkflowType>,
}

/// The groups that somebody polls for now.
#[derive(Debug, Default)]
pub(super) struct Groups(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    groups: HashMap<Interest, Weak<Group>>,
    crowds: HashMap<Namespace, Weak<Crowd>>,
}

/// Held by each group of one namespace.
#[derive(Debug)]
struct Crowd;

/// What a group knows. Whoever looks again after waiting holds the lock meanwhile, so that the next
/// one sees what was found.
#[derive(Debug)]
pub(super) struct Group {
    knowledge: tokio::sync::Mutex<Knowledge>,
    /// How many looks in a row found nothing without a hint; known without the lock, which others may hold for long.
    in_vain: Arc<AtomicU32>,
}

#[derive(Debug)]
pub(super) struct Knowledge {
    hub: WakeHub,
    hints: Subscription,
    /// How many times a hint was taken.
    hinted: u64,
    dry_since: Option<Instant>,
    /// How long the last look that found nothing took.
    took: Duration,
    crowd: Arc<Crowd>,
    in_vain: Arc<AtomicU32>,
}

/// A look that somebody of the group takes.
#[derive(Debug)]
pub(super) struct Look {
    began: Instant,
    hinted: u64,
}

impl Groups {
    /// The group of a claim, shared with everybody who asks for the same work.
    pub(super) fn join(&self, claim: &Claim, hub: &WakeHub) -> Arc<Group> {
        let mut interest = Interest {
            namespace: claim.namespace.clone(),
            queues: claim.queues.clone(),
            workflow_types: claim.workflow_types.clone(),
        };
        interest.queues.sort_unstable();
        interest.workflow_types.sort_unstable();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { groups, crowds } = &mut *known;
        if let Some(group) = groups.get(&interest).and_then(Weak::upgrade) {
            return group;
        }
        groups.retain(|_, group| group.strong_count() > 0);
        crowds.retain(|_, crowd| crowd.strong_count() > 0);
        let crowd = crowds.get(&interest.namespace).and_then(Weak::upgrade).unwrap_or_else(|| {
            let crowd = Arc::new(Crowd);
            crowds.insert(interest.namespace.clone(), Arc::downgrade(&crowd));
            crowd
        });
        let hints = hub.subscribe(topics(claim));
        let in_vain = Arc::<AtomicU32>::default();
        let knowledge = tokio::sync::Mutex::new(Knowledge {
            hub: hub.clone(),
            hints,
            hinted: 0,
            dry_since: None,
            took: Duration::ZERO,
            crowd,
            in_vain: Arc::clone(&in_vain),
        });
        let group = Arc::new(Group { knowledge, in_vain });
        groups.insert(interest, Arc::downgrade(&group));
        group
    }
}

impl Group {
    pub(super) async fn lock(&self) -> tokio::sync::MutexGuard<'_, Knowledge> {
        self.knowledge.lock().await
    }

    /// A look found work: from here on looks are a poll interval apart.
    pub(super) fn found_work(&self) {
        self.in_vain.store(0, Ordering::Relaxed);
    }
}

impl Knowledge {
    /// Whether a look would find nothing, as far as anybody here knows. If not, the caller is to look
    /// now; hints that come from here on count for the look after that.
    pub(super) fn is_dry(&mut self, poll_interval: Duration) -> bool {
        let rest = self.rest(poll_interval);
        let recent = self.dry_since.is_some_and(|since| since.elapsed() < rest);
        if self.take_hint() || !recent {
            self.dry_since = None;
        }
        self.dry_since.is_some()
    }

    /// Begins a look; hand the result to [`found_dry`](Self::found_dry).
    pub(super) fn begin_look(&self) -> Look {
        Look { began: Instant::now(), hinted: self.hinted }
    }

    /// The look found less than it asked for: the queues are dry, unless a hint came since it began.
    pub(super) fn found_dry(&mut self, look: &Look) {
        self.took = look.began.elapsed();
        if !self.take_hint() && self.hinted == look.hinted {
            self.dry_since = Some(look.began);
            self.in_vain.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_hint(&mut self) -> bool {
        let hinted = self.hints.take_announcement();
        self.hinted += u64::from(hinted);
        if hinted {
            self.in_vain.store(0, Ordering::Relaxed);
        }
        hinted
    }

    /// How long the group rests after the last look, if no hint comes.
    fn rest(&self, poll_interval: Duration) -> Duration {
        let doublings = self.in_vain.load(Ordering::Relaxed).saturating_sub(1).min(16);
        let longest = self.hub.longest_rest().max(poll_interval);
        let rest = poll_interval.saturating_mul(1 << doublings).min(longest);
        let groups = u32::try_from(Arc::strong_count(&self.crowd)).unwrap_or(u32::MAX);
        rest.max(self.took.saturating_mul(RESTS).saturating_mul(groups))
    }

    /// When the group may look again without a hint.
    pub(super) fn looks_again_at(&self, poll_interval: Duration) -> Instant {
        self.dry_since.unwrap_or_else(Instant::now) + self.rest(poll_interval)
    }
}

/// The topics on which a claim hears of work.
pub(super) fn topics(claim: &Claim) -> impl Iterator<Item = Topic> {
    claim.queues.iter().map(|queue| Topic::Queue(claim.namespace.clone(), queue.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OperationId, WorkerId};

    fn claim(namespace: &str, queue: u32) -> Claim {
        Claim {
            namespace: Namespace::new(namespace).unwrap(),
            queues: vec![QueueName::new(format!("q-{queue}")).unwrap()],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("w").unwrap(),
            lease_length: Duration::from_secs(30),
            limit: 1,
            steps_limit: 1,
            operation: OperationId::generate(),
        }
    }

    /// Has a group look in vain for so long, and gives for how long it rests then, from the beginning of the look.
    async fn rests(group: &Group, look_takes: Duration) -> Duration {
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut knowledge = group.lock().await;
        let look = knowledge.begin_look();
        tokio::time::advance(look_takes).await;
        knowledge.found_dry(&look);
        knowledge.looks_again_at(INTERVAL) - look.began
    }

    #[tokio::test(start_paused = true)]
    async fn the_looks_of_a_namespace_take_a_fifth_of_one_connection_however_many_groups_look() {
        let (groups, hub) = (Groups::default(), WakeHub::default());
        let look_takes = Duration::from_millis(4);
        let quiet = groups.join(&claim("quiet", 0), &hub);
        let noisy: Vec<_> = (0..600).map(|queue| groups.join(&claim("noisy", queue), &hub)).collect();
        assert_eq!(rests(&noisy[0], look_takes).await, look_takes * 5 * 600);
        assert_eq!(rests(&quiet, look_takes).await, Duration::from_secs(1), "the interval is longer");
        assert_eq!(rests(&quiet, Duration::from_secs(1)).await, Duration::from_secs(5));
        // Those that nobody polls for any more count no more.
        let last = groups.join(&claim("noisy", 599), &hub);
        drop(noisy);
        assert_eq!(rests(&last, look_takes).await, Duration::from_secs(1));
        drop((last, quiet));
        let again = groups.join(&claim("other", 0), &hub);
        let known = groups.0.lock().unwrap();
        assert_eq!((known.groups.len(), known.crowds.len()), (1, 1));
        drop((known, again));
    }
}
