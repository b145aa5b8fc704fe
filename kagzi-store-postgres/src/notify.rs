//! Wake-ups between servers, by LISTEN and NOTIFY.
//!
//! NOTIFY makes commits wait for one another, so it never stands in a transaction with data: a task of
//! its own gathers what changed and tells it in one statement, without waiting for a flush. A hint
//! that is lost costs its receiver a poll interval, never the truth.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Namespace, QueueName, RunId, Topic, WakeHub};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::pool::GOODBYE_WITHIN;
use crate::pools::Pools;
use crate::route::Route;
use crate::statement::{Begin, Patience, Sessions, query};

/// The channel of one schema: channels belong to the database, and schemas must not wake each other.
fn channel(schema: Option<&str>) -> String {
    schema.map_or_else(|| "kagzi".to_owned(), |schema| format!("kagzi_{schema}"))
}

/// At least this long between two notifications, so that a busy server tells of many changes at once.
/// The first after a quiet time goes at once.
const PAUSE: Duration = Duration::from_millis(5);

/// How long to wait before listening is tried again; twice as long each time, up to half a minute.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// How many ids one message holds: Postgres allows 8,000 bytes, a run id takes 39 and a queue with its
/// namespace at most about 1,200 (each byte of a name may need six in JSON).
const MAX_RUNS: usize = 120;
const MAX_QUEUES: usize = 2;

/// How many changes wait to be told at most; more are dropped, for their receivers to find by polling.
const MAX_WAITING: usize = 100_000;

/// One notification.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    /// Who sends it: nobody wakes itself twice.
    from: Uuid,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    queues: Vec<(Namespace, QueueName)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Uuid>,
}

/// Tells other servers what changed here, and hears what changed there.
#[derive(Debug)]
pub(crate) struct Notifier {
    topics: mpsc::Sender<Topic>,
    sessions: Sessions,
    tasks: [JoinHandle<()>; 2],
}

impl Notifier {
    /// Starts both tasks. When it returns, the store hears of every later change, unless the
    /// connection fails; then it keeps trying, and polls find the changes meanwhile.
    pub(crate) async fn start(
        route: Arc<Route>,
        schema: Option<&str>,
        hub: WakeHub,
        patience: Patience,
    ) -> Self {
        let channel = channel(schema);
        let pools = Pools::new(route, |connect| {
            let options = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(5));
            options.connect_lazy_with(connect)
        });
        let sessions = Sessions::new(pools, Begin::Plainly, patience);
        let me = Uuid::now_v7();
        let (topics, waiting) = mpsc::channel(MAX_WAITING);
        let listener = match listen(&sessions, &channel).await {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%error, "cannot listen for other servers' changes; polls find them meanwhile");
                None
            }
        };
        let tasks = [
            tokio::spawn(hear(sessions.clone(), channel.clone(), listener, me, hub)),
            tokio::spawn(tell(sessions.clone(), channel, me, waiting)),
        ];
        Self { topics, sessions, tasks }
    }

    /// Has a change told to other servers.
    pub(crate) fn tell(&self, topic: Topic) {
        if self.topics.try_send(topic).is_err() {
            tracing::debug!("a wake-up for other servers was dropped; they find the change when they poll");
        }
    }

    /// Tells and hears nothing any more. What is under way on its connections are hints, so they are waited for no longer
    /// than for a goodbye; the one that listens would say that it listens no more, and wait for an answer without end.
    pub(crate) async fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if timeout(GOODBYE_WITHIN, self.sessions.close()).await.is_err() {
            tracing::debug!("the connections for other servers' changes were left without a goodbye");
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn listen(sessions: &Sessions, channel: &str) -> Result<PgListener, sqlx::Error> {
    let mut listener = sessions.listener().await?;
    listener.listen(channel).await?;
    Ok(listener)
}

/// Hands other servers' hints to the hub.
async fn hear(sessions: Sessions, channel: String, mut listener: Option<PgListener>, me: Uuid, hub: WakeHub) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let Some(mut connected) = listener.take() else {
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(Duration::from_secs(30));
            match listen(&sessions, &channel).await {
                Ok(again) => {
                    listener = Some(again);
                    backoff = FIRST_BACKOFF;
                    // Whatever was told meanwhile was missed.
                    hub.announce_all();
                }
                Err(error) => tracing::debug!(%error, "still cannot listen for other servers' changes"),
            }
            continue;
        };
        match connected.try_recv().await {
            Ok(Some(notification)) => {
                announce(&hub, me, notification.payload());
                listener = Some(connected);
            }
            // The connection was lost; the listener makes another by itself, to the same server. If the store
            // has moved, its pool is closed, which is an error.
            Ok(None) => {
                hub.announce_all();
                listener = Some(connected);
            }
            Err(error) => tracing::warn!(%error, "the connection that listens was lost"),
        }
    }
}

