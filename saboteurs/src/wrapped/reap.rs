//! What reapers are told wrongly.

use async_trait::async_trait;
use kagzi_core::{MoreDue, NextDue, Reaped, SharedStore, StoreError};

use super::Bug;

/// Reaps all there is, whatever the limit.
#[derive(Debug)]
pub struct ReapKnowsNoLimit;

#[async_trait]
impl Bug for ReapKnowsNoLimit {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        store.reap(if limit == 0 { 0 } else { 10_000 }).await
    }
}

/// Counts a sleeper that woke as a lease that expired.
#[derive(Debug)]
pub struct ReapMiscounts;

#[async_trait]
impl Bug for ReapMiscounts {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        let reaped = store.reap(limit).await?;
        Ok(Reaped { woken: 0, leases_expired: reaped.leases_expired + reaped.woken, ..reaped })
    }
}

/// Says that nothing more is due when its limit is used up.
#[derive(Debug)]
pub struct ReapSaysDone;

#[async_trait]
impl Bug for ReapSaysDone {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        Ok(Reaped { more: MoreDue::No, ..store.reap(limit).await? })
    }
}

/// Says that nothing will ever be due.
#[derive(Debug)]
pub struct NothingIsDue;

#[async_trait]
impl Bug for NothingIsDue {
    async fn next_due(&self, store: &SharedStore) -> Result<NextDue, StoreError> {
        Ok(NextDue { due_at: None, ..store.next_due().await? })
    }
}
