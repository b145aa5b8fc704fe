//! Leases: heartbeat and release.

use kagzi_core::{GrantedLease, Heartbeat, ReleaseOutcome, ReleaseRun, StoreError, decide};

use crate::commit::Tx;
use crate::error::Error;
use crate::runs::{self, load_held};

/// Extends leases, each with its own verdict.
pub(crate) fn heartbeat(
    tx: &mut Tx<'_>,
    batch: &[Heartbeat],
) -> Result<Vec<Result<GrantedLease, StoreError>>, Error> {
    batch
        .iter()
        .map(|beat| match extend(tx, beat) {
            Ok(granted) => Ok(Ok(granted)),
            Err(Error::Refused(refusal)) => Ok(Err(refusal)),
            Err(error) => Err(error),
        })
        .collect()
}

fn extend(tx: &mut Tx<'_>, beat: &Heartbeat) -> Result<GrantedLease, Error> {
    let run = load_held(tx, &beat.lease)?;
    let (run, granted) = decide::heartbeat(&run, beat, tx.now)?;
    tx.extend_lease(run)?;
    Ok(granted)
}

pub(crate) fn release(tx: &mut Tx<'_>, request: &ReleaseRun) -> Result<ReleaseOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let recorded = runs::load_recorded(tx.connection, run.run_id, request.operation)?;
    let decision = decide::release(&run, recorded, request, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}
