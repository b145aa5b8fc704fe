//! An order: charge, reserve, ship. The parcel service fails at first and is tried again by a policy of
//! its own; an order that cannot be shipped is compensated, since its failure is data and not an error.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kagzi_sdk::{
    AttemptState, Client, ClientError, Context, MemoryStore, RetryPolicy, Start, Step, StepError, Worker,
    WorkflowError,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Order {
    item: String,
    cents: u64,
    country: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Outcome {
    Shipped { parcel: String },
    Refunded { reason: String },
}

async fn order(ctx: Context, order: Order) -> Result<Outcome, WorkflowError> {
    // A step may run again after a crash, so the other side gets a key under which it charges once.
    let key = format!("{}-charge", ctx.run_id());
    let payment = ctx.step("charge", || charge(key, &order)).await?;
    ctx.step("reserve", || reserve(&order)).await?;

    let ship = Step::named("ship").timeout(Duration::from_secs(5)).retry(RetryPolicy {
        max_attempts: 4,
        first_delay: Duration::from_millis(50),
        ..RetryPolicy::default()
    });
    // What the workflow wants to act on is returned as data: a `Result` inside the step's result.
    let shipped: Result<String, String> = ctx.step(ship, || ship_parcel(&order)).await?;
    match shipped {
        Ok(parcel) => Ok(Outcome::Shipped { parcel }),
        Err(reason) => {
            ctx.step("release", || release(&order)).await?;
            ctx.step("refund", || refund(&payment)).await?;
            Ok(Outcome::Refunded { reason })
        }
    }
}

async fn charge(key: String, order: &Order) -> Result<String, StepError> {
    if order.cents == 0 {
        // No retry can help: the run becomes a dead letter, to be looked at by a person.
        return Err(StepError::non_retryable("bad_amount", "an order must cost something"));
    }
    call(format!("charge {} cents under key {key}", order.cents)).await;
    Ok(format!("payment-of-{}", order.cents))
}

async fn reserve(order: &Order) -> Result<(), StepError> {
    call(format!("reserve {}", order.item)).await;
    Ok(())
}

async fn ship_parcel(order: &Order) -> Result<Result<String, String>, StepError> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    if order.country == "Atlantis" {
        call("ship: refused").await;
        return Ok(Err("no parcel goes to Atlantis".to_owned()));
    }
    if CALLS.fetch_add(1, Ordering::Relaxed) < 2 {
        call("ship: the parcel service is busy").await;
        return Err(StepError::retryable("parcel_service_busy", "the parcel service is busy"));
    }
    call(format!("ship {} to {}", order.item, order.country)).await;
    Ok(Ok("parcel-42".to_owned()))
}

async fn release(order: &Order) -> Result<(), StepError> {
    call(format!("release {}", order.item)).await;
    Ok(())
}

async fn refund(payment: &str) -> Result<(), StepError> {
    call(format!("refund {payment}")).await;
    Ok(())
}

/// Another service, which takes a moment to answer.
async fn call(what: impl Display) {
    println!("  {what}");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::embedded(Arc::new(MemoryStore::default()));
    let worker = Worker::builder(client.clone()).queue("orders").register("order", order).build()?;
    tokio::spawn(worker.run());
    let place = |item: &str, cents: u64, country: &str| {
        let order = Order { item: item.to_owned(), cents, country: country.to_owned() };
        Ok::<_, ClientError>(Start::workflow("order").queue("orders").input(&order)?)
    };

    println!("An order that ships at the third try:");
    let run = client.start(place("kettle", 2_500, "Iceland")?).await?;
    let outcome: Outcome = run.result().await?;
    let tries = run.attempts().await?.iter().filter(|a| a.step_id.as_str() == "ship").count();
    println!("{outcome:?} after {tries} tries\n");
    assert_eq!(tries, 3);

    println!("An order that cannot be shipped:");
    let run = client.start(place("kettle", 2_500, "Atlantis")?).await?;
    let outcome: Outcome = run.result().await?;
    println!("{outcome:?}\n");
    assert!(matches!(outcome, Outcome::Refunded { .. }));
    assert!(run.attempts().await?.iter().all(|attempt| attempt.state == AttemptState::Completed));

    println!("An order that no retry can save:");
    let run = client.start(place("kettle", 0, "Iceland")?).await?;
    match run.result::<Outcome>().await {
        Err(ClientError::WorkflowFailed(failed)) => println!("{failed}"),
        other => return Err(format!("expected a dead letter, got {other:?}").into()),
    }
    Ok(())
}
