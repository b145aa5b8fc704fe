//! One trace from the client to the last step, whoever dies on the way.

use std::collections::HashSet;
use std::net::TcpListener;

use kagzi_core::OperationId;
use kagzi_proto::v1;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_sdk::{Client, RunId};
use serde_json::Value;
use tonic::Request;
use tonic::transport::Channel;

use super::expect_eq;
use crate::collector::{Collected, Collector};
use crate::log::Log;
use crate::process::Process;
use crate::worker::TRACED;
use crate::world::{Failed, Server, WorkerSettings, World, busy, traced, traced_worker};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// What no span and no line may show.
const SECRET: &str = "planted-payload-of-a-traced-run";

/// What the case itself asks about the run, as part of no trace.
const LOOK: &str = "GetWorkflow";

/// Starts a run by a plain call with the headers of W3C, as any client in any language makes it.
async fn start(server: &Server) -> Result<RunId, Failed> {
    let mut client = WorkflowServiceClient::new(Channel::from_shared(server.url())?.connect().await?);
    let mut request = Request::new(v1::StartWorkflowRequest {
        namespace: "default".to_owned(),
        queue: "default".to_owned(),
        workflow_type: TRACED.to_owned(),
        input: Some(v1::Payload {
            content_type: "application/json".to_owned(),
            data: format!("{SECRET:?}").into(),
        }),
        operation_id: OperationId::generate().to_string(),
        ..v1::StartWorkflowRequest::default()
    });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CLIENT_SPAN}-01").parse()?);
    request.metadata_mut().insert("tracestate", "congo=t61rcWkgMzE".parse()?);
    Ok(client.start_workflow(request).await?.into_inner().run_id.parse()?)
}

fn worker(
    name: &str,
    server: &Server,
    collector: &str,
    settings: WorkerSettings,
) -> Result<(Process, Log), Failed> {
    let mut process = traced_worker(name, &server.url(), collector, settings)?;
    let log = process.log()?;
    Ok((process, log))
}

pub async fn across_a_crash(world: World) -> Result<(), Failed> {
    let collector = Collector::start().await?;
    let url = collector.url();
    let mut server = world.server_with(0, |command| traced(command, "server", &url))?;
    let server_log = server.process.log()?;
    let holding = WorkerSettings { lease_ms: 1_000, holds: true, runs: 1 };
    let (mut first, mut first_log) = worker("first", &server, &url, holding)?;

    let run_id = start(&server).await?;
    first.line("holding")?;
    let before = |span: &Collected| span.service == "first" && span.get("kagzi.step") == "before";
    collector.wait_for("the first worker's first step", before).await?;
    first_log.wait_for("in the step").await?;
    first.kill()?;

    let (second, second_log) = worker("second", &server, &url, busy(10_000))?;
    let client = Client::connect(server.url()).await?;
    expect_eq("the result", &client.handle(run_id).result::<String>().await?, &SECRET.to_owned())?;
    let carried = client.get(run_id).await?.run.trace_context.unwrap_or_default();
    let of_client =
        carried.starts_with(&format!("00-{TRACE}-")) && carried.ends_with("-01 congo=t61rcWkgMzE");
    expect_eq("the run carries the client's trace and its state", &of_client, &true)?;
    // What they have not exported yet they do at their end.
    second.terminate()?;
    server.process.terminate()?;

    let spans = collector.spans();
    of_one_trace(&spans, run_id)?;
    no_hole(&spans)?;
    as_they_should_be(&spans)?;
    let (first, second) = (first_log.all().await?, second_log.all().await?);
    lines_of_the_run(&server_log.all().await?, &[&first, &second], run_id)?;
    match spans.iter().find(|span| span.text.contains(SECRET)) {
        None => Ok(()),
        Some(span) => Err(format!("a span shows a payload: {span:#?}").into()),
    }
}

/// All that names the run is of the client's trace, and all of the trace is of those who had to do with it.
fn of_one_trace(spans: &[Collected], run_id: RunId) -> Result<(), Failed> {
    let run_id = run_id.to_string();
    let of_run = |span: &&Collected| span.get("kagzi.run_id") == run_id && span.get("rpc.method") != LOOK;
    let named: Vec<_> = spans.iter().filter(of_run).collect();
    let elsewhere: Vec<_> = named.iter().filter(|span| span.trace_id != TRACE).collect();
    if !elsewhere.is_empty() {
        return Err(format!("spans of the run in other traces: {elsewhere:#?}").into());
    }
    let services: HashSet<_> = named.iter().map(|span| span.service.as_str()).collect();
    expect_eq("who has spans of the run", &services, &HashSet::from(["server", "first", "second"]))
}

/// The parents of every span of the trace lead up to the client's.
fn no_hole(spans: &[Collected]) -> Result<(), Failed> {
    for span in spans.iter().filter(|span| span.trace_id == TRACE) {
        let mut at = span;
        while at.parent_id != CLIENT_SPAN {
            let parent = spans.iter().find(|other| other.span_id == at.parent_id);
            at = parent.ok_or_else(|| format!("a parent is missing above {}: {span:#?}", at.name))?;
        }
    }
    Ok(())
}

