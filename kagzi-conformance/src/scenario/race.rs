//! Real races: many tasks that start at one barrier on several threads; and races whose course is known,
//! on one; and callers that pause.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::violation::Violation;

/// Lets `count` tasks loose at one moment and gives what they answered, by task.
pub(crate) async fn race<T, F>(count: usize, task: impl Fn(usize) -> F) -> Result<Vec<T>, Violation>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Violation>> + Send + 'static,
{
    let barrier = Arc::new(Barrier::new(count));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let (barrier, task) = (Arc::clone(&barrier), task(number));
        tasks.spawn(async move {
            barrier.wait().await;
            (number, task.await)
        });
    }
    let mut answers = Vec::with_capacity(count);
    while let Some(joined) = tasks.join_next().await {
        let (number, answer) = joined.map_err(|error| {
            Violation::new("a store does not panic under a race", "an answer", error.to_string())
        })?;
        answers.push((number, answer?));
    }
    answers.sort_by_key(|(number, _)| *number);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

/// Polls `count` tasks in turn, in their order, and gives what they answered. What the first leave half done is
/// what the next meet, however busy the machine is: a real race may pass such a moment by, this one does not.
pub(crate) async fn in_turn<T, F>(count: usize, task: impl Fn(usize) -> F) -> Result<Vec<T>, Violation>
where
    F: Future<Output = Result<T, Violation>>,
{
    let mut turns: Vec<Turn<T, F>> = (0..count).map(|number| Turn::Waits(Box::pin(task(number)))).collect();
    poll_fn(|context| {
        let mut all = Poll::Ready(());
        for turn in &mut turns {
            if turn.take(context).is_pending() {
                all = Poll::Pending;
            }
        }
        all
    })
    .await;
    turns.into_iter().filter_map(Turn::answer).collect()
}

/// Asks `task` so many times, lets `meanwhile` come to its end, and only then goes on with the task: a caller that
/// pauses where it waits for its store. Whoever does so for each number of times has it pause at each such place.
pub(crate) async fn pausing<T>(
    times: usize,
    task: impl Future<Output = Result<T, Violation>>,
    meanwhile: impl Future<Output = Result<(), Violation>>,
) -> Result<T, Violation> {
    let mut task = Box::pin(task);
    let mut left = times;
    let ended = poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match task.as_mut().poll(context) {
            Poll::Pending if left > 0 => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
        }
    })
    .await;
    meanwhile.await?;
    match ended {
        Some(answer) => answer,
        None => task.await,
    }
}

enum Turn<T, F> {
    Waits(Pin<Box<F>>),
    Ended(Result<T, Violation>),
}

impl<T, F: Future<Output = Result<T, Violation>>> Turn<T, F> {
    fn take(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self::Waits(task) = self else { return Poll::Ready(()) };
        task.as_mut().poll(context).map(|answer| *self = Self::Ended(answer))
    }

    fn answer(self) -> Option<Result<T, Violation>> {
        match self {
            Self::Waits(_) => None,
            Self::Ended(answer) => Some(answer),
        }
    }
}
