//! Reads everything that the store holds, by way of a server.

use std::sync::Arc;
use std::time::Duration;

use kagzi_sdk::{Client, RunFilter, RunState};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Failed;
use crate::check::{Look, Stored};
use crate::roles::NAMESPACES;

/// How many runs are read at once.
const AT_ONCE: usize = 16;

/// For how long a read is repeated.
const PATIENCE: Duration = Duration::from_mins(1);

async fn client(server: &str, namespace: &str) -> Result<Client, Failed> {
    Ok(Client::connect(server).await?.in_namespace(namespace)?.with_patience(PATIENCE))
}

/// Everything, by way of a server.
pub async fn look(server: &str) -> Result<Look, Failed> {
    let mut look = Look::new();
    for namespace in NAMESPACES {
        look.append(&mut read(&client(server, namespace).await?).await?);
    }
    Ok(look)
}

/// Everything in the namespace of a client.
pub async fn read(client: &Client) -> Result<Look, Failed> {
    let (mut readers, places) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    let mut cursor = None;
    loop {
        let page = client.list(&RunFilter::default(), 1_000, cursor).await?;
        for run in page.items {
            let (client, places) = (client.clone(), Arc::clone(&places));
            readers.spawn(async move {
                let _place = places.acquire_owned().await?;
                let record = client.get(run.run_id).await?;
                let attempts = client.attempts(run.run_id).await?;
                let namespace = client.namespace().as_str().to_owned();
                Ok::<_, Failed>((run.run_id, Stored { namespace, record, attempts }))
            });
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let mut look = Look::new();
    while let Some(read) = readers.join_next().await {
        let (run, stored) = read??;
        look.insert(run, stored);
    }
    Ok(look)
}

/// Waits until no run is live, at most so long; gives how many are.
pub async fn drain(server: &str, limit: Duration) -> Result<u64, Failed> {
    let end = Instant::now() + limit;
    let live = RunFilter {
        states: vec![RunState::Pending, RunState::Running, RunState::Sleeping],
        ..RunFilter::default()
    };
    loop {
        let mut left = 0;
        for namespace in NAMESPACES {
            left += client(server, namespace).await?.count(&live).await?;
        }
        if left == 0 || Instant::now() > end {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
