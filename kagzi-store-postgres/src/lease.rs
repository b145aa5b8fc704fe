//! Leases: heartbeat, release, and failing a run.

use std::collections::BTreeMap;

use kagzi_core::decide::{self, Decision, Effects};
use kagzi_core::{FailRun, FailureOutcome, GrantedLease, Heartbeat, ReleaseOutcome, ReleaseRun, StoreError};
use sqlx::Row as _;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES};
use crate::locked::Wanted;
use crate::rows::{Moment, micros};
use crate::statement::query;

type Beat = Result<GrantedLease, StoreError>;

impl Inner {
    pub(crate) async fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<Beat>, StoreError> {
        decide::check_heartbeats(batch)?;
        let mut by_partition: BTreeMap<i16, Vec<(usize, &Heartbeat)>> = BTreeMap::new();
        for (index, beat) in batch.iter().enumerate() {
            by_partition.entry(self.partition(beat.lease.run_id)).or_default().push((index, beat));
        }
        let mut answers: Vec<Option<Beat>> = batch.iter().map(|_| None).collect();
        for (partition, mut beats) in by_partition {
            // Stable: of two heartbeats for one run the first stays in front.
            beats.sort_by_key(|(_, beat)| beat.lease.run_id);
            let expiries = self.beat_together(partition, &beats).await?;
            for ((index, beat), expiry) in beats.into_iter().zip(expiries) {
                answers[index] = Some(match expiry {
                    Some(Moment(expires_at)) => Ok(GrantedLease { lease: beat.lease.clone(), expires_at }),
                    None => self.beat_carefully(beat).await,
                });
            }
        }
        answers.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| StoreError::Internal {
            context: "extending leases",
            detail: "a heartbeat was not answered".to_owned(),
        })
    }

    async fn beat_together(
        &self,
        partition: i16,
        beats: &[(usize, &Heartbeat)],
    ) -> Result<Vec<Option<Moment>>, StoreError> {
        let mut tries = 1;
        loop {
            match self.beat_together_once(partition, beats).await {
                Ok(expiries) => return Ok(expiries),
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                // A heartbeat may be repeated without harm, so an open fate is no different answer.
                Err(fault) => return Err(fault.into_store_error("extending leases")),
            }
        }
    }

    async fn beat_together_once(
        &self,
        partition: i16,
        beats: &[(usize, &Heartbeat)],
    ) -> Result<Vec<Option<Moment>>, Fault> {
        let each = || beats.iter().map(|(_, beat)| *beat);
        let query = query("SELECT expires_at FROM kagzi_heartbeat($1, $2, $3, $4, $5, $6, $7) AS expires_at")
            .bind(partition)
            .bind(self.clock_now())
            .bind(each().map(|beat| beat.lease.run_id.as_uuid()).collect::<Vec<_>>())
            .bind(each().map(|beat| beat.lease.namespace.as_str()).collect::<Vec<_>>())
            .bind(each().map(|beat| beat.lease.worker_id.as_str()).collect::<Vec<_>>())
            .bind(each().map(|beat| beat.lease.fencing_token.get()).collect::<Vec<_>>())
            .bind(each().map(|beat| micros(beat.lease_length)).collect::<Vec<_>>());
        let rows = self.write_all(query).await?;
        rows.iter().map(|row| Ok(row.try_get("expires_at")?)).collect()
    }

    /// Says what is wrong with a lease, or extends it after all.
    async fn beat_carefully(&self, beat: &Heartbeat) -> Beat {
        let run = (&beat.lease.namespace, beat.lease.run_id);
        self.decide("extending a lease", run, Wanted::default(), |it| {
            let (held, granted) = decide::heartbeat(&it.run, beat, it.now)?;
            Ok(Decision { effects: Effects { run: Some(held), ..Effects::default() }, answer: granted })
        })
        .await
    }

    pub(crate) async fn release(&self, request: &ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        let wanted = Wanted { recorded: Some(request.operation), ..Wanted::default() };
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("releasing a run", run, wanted, |it| {
            decide::release(&it.run, it.recorded, request, it.now)
        })
        .await
    }

    pub(crate) async fn fail_run(&self, request: &FailRun) -> Result<FailureOutcome, StoreError> {
        request.validate(&self.rules)?;
        let wanted = Wanted { recorded: Some(request.operation), ..Wanted::default() };
        let run = (&request.lease.namespace, request.lease.run_id);
        self.decide("failing a run", run, wanted, |it| {
            decide::fail_run(&it.run, it.recorded, request, &self.rules, it.now)
        })
        .await
    }
}
