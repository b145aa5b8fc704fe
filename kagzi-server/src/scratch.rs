//! What a command borrows of a user's store and gives back as it found it: a namespace of its own.

use kagzi_core::{
    CancelRun, DeleteFinished, ListRuns, Namespace, OperationId, PageRequest, RunFilter, RunState,
    SharedStore, StoreError, Timestamp,
};
use uuid::Uuid;

/// How many runs are listed, or removed, in one go.
const BATCH: u32 = 500;

/// A name that nobody else uses, such as `bench-3f2a90b1c7`.
pub fn unique_name(prefix: &str) -> String {
    let id = Uuid::now_v7().simple().to_string();
    // The end of the id is random.
    format!("{prefix}-{}", &id[id.len() - 10..])
}

/// Removes every run of a namespace that nobody else uses; those under way are cancelled first.
///
/// # Errors
///
/// Those of the store. Some runs may be gone by then; to go on, call it again.
pub async fn clear(store: &SharedStore, namespace: &Namespace) -> Result<(), StoreError> {
    cancel_live(store, namespace).await?;
    let finished = DeleteFinished {
        namespace: Some(namespace.clone()),
        states: Vec::new(),
        before: Timestamp::MAX,
        limit: BATCH,
    };
    while store.delete_finished(&finished).await? > 0 {}
    Ok(())
}

async fn cancel_live(store: &SharedStore, namespace: &Namespace) -> Result<(), StoreError> {
    let states = RunState::ALL.into_iter().filter(|state| !state.is_terminal()).collect();
    let filter = RunFilter { states, ..RunFilter::default() };
    loop {
        // What is cancelled leaves the listing, so that the first page is always the rest.
        let page = PageRequest { limit: BATCH, cursor: None };
        let request = ListRuns { namespace: namespace.clone(), filter: filter.clone(), page };
        let live = store.list_runs(&request).await?.items;
        if live.is_empty() {
            return Ok(());
        }
        for run in live {
            let cancel = CancelRun {
                namespace: namespace.clone(),
                run_id: run.run_id,
                reason: "the command that started it has ended".to_owned(),
                operation: OperationId::generate(),
            };
            store.cancel(cancel).await?;
        }
    }
}