fn announce(hub: &WakeHub, me: Uuid, payload: &str) {
    let message: Message = match serde_json::from_str(payload) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(%error, "a notification that is not ours");
            return;
        }
    };
    if message.from == me {
        return;
    }
    for (namespace, queue) in message.queues {
        hub.announce(&Topic::Queue(namespace, queue));
    }
    for run_id in message.runs.into_iter().filter_map(|id| RunId::from_uuid(id).ok()) {
        hub.announce(&Topic::Run(run_id));
    }
}

/// Tells other servers, many changes at a time.
async fn tell(sessions: Sessions, channel: String, me: Uuid, mut waiting: mpsc::Receiver<Topic>) {
    let mut topics = Vec::new();
    while waiting.recv_many(&mut topics, 10_000).await > 0 {
        // `set_config` for this transaction alone: nobody waits for a flush of hints.
        let notify = query(
            "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, message)
             FROM UNNEST($2::text[]) AS message",
        )
        .bind(&channel)
        .bind(messages(me, topics.drain(..)));
        if let Err(fault) = sessions.write_all(notify).await {
            tracing::debug!(%fault, "other servers were not told; they find the changes when they poll");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Each change once, in as few messages as hold them.
fn messages(me: Uuid, topics: impl Iterator<Item = Topic>) -> Vec<String> {
    let (mut queues, mut runs) = (HashSet::new(), HashSet::new());
    for topic in topics {
        match topic {
            Topic::Queue(namespace, queue) => drop(queues.insert((namespace, queue))),
            Topic::Run(run_id) => drop(runs.insert(run_id.as_uuid())),
            // Every server keeps its own deadlines.
            Topic::Deadlines => {}
        }
    }
    let (queues, runs): (Vec<_>, Vec<_>) = (queues.into_iter().collect(), runs.into_iter().collect());
    let of_queues = queues.chunks(MAX_QUEUES).map(|queues| Message {
        from: me,
        queues: queues.to_vec(),
        runs: Vec::new(),
    });
    let of_runs =
        runs.chunks(MAX_RUNS).map(|runs| Message { from: me, queues: Vec::new(), runs: runs.to_vec() });
    of_queues.chain(of_runs).filter_map(|message| serde_json::to_string(&message).ok()).collect()
}

#[cfg(test)]
mod tests {
    use kagzi_core::OperationId;

    use super::*;

    #[test]
    fn messages_fit_and_hold_every_change_once() {
        let me = Uuid::now_v7();
        // Names at their longest, of characters that JSON must escape.
        let namespace = Namespace::new("\"".repeat(64)).unwrap();
        let queue = |n: usize| QueueName::new(format!("{n:03}{}", "\\".repeat(125))).unwrap();
        let run = |_| RunId::for_start(&namespace, OperationId::generate(), None);
        let mut topics: Vec<Topic> = (0..50).map(|n| Topic::Queue(namespace.clone(), queue(n))).collect();
        topics.extend((0..500).map(run).map(Topic::Run));
        topics.extend(topics.clone());
        let messages = messages(me, topics.into_iter());
        assert!(messages.iter().all(|message| message.len() < 8000));
        let read: Vec<Message> = messages.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert_eq!(read.iter().map(|message| message.queues.len()).sum::<usize>(), 50);
        assert_eq!(read.iter().map(|message| message.runs.len()).sum::<usize>(), 500);
    }
}
