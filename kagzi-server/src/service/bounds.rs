//! Whether the runs that a request names lie within its caller's bounds, where the request does not tell.
//!
//! What this server handed out to callers with bounds it remembers. Any other run, such as one that another server
//! handed out, is looked up, many by one read. A look of a worker is charged as a read is, although the write that asks
//! for it costs nothing, and is made by itself among those of its principal: whoever names runs that are not there, again
//! and again, would be read for without end. Any other look is made in the place among the reads in flight that its
//! request has taken.

#[cfg(test)]
mod tests;

use kagzi_core::{ClaimedRun, Namespace, RunId, StoreError};
use kagzi_sdk::wire::error::Refusal;

use super::Services;
use super::load::Errand;
use super::permission::{self, Place};
use super::subject::Subject;
use super::told::Told;
use crate::auth::Caller;
use crate::metrics::Wait;

/// How many runs one read looks up: they come with their payloads.
const LOOKS_AT_ONCE: usize = 64;

/// Where a run lies for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    Bounds,
    /// Elsewhere, or it is not there.
    Nowhere,
    /// That was not looked up: its caller has made as many calls as they may.
    Unknown,
}

impl Services {
    /// Denies a request about a run that is not within the caller's bounds, or is not there.
    pub(super) async fn check_run(
        &self,
        caller: &Caller,
        told: &Told,
        request: &impl Subject,
    ) -> Result<(), Refusal> {
        let method = told.method;
        let (Some(namespace), Some(run_id)) = (request.namespaces().next(), request.run_id()) else {
            return Err(self.0.auth.deny(caller, method));
        };
        let wanted = [(namespace.clone(), run_id)];
        let looked = self.within(caller, method, request.errand(), &wanted).await;
        let (within, refusal) = looked.map_err(|error| self.refused(told, &error))?;
        match (within.first(), refusal) {
            (Some(Within::Bounds), _) => Ok(()),
            (Some(Within::Unknown), Some(refusal)) => Err(refusal),
            _ => Err(self.0.auth.deny(caller, method)),
        }
    }

    /// Where each of some runs lies, in order; and the refusal of those that are not looked up.
    pub(super) async fn within(
        &self,
        caller: &Caller,
        method: &str,
        errand: Errand,
        wanted: &[(Namespace, RunId)],
    ) -> Result<(Vec<Within>, Option<Refusal>), StoreError> {
        let verdict = |namespace: &Namespace, place: &Place| {
            if permission::place(caller, method, namespace, place) { Within::Bounds } else { Within::Nowhere }
        };
        let known = wanted.iter().map(|(namespace, run_id)| {
            let place = self.0.places.find(namespace, *run_id)?;
            Some(verdict(namespace, &place))
        });
        let known: Vec<Option<Within>> = known.collect();
        // What lies elsewhere costs what is not there costs, so that nobody learns from a limit what there is.
        let charged: Vec<usize> = (0..wanted.len()).filter(|at| known[*at] != Some(Within::Bounds)).collect();
        let (paid, refusal) = if errand == Errand::Work {
            let charging = self.0.load.charge_looks(caller, charged.iter().map(|at| &wanted[*at].0));
            self.0.metrics.waiting(Wait::Rate, charging).await
        } else {
            // The request itself was charged for.
            (charged.len(), None)
        };
        let mut within = vec![Within::Bounds; wanted.len()];
        let (looked, refused) = charged.split_at(paid);
        for at in refused {
            within[*at] = Within::Unknown;
        }
        for some in looked.chunks(LOOKS_AT_ONCE) {
            let look = match errand {
                Errand::Work => Some(self.0.metrics.waiting(Wait::Look, self.0.load.look(caller)).await),
                _ => None,
            };
            let runs: Vec<_> = some.iter().map(|at| wanted[*at].clone()).collect();
            let places = self.places_of(&runs).await?;
            for ((at, run), place) in some.iter().zip(&runs).zip(places) {
                within[*at] = place.map_or(Within::Nowhere, |place| verdict(&run.0, &place));
            }
            if let Some(look) = look
                && some.iter().all(|at| within[*at] == Within::Bounds)
            {
                look.found_all();
            }
        }
        Ok((within, refusal))
    }

    /// Where each of some runs belongs, if it is there: those that nobody looked up meanwhile are, by one read.
    async fn places_of(&self, runs: &[(Namespace, RunId)]) -> Result<Vec<Option<Place>>, StoreError> {
        let known = runs.iter().map(|(namespace, run_id)| self.0.places.find(namespace, *run_id));
        let mut places: Vec<Option<Place>> = known.collect();
        let unknown: Vec<usize> = (0..runs.len()).filter(|at| places[*at].is_none()).collect();
        if unknown.is_empty() {
            return Ok(places);
        }
        let asked: Vec<_> = unknown.iter().map(|at| runs[*at].clone()).collect();
        for (at, record) in unknown.into_iter().zip(self.store().get_runs(&asked).await?) {
            match record {
                Ok(record) => {
                    self.0.places.remember(&record.run);
                    places[at] = Some(Place::from(&record.run));
                }
                Err(StoreError::RunNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(places)
    }

    /// Remembers where claimed runs belong, if their worker's next calls will ask.
    pub(super) fn remember(&self, caller: &Caller, runs: &[ClaimedRun]) {
        for run in runs {
            if !caller.may_everywhere("BeginStep", run.run.namespace.as_str()) {
                self.0.places.remember(&run.run);
            }
        }
    }
}
