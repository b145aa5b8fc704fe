//! Listings of runs and attempts, and the cursors that hold their place.

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::RunId;
use crate::limits::Labels;
use crate::name::{Namespace, QueueName, StepId, WorkflowType};
use crate::page::{Cursor, PageRequest};
use crate::run::{Run, RunState};
use crate::step::Attempt;

/// Which runs of a namespace are wanted. Every part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// In one of these states; empty: in any.
    pub states: Vec<RunState>,
    /// Of this type.
    pub workflow_type: Option<WorkflowType>,
    /// Of this queue.
    pub queue: Option<QueueName>,
    /// With all of these labels.
    pub labels: Labels,
    /// Created at or after this moment.
    pub created_from: Option<Timestamp>,
    /// Created before this moment.
    pub created_before: Option<Timestamp>,
}

impl RunFilter {
    /// Whether a run is wanted.
    pub fn matches(&self, run: &Run) -> bool {
        (self.states.is_empty() || self.states.contains(&run.state))
            && self.workflow_type.as_ref().is_none_or(|only| *only == run.workflow_type)
            && self.queue.as_ref().is_none_or(|only| *only == run.queue)
            && run.labels.contain(&self.labels)
            && self.created_from.is_none_or(|from| run.created_at >= from)
            && self.created_before.is_none_or(|before| run.created_at < before)
    }
}

/// Lists runs, the youngest first: by creation time, then run id, both descending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRuns {
    /// The tenant.
    pub namespace: Namespace,
    /// Which runs.
    pub filter: RunFilter,
    /// Which page.
    pub page: PageRequest,
}

impl ListRuns {
    /// Opens the cursor: the page holds the runs that come after (are older than) this place.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for a bad limit, [`StoreError::BadCursor`] for a cursor that
    /// is not of this listing and filter.
    pub fn place(&self) -> Result<Option<(Timestamp, RunId)>, StoreError> {
        self.page.validate()?;
        let Some(cursor) = &self.page.cursor else { return Ok(None) };
        let place = cursor.open(&self.identity())?;
        let bad = || StoreError::BadCursor { got: "one with a damaged place" };
        let (micros, id) = place.split_first_chunk::<8>().ok_or_else(bad)?;
        let id = uuid::Uuid::from_slice(id).map_err(|_| bad())?;
        Ok(Some((Timestamp::from_micros(i64::from_be_bytes(*micros))?, RunId::from_uuid(id)?)))
    }

    /// The cursor of the page that goes on after `last`.
    pub fn cursor_after(&self, last: &Run) -> Cursor {
        let mut place = last.created_at.as_micros().to_be_bytes().to_vec();
        place.extend_from_slice(last.run_id.as_uuid().as_bytes());
        Cursor::seal(&self.identity(), &place)
    }

    fn identity(&self) -> String {
        format!("runs {:?} {:?}", self.namespace, self.filter)
    }
}

/// Which attempts of a run are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptScope {
    /// Every attempt of every step: the history.
    All,
    /// The latest attempt of each step: what a replay needs.
    Latest,
}

/// Lists the attempts of a run by position, then step id, then number, all ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListAttempts {
    /// The tenant.
    pub namespace: Namespace,
    /// The run.
    pub run_id: RunId,
    /// Which attempts.
    pub scope: AttemptScope,
    /// Which page.
    pub page: PageRequest,
}

impl ListAttempts {
    /// Opens the cursor: the page holds the attempts that come after this place.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for a bad limit, [`StoreError::BadCursor`] for a cursor that
    /// is not of this listing.
    pub fn place(&self) -> Result<Option<(u32, StepId, u32)>, StoreError> {
        self.page.validate()?;
        let Some(cursor) = &self.page.cursor else { return Ok(None) };
        let place = cursor.open(&self.identity())?;
        if place.is_empty() {
            return Ok(None);
        }
        let bad = || StoreError::BadCursor { got: "one with a damaged place" };
        let (position, rest) = place.split_first_chunk::<4>().ok_or_else(bad)?;
        let (attempt, step_id) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let step_id = std::str::from_utf8(step_id).map_err(|_| bad())?;
        Ok(Some((u32::from_be_bytes(*position), StepId::new(step_id)?, u32::from_be_bytes(*attempt))))
    }

    /// The cursor of the page that goes on after `last`.
    pub fn cursor_after(&self, last: &Attempt) -> Cursor {
        let mut place = last.position.to_be_bytes().to_vec();
        place.extend_from_slice(&last.attempt.to_be_bytes());
        place.extend_from_slice(last.step_id.as_str().as_bytes());
        Cursor::seal(&self.identity(), &place)
    }

    /// A cursor that goes before the first attempt: where a claim had no room for any.
    pub fn cursor_at_start(&self) -> Cursor {
        Cursor::seal(&self.identity(), &[])
    }

    fn identity(&self) -> String {
        format!("attempts {:?} {} {:?}", self.namespace, self.run_id, self.scope)
    }
}
