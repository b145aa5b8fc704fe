//! Bearer tokens: known ones get in, all others do not, and the access file counts as it is now.

use kagzi_proto::v1;
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_sdk::transport::{Grpc, GrpcOptions, Token};
use kagzi_sdk::{Client, Context, Start, Worker};
use kagzi_server::{Server, ServerConfig};
use tonic::codegen::{Service as _, http};
use tonic::{Code, Status};

use crate::support::*;

const ADMIN: &str = "role = \"admin\"\nnamespaces = [\"*\"]";

#[tokio::test]
async fn a_known_token_gets_in_and_nothing_else_does() {
    let (files, ada, bob) = (Files::new(), known("ada", &[ADMIN]), known("bob", &[ADMIN]));
    let access = files.write("access.toml", format!("{}{}", ada.entry, bob.entry));
    let server = serve(ServerConfig { access_file: Some(access), ..config() }).await;
    let channel = channel(&server).await;
    for token in [&ada.token, &bob.token] {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let mut caller = Caller::over(&channel, Some(format!("{scheme} {token}")));
            assert_eq!(code(caller.ask().await), Code::Ok);
        }
    }
    let stranger = kagzi_server::NewToken::generate().unwrap();
    let refused = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(ada.token.clone()),
        Some(format!("Basic {}", ada.token)),
        Some(format!("Bearer {}x", ada.token)),
        Some(format!("Bearer {}", &ada.token[..ada.token.len() - 1])),
        Some(format!("Bearer {} {}", ada.token, bob.token)),
        Some(format!("Bearer {}", stranger.reveal())),
        Some(format!("Bearer {}", stranger.digest())),
    ];
    for authorization in refused {
        let mut caller = Caller::over(&channel, authorization.clone());
        assert_eq!(code(caller.ask().await), Code::Unauthenticated, "{authorization:?}");
        let status = caller.workflows.start_workflow(start("default", "q", "t")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(!format!("{status:?}").contains(&ada.token), "{status:?}");
        let open = tokio_stream::iter([v1::StreamWorkRequest { id: 0, trace_context: None, request: None }]);
        assert_eq!(code(caller.workers.stream_work(open).await), Code::Unauthenticated);
    }
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn health_is_for_everybody_and_its_watch_and_reflection_for_those_who_are_known() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

    let (files, nobody) = (Files::new(), known("nobody", &[]));
    let access = files.write("access.toml", &nobody.entry);
    let server = serve(ServerConfig { access_file: Some(access), ..config() }).await;
    let channel = channel(&server).await;
    let mut stranger = HealthClient::new(channel.clone());
    stranger.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(code(stranger.watch(HealthCheckRequest::default()).await), Code::Unauthenticated);
    // Whatever else the health may come to have is not open by itself.
    let mut plain = channel.clone();
    std::future::poll_fn(|context| plain.poll_ready(context)).await.unwrap();
    let list = http::Request::post("/grpc.health.v1.Health/List").header("content-type", "application/grpc");
    let listed = plain.call(list.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(Status::from_header_map(listed.headers()).unwrap().code(), Code::Unauthenticated);
    // No such service, and nobody has to take in its name to find that out.
    let long = |bytes: usize| HealthCheckRequest { service: "s".repeat(bytes) };
    assert_eq!(stranger.check(long(4000)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(code(stranger.check(long(4100)).await), Code::InvalidArgument);
    let list = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        tokio_stream::iter([ServerReflectionRequest { host: String::new(), message_request }])
    };
    let refused = ServerReflectionClient::new(channel.clone()).server_reflection_info(list()).await;
    assert_eq!(code(refused), Code::Unauthenticated);
    let shows = Shows(Some(format!("Bearer {}", nobody.token)));
    let mut known = HealthClient::with_interceptor(channel.clone(), shows.clone());
    let mut health = known.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(health.message().await.unwrap().is_some());
    let mut reflection = ServerReflectionClient::with_interceptor(channel, shows);
    let mut answers = reflection.server_reflection_info(list()).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
}

#[tokio::test]
async fn the_access_file_counts_as_it_is_now_and_a_broken_one_changes_nothing() {
    let (files, ada, bob) = (Files::new(), known("ada", &[ADMIN]), known("bob", &[ADMIN]));
    let access = files.write("access.toml", &ada.entry);
    let server = serve(ServerConfig { access_file: Some(access), ..config() }).await;
    let mut by_ada = Caller::with_token(&server, &ada.token).await;
    let mut by_bob = Caller::with_token(&server, &bob.token).await;
    assert_eq!(code(by_ada.ask().await), Code::Ok);
    assert_eq!(code(by_bob.ask().await), Code::Unauthenticated);

    // Bob comes together with a mistake, then without it.
    files.write("access.toml", format!("{}tokens = []\n{}", bob.entry, ada.entry));
    assert_eq!(code(by_bob.ask().await), Code::Unauthenticated);
    files.write("access.toml", &bob.entry);
    soon(async { while code(by_bob.ask().await) != Code::Ok {} }).await;
    assert_eq!(code(by_ada.ask().await), Code::Unauthenticated, "she has gone");

    // From now on a broken file: Bob stays.
    files.write("access.toml", "[[principal]]");
    for _ in 0..50 {
        assert_eq!(code(by_bob.ask().await), Code::Ok);
    }
}

#[tokio::test]
async fn who_is_struck_out_while_the_server_starts_is_out() {
    let (files, ada, bob) = (Files::new(), known("ada", &[ADMIN]), known("bob", &[ADMIN]));
    let access = files.write("access.toml", format!("{}{}", ada.entry, bob.entry));
    let server = Server::bind(ServerConfig { access_file: Some(access), ..config() }).await.unwrap();
    files.write("access.toml", &bob.entry);
    let server = server.spawn();
    let mut by_ada = Caller::with_token(&server, &ada.token).await;
    soon(async { while code(by_ada.ask().await) != Code::Unauthenticated {} }).await;
    assert_eq!(code(Caller::with_token(&server, &bob.token).await.ask().await), Code::Ok);
}

#[tokio::test]
async fn a_stream_ends_when_the_token_that_opened_it_counts_no_more() {
    let worker = "role = \"worker\"\nnamespaces = [\"default\"]\nqueues = [\"q\"]";
    let (files, ada, bob) = (Files::new(), known("ada", &[worker]), known("bob", &[worker]));
    let access = files.write("access.toml", format!("{}{}", ada.entry, bob.entry));
    let server = serve(ServerConfig { access_file: Some(access), ..config() }).await;
    let open = |queue: &str| v1::OpenWork {
        namespace: "default".to_owned(),
        queues: vec![queue.to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    };
    let mut streams = Vec::new();
    for known in [&ada, &bob] {
        let mut caller = Caller::with_token(&server, &known.token).await;
        let (requests, incoming) = tokio::sync::mpsc::channel(8);
        let first =
            v1::StreamWorkRequest { id: 0, trace_context: None, request: Some(Request::Open(open("q"))) };
        requests.send(first).await.unwrap();
        let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
        let answers = caller.workers.stream_work(incoming).await.unwrap().into_inner();
        streams.push((requests, answers));
    }
    let take = |id| v1::StreamWorkRequest {
        id,
        trace_context: None,
        request: Some(Request::Take(v1::TakeRuns { limit: 1, ..Default::default() })),
    };
    for (requests, answers) in &mut streams {
        requests.send(take(1)).await.unwrap();
        assert_eq!(soon(answers.message()).await.unwrap().unwrap().id, 1);
    }
    files.write("access.toml", &bob.entry);
    let (_, answers) = &mut streams[0];
    let end = soon(answers.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated);
    let (requests, answers) = &mut streams[1];
    requests.send(take(2)).await.unwrap();
    assert_eq!(soon(answers.message()).await.unwrap().unwrap().id, 2, "Bob's goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_a_worker_of_the_sdk_work_with_a_token() {
    let grants = [
        "role = \"client\"\nnamespaces = [\"default\"]",
        "role = \"worker\"\nnamespaces = [\"default\"]\nqueues = [\"default\"]",
    ];
    let (files, app) = (Files::new(), known("app", &grants));
    let access = files.write("access.toml", &app.entry);
    let server = serve(ServerConfig { access_file: Some(access), ..config() }).await;
    let mut options = GrpcOptions::default();
    options.token = Some(Token::from_file(files.write("token", format!("{}\n", app.token))).unwrap());
    let client = Client::connect_with(server.url(), &options).await.unwrap();
    let greet = |ctx: Context, name: String| async move {
        let greeting = ctx.step("compose", || async { Ok(format!("Hello, {name}!")) }).await?;
        ctx.step("deliver", || async { Ok(greeting) }).await
    };
    let worker = Worker::builder(client.clone()).queue("default").register("greet", greet).build().unwrap();
    let worker = tokio::spawn(worker.run());
    let run = client.start(Start::workflow("greet").input("world").unwrap()).await.unwrap();
    assert_eq!(soon(run.result::<String>()).await.unwrap(), "Hello, world!");
    worker.abort();

    let stranger = Client::over(std::sync::Arc::new(
        Grpc::connect(&server.url(), &GrpcOptions::default()).await.unwrap(),
    ));
    let error = stranger.queue_depths().await.unwrap_err().to_string();
    assert!(error.contains("credentials"), "{error}");
    let worker = Worker::builder(stranger).queue("default").register("greet", greet).build().unwrap();
    let error = soon(worker.run()).await.unwrap_err().to_string();
    assert!(error.contains("credentials"), "{error}");
}
