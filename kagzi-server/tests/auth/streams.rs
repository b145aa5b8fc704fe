//! How many streams one principal may have open, and that each place is free again, however its stream ends.

use kagzi_proto::v1;
use kagzi_proto::v1::stream_work_request::Request as Ask;
use kagzi_sdk::transport::{GrpcOptions, Token};
use kagzi_sdk::{Client, Context, Start, Worker};
use kagzi_server::{LoadLimits, ServerConfig, ServerHandle};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::support::*;

/// Two places, of which one principal may take one.
async fn server(files: &Files, principals: &[&Known]) -> ServerHandle {
    let entries: Vec<&str> = principals.iter().map(|known| known.entry.as_str()).collect();
    let access = files.write("access.toml", entries.concat());
    let load = LoadLimits { max_streams: 2, ..LoadLimits::default() };
    let http_listen = Some("127.0.0.1:0".to_owned());
    serve(ServerConfig { access_file: Some(access), load, http_listen, ..config() }).await
}

/// The worker's end of a stream.
struct Work {
    _requests: tokio::sync::mpsc::Sender<v1::StreamWorkRequest>,
    answers: Streaming<v1::StreamWorkResponse>,
}

async fn work(caller: &Caller, queue: &str) -> Result<Work, Status> {
    let (requests, incoming) = tokio::sync::mpsc::channel(8);
    let open = Ask::Open(v1::OpenWork {
        namespace: "default".to_owned(),
        queues: vec![queue.to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    });
    let first = v1::StreamWorkRequest { id: 0, trace_context: None, request: Some(open) };
    requests.send(first).await.unwrap();
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let answers = caller.workers.clone().stream_work(incoming).await?.into_inner();
    Ok(Work { _requests: requests, answers })
}

fn must_wait<T>(answer: Result<T, Status>) {
    let Err(refused) = answer else { panic!("there is no place") };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["limit"].as_str()), ("LIMIT_REACHED", "principal_share"));
    assert!(!refused.get_details_retry_info().unwrap().retry_delay.unwrap().is_zero());
}

/// Opens a stream once there is a place for it.
async fn in_time(caller: &Caller) -> Work {
    soon(async {
        loop {
            match work(caller, "q").await {
                Ok(work) => return work,
                Err(refused) => must_wait(Err::<(), _>(refused)),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_worker_and_a_client_whose_streams_find_no_place_go_by_calls_and_open_them_later() {
    let grants = ["role = \"client\"\nnamespaces = [\"*\"]", "role = \"worker\"\nnamespaces = [\"*\"]"];
    let (files, app) = (Files::new(), known("app", &grants));
    let server = serve(ServerConfig {
        access_file: Some(files.write("access.toml", &app.entry)),
        load: LoadLimits { max_streams: 4, ..LoadLimits::default() },
        http_listen: Some("127.0.0.1:0".to_owned()),
        ..config()
    })
    .await;
    let streams = async || {
        let page = kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
        let of = |kind: &str| {
            let series = format!("kagzi_{kind}_streams ");
            page.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u32>().ok()).unwrap()
        };
        (of("worker"), of("client"))
    };
    let raw = Caller::with_token(&server, &app.token).await;
    let held = (work(&raw, "other").await.unwrap(), work(&raw, "other").await.unwrap());
    assert_eq!(streams().await, (2, 0));
    let mut options = GrpcOptions::default();
    options.token = Some(Token::from_file(files.write("token", format!("{}\n", app.token))).unwrap());
    let client = Client::connect_with(server.url(), &options).await.unwrap();
    let greet = |ctx: Context, name: String| async move {
        ctx.step("compose", || async { Ok(format!("Hello, {name}!")) }).await
    };
    let worker = Worker::builder(client.clone()).queue("default").register("greet", greet).build().unwrap();
    let worker = tokio::spawn(worker.run());
    let greeted = async || {
        let run = client.start(Start::workflow("greet").input("world").unwrap()).await.unwrap();
        assert_eq!(soon(run.result::<String>()).await.unwrap(), "Hello, world!");
    };
    greeted().await;
    assert_eq!(streams().await, (2, 0), "all went by calls");
    drop(held);
    soon(async {
        while streams().await != (1, 1) {
            greeted().await;
        }
    })
    .await;
    worker.abort();
}

#[tokio::test]
async fn one_principal_has_so_many_streams_of_any_kind_and_each_is_free_again_when_it_ends() {
    const WORKER: &str = "role = \"worker\"\nnamespaces = [\"*\"]\nqueues = [\"q\"]";
    let files = Files::new();
    let (ada, bob) =
        (known("ada", &[WORKER]), known("bob", &[WORKER, "role = \"client\"\nnamespaces = [\"*\"]"]));
    let server = server(&files, &[&ada, &bob]).await;
    let (mut by_ada, by_bob) =
        (Caller::with_token(&server, &ada.token).await, Caller::with_token(&server, &bob.token).await);
    let channel = channel(&server).await;
    let shows = Shows(Some(format!("Bearer {}", ada.token)));
    let health = HealthClient::new(InterceptedService::new(channel, shows));
    let watch = || {
        let mut health = health.clone();
        async move { health.watch(Request::new(HealthCheckRequest::default())).await }
    };

    let held = work(&by_ada, "q").await.unwrap();
    must_wait(work(&by_ada, "q").await);
    must_wait(watch().await);
    // That is said before anybody looks at what is asked for, and calls are none.
    must_wait(work(&by_ada, "another's").await);
    by_ada.ask().await.unwrap();
    let of_bob = work(&by_bob, "q").await.unwrap();
    must_wait(by_bob.workflows.clone().stream_workflows(tokio_stream::pending()).await);

    // Its worker goes away; the server refuses it; its watch is given up; its connection is cut.
    drop(held);
    drop(in_time(&by_ada).await);
    soon(async {
        loop {
            match work(&by_ada, "another's").await {
                Err(refused) if refused.code() == Code::ResourceExhausted => {}
                other => return assert_eq!(code(other), Code::PermissionDenied),
            }
        }
    })
    .await;
    let watching = soon(async {
        loop {
            match watch().await {
                Ok(watching) => return watching,
                Err(refused) => must_wait(Err::<(), _>(refused)),
            }
        }
    })
    .await;
    must_wait(work(&by_ada, "q").await);
    drop(watching);
    let on_another = Caller::with_token(&server, &ada.token).await;
    let mut cut = in_time(&on_another).await;
    must_wait(work(&by_ada, "q").await);
    drop((on_another, cut.answers.message()));
    drop(cut);
    let last = in_time(&by_ada).await;

    let page = kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    let series = "kagzi_refusals_total{reason=\"principal_share\"} ";
    let refused = page.lines().find_map(|line| line.strip_prefix(series)).unwrap();
    assert!(refused.parse::<u32>().unwrap() >= 6, "{page}");
    drop((last, of_bob));
    server.shutdown().await.unwrap();
}
