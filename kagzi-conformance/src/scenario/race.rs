//! Real races: many tasks that start at one barrier on several threads.

use std::sync::Arc;

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
