//! A load that changes nothing: reads of all that there is, and polls for what there is not.

use kagzi_core::RunFilter;
use kagzi_sdk::Client;
use tokio::task::JoinSet;

use super::workflow;
use crate::cli::CliError;

/// How many runs a page has.
const PAGE: u32 = 100;

/// In how many queues the worker waits for work: as many as a poll may name.
const EMPTY_QUEUES: u32 = 1000;

/// Reads until it is stopped.
///
/// # Errors
///
/// The first failed call.
pub async fn put_on(client: &Client, readers: u32) -> Result<(), CliError> {
    let queues = (0..EMPTY_QUEUES).map(|number| format!("empty-{number}"));
    let waiting = workflow::worker_of(client.clone(), queues, 1)
        .map_err(|why| CliError::failed("the worker could not be set up", why))?;
    let mut at_work = JoinSet::new();
    at_work.spawn(async move {
        waiting.run().await.map_err(|why| CliError::failed("the worker had to stop", why))
    });
    for _ in 0..readers {
        at_work.spawn(read(client.clone()));
    }
    while let Some(ended) = at_work.join_next().await {
        ended.map_err(|why| CliError::failed("a reader of the bench failed", why))??;
    }
    Ok(())
}

/// One reader: every run by pages, how many there are, and the queues, again and again.
async fn read(client: Client) -> Result<(), CliError> {
    let failed = |why| CliError::failed("a read of the bench failed", why);
    let all = RunFilter::default();
    loop {
        let mut cursor = None;
        loop {
            let page = client.list(&all, PAGE, cursor).await.map_err(failed)?;
            cursor = page.next;
            client.count(&all).await.map_err(failed)?;
            client.queue_depths().await.map_err(failed)?;
            if cursor.is_none() {
                break;
            }
        }
    }
}
