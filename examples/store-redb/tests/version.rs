//! What the suite cannot ask, since it does not know where a store keeps its version.

use std::path::Path;
use std::sync::Arc;

use kagzi_core::{Rules, StoreError, SystemClock};
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
