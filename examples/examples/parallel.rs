//! Steps side by side: the words of some texts are counted, all texts at once, and then added up. A
//! step that fails is executed again by itself; its neighbours keep what they have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use kagzi_sdk::{
    Client, Context, MemoryStore, RetryPolicy, Start, Step, StepError, StepFuture, Worker, WorkflowError,
};

type Counts = BTreeMap<String, usize>;

async fn count_words(ctx: Context, texts: Vec<String>) -> Result<Counts, WorkflowError> {
    // As many steps as there are texts: each use of the name gets an occurrence of its own.
    let counting: Vec<StepFuture<'_, Counts>> = texts
        .iter()
        .map(|text| {
            let retry = RetryPolicy { first_delay: Duration::from_millis(20), ..RetryPolicy::default() };
            ctx.step(Step::named("count").retry(retry), move || count(text))
        })
        .collect();
    let mut total = Counts::new();
    for counts in join_all(counting).await {
        for (word, count) in counts? {
            *total.entry(word).or_default() += count;
        }
    }
    // Two different steps side by side.
    let (words, longest) = tokio::join!(
        ctx.step("sum", || async { Ok(total.values().sum::<usize>()) }),
        ctx.step("longest", || async { Ok(total.keys().max_by_key(|word| word.len()).cloned()) }),
    );
    println!("{} words, the longest is {:?}", words?, longest?);
    Ok(total)
}

async fn count(text: &str) -> Result<Counts, StepError> {
    static FAILED: AtomicBool = AtomicBool::new(false);
    // Slow work, as far as the worker is concerned: all texts are counted in the time of one.
    tokio::time::sleep(Duration::from_millis(100)).await;
    if text.contains("panic") && !FAILED.swap(true, Ordering::Relaxed) {
        return Err(StepError::retryable("counter_jammed", "the counter is jammed"));
    }
    let mut counts = Counts::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    Ok(counts)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::embedded(Arc::new(MemoryStore::default()));
    let worker = Worker::builder(client.clone()).queue("default").register("count_words", count_words);
    tokio::spawn(worker.build()?.run());

    let texts = ["to be or not to be", "don't panic", "be durable and be quick", "to the point"];
    let run = client.start(Start::workflow("count_words").input(&texts)?).await?;
    let total: Counts = run.result().await?;
    assert_eq!((total["be"], total["to"], total["panic"]), (4, 3, 1));
    for attempt in run.attempts().await? {
        println!("{:10} attempt {}  {}", attempt.step_id.as_str(), attempt.attempt, attempt.state);
    }
    Ok(())
}
