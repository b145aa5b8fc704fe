//! A workflow in one trace with the code that starts it: its spans go to an OpenTelemetry collector, by OTLP
//! over gRPC, at `OTEL_EXPORTER_OTLP_ENDPOINT` (`http://localhost:4317` unless it says otherwise).

use std::sync::Arc;

use kagzi_sdk::{Client, Context, MemoryStore, Start, Worker, WorkflowError, otel};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Instrument as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

async fn order(ctx: Context, item: String) -> Result<String, WorkflowError> {
    // Within the step, its span is the current one: what it calls, and the spans of your own, belong to it.
    let reserve = || async { Ok(format!("{item}, reserved")) };
    ctx.step("reserve", || reserve().instrument(tracing::info_span!("ask the warehouse"))).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As any program does it that exports its spans; nothing of it is kagzi's.
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).build();
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    tracing_subscriber::registry().with(spans.with_filter(LevelFilter::INFO)).init();

    let client = Client::embedded(Arc::new(MemoryStore::default()));
    tokio::spawn(Worker::builder(client.clone()).queue("default").register("order", order).build()?.run());
    let bought = async {
        println!("the trace: {}", otel::current().unwrap_or_default());
        let run = client.start(Start::workflow("order").input("a lamp")?).await?;
        println!("{}", run.result::<String>().await?);
        Ok::<(), Box<dyn std::error::Error>>(())
    };
    bought.instrument(tracing::info_span!("a customer buys")).await?;

    // The last spans, and with nobody to take them, no more than a word about it.
    if let Err(error) = tokio::task::spawn_blocking(move || provider.shutdown()).await? {
        eprintln!("the spans were not exported: {error}");
    }
    Ok(())
}
