//! The line in front of the writer: bounded, first come first served.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::StoreError;
use tokio::sync::Semaphore;

use crate::error::closed;

/// Jobs that wait for the next batch. Whoever comes while it is full waits for room.
#[derive(Debug)]
pub(crate) struct Queue<J> {
    waiting: Mutex<Waiting<J>>,
    arrived: Condvar,
    room: Semaphore,
}

#[derive(Debug)]
struct Waiting<J> {
    jobs: Vec<J>,
    open: bool,
    /// Whether the writer sleeps: only then is it worth a system call to wake it.
    writer_sleeps: bool,
}

/// What the writer finds in front of its door.
#[derive(Debug)]
pub(crate) enum Taken<J> {
    /// Work, in the order in which it came.
    Jobs(Vec<J>),
    /// Nothing for as long as it was ready to wait.
    Nothing,
    /// Nothing, and no more will come.
    Closed,
}

impl<J> Queue<J> {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting { jobs: Vec::new(), open: true, writer_sleeps: false }),
            arrived: Condvar::new(),
            room: Semaphore::new(bound),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<J>> {
        // Nothing that can panic runs under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job in line, once there is room. Cancel safe: a dropped call has put nothing in.
    pub(crate) async fn push(&self, job: J) -> Result<(), StoreError> {
        let room = self.room.acquire().await.map_err(|_| closed())?;
        let mut waiting = self.waiting();
        if !waiting.open {
            return Err(closed());
        }
        room.forget();
        waiting.jobs.push(job);
        let wake = waiting.writer_sleeps;
        drop(waiting);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Everything that waits, up to `most` jobs; waits for the first up to `patience`.
    pub(crate) fn take(&self, most: usize, patience: Duration) -> Taken<J> {
        let mut waiting = self.waiting();
        if waiting.jobs.is_empty() && waiting.open {
            waiting.writer_sleeps = true;
            waiting = self.arrived.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner).0;
            waiting.writer_sleeps = false;
        }
        if waiting.jobs.is_empty() {
            return if waiting.open { Taken::Nothing } else { Taken::Closed };
        }
        let jobs = if waiting.jobs.len() <= most {
            std::mem::take(&mut waiting.jobs)
        } else {
            waiting.jobs.drain(..most).collect()
        };
        drop(waiting);
        self.room.add_permits(jobs.len());
        Taken::Jobs(jobs)
    }

    /// Lets nobody in any more. What waits in line is still taken.
    pub(crate) fn close(&self) {
        self.waiting().open = false;
        self.room.close();
        self.arrived.notify_one();
    }

    /// Closes, and sends away whoever waits in line.
    pub(crate) fn abandon(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.waiting().jobs);
        drop(jobs);
    }
}
