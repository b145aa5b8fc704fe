//! What the suite cannot ask, since it does not know where a store keeps its version.

use std::path::Path;
use std::sync::Arc;

use kagzi_core::{
    Namespace, Payload, QueueName, Rules, StartRun, Store as _, StoreError, SystemClock, WorkflowType,
};
use kagzi_store_redb::RedbStore;
use redb::{Database, ReadableDatabase as _, TableDefinition};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

async fn open(path: &Path) -> Result<RedbStore, StoreError> {
    RedbStore::open(path, Arc::new(SystemClock), Rules::default()).await
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kagzi.redb");
    kagzi_core::Store::close(&open(&path).await.unwrap()).await.unwrap();
    {
        let file = Database::open(&path).unwrap();
        let transaction = file.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("version", 77).unwrap();
        transaction.commit().unwrap();
    }
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaMismatch { found: 77, .. }), "{error}");
    let table = Database::open(&path).unwrap().begin_read().unwrap().open_table(META).unwrap();
    assert_eq!(table.get("version").unwrap().unwrap().value(), 77);
}

#[tokio::test]
async fn a_file_of_an_older_version_gets_what_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kagzi.redb");
    let start = StartRun::new(
        Namespace::new("n").unwrap(),
        QueueName::new("q").unwrap(),
        WorkflowType::new("t").unwrap(),
        Payload::empty(),
    );
    let run_id = start.run_id();
    let store = open(&path).await.unwrap();
    store.start(vec![start]).await.unwrap();
    store.close().await.unwrap();
    {
        // The first version had no queues.
        let file = Database::open(&path).unwrap();
        let transaction = file.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("version", 1).unwrap();
        assert!(transaction.delete_table(TableDefinition::<(&str, &str), ()>::new("queues")).unwrap());
        transaction.commit().unwrap();
    }
    let store = open(&path).await.unwrap();
    let namespace = Namespace::new("n").unwrap();
    assert_eq!(store.get_run(&namespace, run_id).await.unwrap().run.run_id, run_id);
    let depths = store.queue_depths(&namespace).await.unwrap();
    assert!(depths[0].pending == 1 && depths[0].pause.is_none(), "{depths:?}");
    store.close().await.unwrap();
    let table = Database::open(&path).unwrap().begin_read().unwrap().open_table(META).unwrap();
    assert_eq!(table.get("version").unwrap().unwrap().value(), 2);
}
