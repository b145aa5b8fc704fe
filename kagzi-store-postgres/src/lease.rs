//! Leases: heartbeat, release, and failing a run.

use std::collections::BTreeMap;

use kagzi_core::decide::{self, Decision, Effects};
use kagzi_core::{FailRun, FailureOutcome, GrantedLease, Heartbeat, ReleaseOutcome, ReleaseRun, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES, RETRY_AFTER, damaged};
use crate::locked::Wanted;
use crate::rows::{Moment, micros};
use crate::statement::{Query, query};

type Beat = Result<GrantedLease, StoreError>;

/// How many leases one statement extends at most: it holds their rows until it ends, and the writes of
/// their workers wait.
const MAX_BEATS: usize = 500;

/// How often the heartbeats of a batch wait for runs that others hold, a second each time, before those
/// that are still held are given up.
const ROUNDS: u32 = 2;

/// What became of a heartbeat that went together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beaten {
    Until(Moment),
    /// The lease is not the current one, it seems. Nothing was changed.
    NotHeld,
    /// Somebody else holds the run's row. Nothing was changed.
    Locked,
}

impl Inner {
    pub(crate) async fn heartbeat(&self, batch: &[Heartbeat]) -> Result<Vec<Beat>, StoreError> {
        decide::check_heartbeats(batch)?;
        let mut by_partition: BTreeMap<i16, Vec<(usize, &Heartbeat)>> = BTreeMap::new();
        for (index, beat) in batch.iter().enumerate() {
            by_partition.entry(self.partition(beat.lease.run_id)).or_default().push((index, beat));
        }
        let mut answers: Vec<Option<Beat>> = batch.iter().map(|_| None).collect();
        let (mut extended, mut failed) = (false, None);
        for (partition, mut beats) in by_partition {
            // Stable: of two heartbeats for one run the first stays in front.
            beats.sort_by_key(|(_, beat)| beat.lease.run_id);
            for piece in beats.chunks(MAX_BEATS) {
                let together: Vec<&Heartbeat> = piece.iter().map(|(_, beat)| *beat).collect();
                match self.beat_together(partition, &together).await {
                    Ok(beaten) => {
                        extended = true;
                        for ((index, beat), beaten) in piece.iter().zip(beaten) {
                            answers[*index] = Some(self.answer(beat, beaten).await);
                        }
                    }
                    Err(error) => {
                        for (index, _) in piece {
                            answers[*index] = Some(Err(error.clone()));
                        }
                        failed = Some(error);
                    }
                }
            }
        }
        if let Some(error) = failed.filter(|_| !extended) {
            return Err(error);
        }
        answers.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| StoreError::Internal {
            context: "extending leases",
            detail: "a heartbeat was not answered".to_owned(),
        })
    }

    async fn answer(&self, beat: &Heartbeat, beaten: Beaten) -> Beat {
        match beaten {
            Beaten::Until(Moment(expires_at)) => Ok(GrantedLease { lease: beat.lease.clone(), expires_at }),
            Beaten::NotHeld => self.beat_carefully(beat).await,
            Beaten::Locked => Err(StoreError::unavailable(
                format!(
                    "another session of the database holds run {} and does not let go; find out who",
                    beat.lease.run_id
                ),
                RETRY_AFTER,
            )),
        }
    }

    /// Extends the leases of one partition. A run that somebody else holds costs the others a moment,
    /// not their leases.
    async fn beat_together(&self, partition: i16, beats: &[&Heartbeat]) -> Result<Vec<Beaten>, StoreError> {
        let mut answers = vec![Beaten::Locked; beats.len()];
        let mut tries = 1;
        let mut rounds = 0;
        while rounds < ROUNDS {
            let left: Vec<usize> = (0..beats.len()).filter(|&at| answers[at] == Beaten::Locked).collect();
            if left.is_empty() {
                break;
            }
            let those: Vec<&Heartbeat> = left.iter().map(|&at| beats[at]).collect();
            let beaten = match self.beat_all(partition, &those).await {
                Err(fault) if fault.is_locked() => self.beat_the_free(partition, &those).await,
                other => other,
            };
            match beaten {
                Ok(beaten) => {
                    left.into_iter().zip(beaten).for_each(|(at, beaten)| answers[at] = beaten);
                    rounds += 1;
                }
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                // A heartbeat may be repeated without harm, so an open fate is no different answer.
                Err(fault) => return Err(fault.into_store_error("extending leases")),
            }
        }
        Ok(answers)
    }

    /// Waits for every run, though not for long.
    async fn beat_all(&self, partition: i16, beats: &[&Heartbeat]) -> Result<Vec<Beaten>, Fault> {
        read_beaten(&self.write_all(self.beats(partition, beats)).await?)
    }

    /// Passes by the runs that others hold.
    async fn beat_the_free(&self, partition: i16, beats: &[&Heartbeat]) -> Result<Vec<Beaten>, Fault> {
        let mut tx = self.pool.begin().await?;
        // A run that is not there is not held by anybody: it goes along, for its answer.
        let rows = query(
            "SELECT known.found IS NOT NULL AND held.found IS NULL AS locked
             FROM UNNEST($2::uuid[]) WITH ORDINALITY AS u(id, i)
             LEFT JOIN LATERAL (
                 SELECT true AS found FROM runs r WHERE r.run_id = u.id AND r.partition = $1
                 OFFSET 0) known ON true
             LEFT JOIN LATERAL (
                 SELECT true AS found FROM runs r WHERE r.run_id = u.id AND r.partition = $1
                 OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED) held ON true
             ORDER BY u.i",
        )
        .bind(partition)
        .bind(beats.iter().map(|beat| beat.lease.run_id.as_uuid()).collect::<Vec<_>>())
        .fetch_all(&mut tx)
        .await?;
        let locked = rows.iter().map(|row| row.try_get("locked")).collect::<Result<Vec<bool>, _>>()?;
        let pairs = || beats.iter().zip(&locked);
        let free: Vec<&Heartbeat> = pairs().filter_map(|(beat, locked)| (!locked).then_some(*beat)).collect();
        let mut beaten = read_beaten(&self.beats(partition, &free).fetch_all(&mut tx).await?)?.into_iter();
        tx.commit().await.map_err(Fault::Committing)?;
        let answer = |locked: &bool| if *locked { Some(Beaten::Locked) } else { beaten.next() };
        let answers: Option<Vec<Beaten>> = locked.iter().map(answer).collect();
        Ok(answers.ok_or_else(|| damaged("kagzi_heartbeat did not answer every element"))?)
    }

    fn beats(&self, partition: i16, beats: &[&Heartbeat]) -> Query {
        let each = || beats.iter();
        query("SELECT expires_at FROM kagzi_heartbeat($1, $2, $3, $4, $5, $6, $7) AS expires_at")
            .bind(partition)
            .bind(self.clock_now())
            .bind(each().map(|beat| beat.lease.run_id.as_uuid()).collect::<Vec<_>>())
            .bind(each().map(|beat| beat.lease.namespace.as_str()).collect::<Vec<_>>())
            .bind(each().map(|beat| beat.lease.worker_id.as_str()).collect::<Vec<_>>())
            .bind(each().map(|beat| beat.lease.fencing_token.get()).collect::<Vec<_>>())
            .bind(each().map(|beat| micros(beat.lease_length)).collect::<Vec<_>>())
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

fn read_beaten(rows: &[PgRow]) -> Result<Vec<Beaten>, Fault> {
    rows.iter()
        .map(|row| Ok(row.try_get::<Option<Moment>, _>("expires_at")?.map_or(Beaten::NotHeld, Beaten::Until)))
        .collect()
}
