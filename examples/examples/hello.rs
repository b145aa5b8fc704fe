//! A first workflow, on a database on disk: kill it while it sleeps and start it again.

use std::{sync::Arc, time::Duration};

use kagzi_sdk::{Client, Context, Start, Worker, WorkflowError};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};

async fn greet(ctx: Context, name: String) -> Result<String, WorkflowError> {
    let compose = || async {
        println!("composing; once done, this is never done again");
        Ok(format!("Hello, {name}!"))
    };
    let greeting = ctx.step("compose", compose).await?;
    ctx.sleep(Duration::from_secs(2)).await?;
    ctx.step("deliver", || async { Ok(format!("{greeting} (delivered)")) }).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join("kagzi-hello.db");
    let client = Client::embedded(Arc::new(SqliteStore::open(SqliteOptions::new(path)).await?));
    tokio::spawn(Worker::builder(client.clone()).queue("default").register("greet", greet).build()?.run());
    let run = client.start(Start::workflow("greet").input("world")?.idempotency_key("hello-1")).await?;
    println!("{}", run.result::<String>().await?);
    Ok(())
}
