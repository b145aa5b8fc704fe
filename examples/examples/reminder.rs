//! Reminders: a workflow that sleeps, wakes and sleeps again until it is done or cancelled. A sleep costs
//! one row and no worker, so it may as well last a year; here it lasts a moment.

use std::sync::Arc;
use std::time::Duration;

use kagzi_sdk::{Client, ClientError, Context, MemoryStore, RunState, Start, Worker, WorkflowError};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Reminder {
    text: String,
    every: Duration,
    times: u32,
}

async fn remind(ctx: Context, reminder: Reminder) -> Result<u32, WorkflowError> {
    for number in 1..=reminder.times {
        ctx.sleep(reminder.every).await?;
        ctx.step("remind", || async {
            println!(
                "  {} ({number} of {}), execution {} of the run",
                reminder.text,
                reminder.times,
                ctx.attempt()
            );
            Ok(())
        })
        .await?;
    }
    Ok(reminder.times)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::embedded(Arc::new(MemoryStore::default()));
    let worker = Worker::builder(client.clone()).queue("reminders").register("remind", remind).build()?;
    let stats = worker.stats();
    tokio::spawn(worker.run());
    let start = |text: &str, every: Duration| {
        let reminder = Reminder { text: text.to_owned(), every, times: 3 };
        Ok::<_, ClientError>(
            Start::workflow("remind").queue("reminders").input(&reminder)?.label("for", text),
        )
    };

    let tea = client.start(start("tea", Duration::from_millis(300))?).await?;
    let taxes = client.start(start("taxes", Duration::from_hours(365 * 24))?).await?;
    println!("{} times tea", tea.result::<u32>().await?);

    println!("taxes: {}, due {}", taxes.state().await?, taxes.record().await?.run.due_at);
    taxes.cancel("paid already").await?;
    match taxes.result::<u32>().await {
        Err(ClientError::WorkflowFailed(failed)) if failed.state == RunState::Cancelled => {
            println!("{failed}");
        }
        other => return Err(format!("expected a cancellation, got {other:?}").into()),
    }
    println!("the worker was busy only in between: {} sleeps", stats.now().runs_slept);
    Ok(())
}
