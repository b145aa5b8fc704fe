//! Asking every partition: several at one time, each by a statement of its own.
//!
//! On a cluster each answer comes from the node of its partition. One that is away takes its partitions along and no
//! others: whoever can do without them asks those that are there, and does not ask the absent ones again for a moment,
//! since finding out that nobody answers may take long.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;

use crate::Inner;
use crate::error::Fault;

/// How many partitions one caller asks at the same time: each takes a connection meanwhile.
const SIDE_BY_SIDE: usize = 4;

/// For so long a partition whose node was away is left alone by those who can do without it.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// The partitions whose node was away a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Absent(Mutex<HashMap<i16, Instant>>);

impl Absent {
    fn known(&self) -> MutexGuard<'_, HashMap<i16, Instant>> {
        // It is never left half changed, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self, partition: i16) {
        self.known().insert(partition, Instant::now() + LEFT_ALONE);
    }

    fn is_known(&self, partition: i16) -> bool {
        let mut known = self.known();
        match known.get(&partition) {
            Some(until) if Instant::now() < *until => true,
            Some(_) => {
                known.remove(&partition);
                false
            }
            None => false,
        }
    }
}

/// What those partitions answered that are there.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    pub(crate) given: Vec<(i16, T)>,
    /// Whether the nodes of others are away.
    pub(crate) some_absent: bool,
}

impl Inner {
    /// What each partition answers, in their order; an error of one is the error of all.
    pub(crate) async fn ask_each<T, F>(&self, ask: impl Fn(i16) -> F) -> Result<Vec<(i16, T)>, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let one = |partition| {
            let asked = ask(partition);
            async move { (partition, asked.await) }
        };
        let mut answers = futures::stream::iter(self.all_partitions()).map(one).buffered(SIDE_BY_SIDE);
        let mut given = Vec::with_capacity(self.partitions.into());
        while let Some((partition, answer)) = answers.next().await {
            given.push((partition, answer?));
        }
        Ok(given)
    }

    /// The same of those partitions whose nodes are there; an error if that is none.
    pub(crate) async fn ask_present<T, F>(&self, ask: impl Fn(i16) -> F) -> Result<Answers<T>, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let one = |partition| {
            let asked = (!self.absent.is_known(partition)).then(|| ask(partition));
            async move {
                match asked {
                    Some(asked) => (partition, Some(asked.await)),
                    None => (partition, None),
                }
            }
        };
        let mut answers = futures::stream::iter(self.all_partitions()).map(one).buffered(SIDE_BY_SIDE);
        let mut given = Vec::with_capacity(self.partitions.into());
        let (mut some_absent, mut why) = (false, None);
        while let Some((partition, answer)) = answers.next().await {
            match answer {
                Some(Ok(answer)) => given.push((partition, answer)),
                Some(Err(fault)) if fault.is_node_away() => {
                    self.absent.found(partition);
                    (some_absent, why) = (true, Some(fault));
                }
                Some(Err(fault)) => return Err(fault),
                None => some_absent = true,
            }
        }
        drop(answers);
        match why {
            Some(why) if given.is_empty() => Err(why),
            _ if given.is_empty() => Err(self.nobody_is_there()),
            _ => Ok(Answers { given, some_absent }),
        }
    }

    fn nobody_is_there(&self) -> Fault {
        let reason = format!(
            "the nodes of all {} partitions were away a moment ago; see `SELECT * FROM \
             citus_check_cluster_node_health()` on the coordinator",
            self.partitions
        );
        kagzi_core::StoreError::unavailable(reason, LEFT_ALONE).into()
    }
}