/// The spans that there must be, with what they tell.
fn as_they_should_be(spans: &[Collected]) -> Result<(), Failed> {
    let of_trace: Vec<_> = spans.iter().filter(|span| span.trace_id == TRACE).collect();
    let one = |service: &str, name: &str, with: &[(&str, &str)]| -> Result<Collected, Failed> {
        let wanted = |span: &&&Collected| {
            span.service == service
                && span.name == name
                && with.iter().all(|(key, value)| span.get(key) == *value)
        };
        let found = of_trace.iter().find(wanted).map(|span| (*span).clone());
        found.ok_or_else(|| format!("no span {name:?} of {service} with {with:?} in {of_trace:#?}").into())
    };
    let completed = ("kagzi.outcome", "completed");
    one("first", "step before", &[completed, ("kagzi.attempt", "1"), ("kagzi.workflow_type", TRACED)])?;
    one("second", "step hold", &[completed, ("kagzi.step", "hold"), ("kagzi.attempt", "2")])?;
    let run = one("second", &format!("run {TRACED}"), &[completed])?;
    let step = one("second", "step after", &[completed, ("kagzi.worker_id", run.get("kagzi.worker_id"))])?;
    // The application's own span in a step is a child of the step's.
    let own = one("second", "own", &[])?;
    expect_eq("the parent of the application's span", &own.parent_id, &step.span_id)?;

    let rpc = [("rpc.system", "grpc"), ("rpc.grpc.status_code", "0")];
    let call = one("server", "kagzi.v1.WorkflowService/StartWorkflow", &rpc)?;
    expect_eq("the parent of the call", &call.parent_id.as_str(), &CLIENT_SPAN)?;
    let store = one("server", "start", &[("db.operation.name", "start")])?;
    expect_eq("the parent of the operation", &store.parent_id, &call.span_id)?;
    let database = ["sqlite", "postgresql"].contains(&store.get("db.system.name"));
    expect_eq("the database is named", &database, &true)?;
    let write = one("server", "kagzi.v1.WorkerService/CompleteStep", &[("kagzi.step", "before")])?;
    expect_eq("the worker of a write is named", &write.get("kagzi.worker_id").starts_with("first"), &true)?;

    // A claim is made before anybody knew of which trace it would be.
    let takes: Vec<_> = spans.iter().filter(|span| span.name.ends_with("/TakeRuns")).collect();
    let linked = takes.iter().filter(|span| span.links.iter().any(|link| link == TRACE)).count();
    expect_eq("takes that are linked to the trace", &linked, &2)?;
    let in_vain: Vec<_> = takes.iter().filter(|span| span.get("kagzi.runs") == "0").collect();
    expect_eq("takes in vain that were exported", &in_vain.len(), &0)
}

/// Every line about the run names its trace, in the logs of all who had to do with it.
fn lines_of_the_run(server: &[Value], workers: &[&[Value]], run_id: RunId) -> Result<(), Failed> {
    let run_id = run_id.to_string();
    let about = |lines: &[Value]| -> Vec<Value> {
        let of_run = |line: &&Value| line["run_id"] == run_id.as_str() && line["method"] != LOOK;
        lines.iter().filter(of_run).cloned().collect()
    };
    let of_server = about(server);
    let has = |lines: &[Value], message: &str, keys: &[(&str, &str)]| -> Result<(), Failed> {
        let wanted = |line: &&Value| {
            line["message"] == message
                && keys.iter().all(|(key, value)| line[key].to_string().contains(value))
        };
        match lines.iter().find(wanted) {
            Some(_) => Ok(()),
            None => Err(format!("no line {message:?} with {keys:?} among {lines:#?}").into()),
        }
    };
    has(&of_server, "run started", &[("queue", "default"), ("namespace", "default")])?;
    let written = [("method", "CompleteStep"), ("step", "before"), ("attempt", "1"), ("worker", "first")];
    has(&of_server, "call answered", &written)?;
    for (lines, worker) in workers.iter().zip(["first", "second"]) {
        let step = if worker == "first" { "before" } else { "after" };
        let keys = [("step", step), ("attempt", "1"), ("worker", worker), ("queue", "default")];
        has(&about(lines), "in the step", &keys)?;
        let all = [of_server.clone(), about(lines)].concat();
        for line in all {
            expect_eq(&format!("the trace of {line}"), &line["trace_id"], &Value::from(TRACE))?;
        }
    }
    let all = server.iter().chain(workers.iter().copied().flatten());
    match all.map(Value::to_string).find(|line| line.contains(SECRET)) {
        None => Ok(()),
        Some(line) => Err(format!("a line shows a payload: {line}").into()),
    }
}

pub async fn without_a_collector(world: World) -> Result<(), Failed> {
    // One that is not there, and one that takes connections and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0")?;
    let mute_url = format!("http://{}", mute.local_addr()?);
    let mut server = world.server_with(0, |command| {
        traced(command, "server", &mute_url);
        // Whoever waited for the collector would wait for longer than anybody waits for this case.
        command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
    })?;
    let server_log = server.process.log()?;
    let (worker, mut log) = worker("first", &server, "http://127.0.0.1:1", busy(10_000))?;
    let client = Client::connect(server.url()).await?;
    for _ in 0..3 {
        let run_id = start(&server).await?;
        expect_eq("the result", &client.handle(run_id).result::<String>().await?, &SECRET.to_owned())?;
    }
    log.wait_for("spans cannot be exported").await?;
    worker.terminate()?;
    server.process.terminate()?;
    let lines = log.all().await?;
    let warned: Vec<_> = lines
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|said| said.contains("spans cannot be exported")))
        .collect();
    expect_eq("warnings", &warned.len(), &1)?;
    expect_eq("it says where to look", &warned[0].to_string().contains("otlp_endpoint"), &true)?;
    expect_eq("the server logs as ever", &server_log.all().await?.is_empty(), &false)
}
