//! The line in front of the writer: bounded in operations and in bytes, first come first served.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::closed;

/// Jobs that wait for the next batch. Whoever comes while it is full waits for room.
#[derive(Debug)]
pub(crate) struct Queue<J> {
    waiting: Mutex<Waiting<J>>,
    arrived: Condvar,
    room: Semaphore,
    room_bytes: Arc<Semaphore>,
    bound_bytes: u32,
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
    pub(crate) fn new(bound: usize, bound_bytes: u32) -> Self {
        Self {
            waiting: Mutex::new(Waiting { jobs: Vec::new(), open: true, writer_sleeps: false }),
            arrived: Condvar::new(),
            room: Semaphore::new(bound),
            room_bytes: Arc::new(Semaphore::new(bound_bytes as usize)),
            bound_bytes,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<J>> {
        // Nothing that can panic runs under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a job that carries `size_bytes`, until what is returned is dropped. One that carries
    /// nothing needs none, so that heartbeats and claims never wait behind large payloads; one that is
    /// larger than all the room has it to itself.
    pub(crate) async fn room_for(
        &self,
        size_bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, StoreError> {
        if size_bytes == 0 {
            return Ok(None);
        }
        let wanted = u32::try_from(size_bytes).unwrap_or(u32::MAX).min(self.bound_bytes);
        let room = Arc::clone(&self.room_bytes).acquire_many_owned(wanted).await;
        room.map(Some).map_err(|_| closed())
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
        self.room_bytes.close();
        self.arrived.notify_one();
    }

    /// Closes, and sends away whoever waits in line.
    pub(crate) fn abandon(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.waiting().jobs);
        drop(jobs);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Room = Result<Option<OwnedSemaphorePermit>, StoreError>;

    fn look<F: Future<Output = Room>>(asked: std::pin::Pin<&mut F>) -> Poll<Room> {
        asked.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn large_payloads_wait_for_room_and_what_carries_none_does_not() {
        let queue = Queue::<()>::new(10, 100);
        let Poll::Ready(Ok(first)) = look(std::pin::pin!(queue.room_for(60))) else { panic!("it fits") };
        let mut second = std::pin::pin!(queue.room_for(60));
        assert!(look(second.as_mut()).is_pending());
        assert!(matches!(look(std::pin::pin!(queue.room_for(0))), Poll::Ready(Ok(None))), "a heartbeat");
        drop(first);
        assert!(matches!(look(second.as_mut()), Poll::Ready(Ok(Some(_)))));
    }

    #[test]
    fn what_is_larger_than_all_the_room_has_it_to_itself() {
        let queue = Queue::<()>::new(10, 100);
        let Poll::Ready(Ok(giant)) = look(std::pin::pin!(queue.room_for(1 << 40))) else {
            panic!("it is alone")
        };
        let mut next = std::pin::pin!(queue.room_for(1));
        assert!(look(next.as_mut()).is_pending());
        drop(giant);
        assert!(look(next.as_mut()).is_ready());
        assert!(look(std::pin::pin!(queue.room_for(1))).is_ready());
    }

    #[test]
    fn whoever_waits_for_room_hears_of_the_end() {
        let queue = Queue::<()>::new(10, 100);
        let _all = look(std::pin::pin!(queue.room_for(100)));
        let mut waiting = std::pin::pin!(queue.room_for(1));
        assert!(look(waiting.as_mut()).is_pending());
        queue.close();
        assert!(matches!(look(waiting), Poll::Ready(Err(StoreError::Unavailable { .. }))));
    }
}
