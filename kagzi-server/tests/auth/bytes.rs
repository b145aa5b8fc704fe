//! What one principal may hold in the server's memory by requests that are half sent and answers that are not read: spoken
//! by hand over HTTP/2, since no client of gRPC does either.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use kagzi_proto::v1;
use kagzi_server::{LoadLimits, ServerConfig, ServerHandle};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::codegen::http::{HeaderMap, Request};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::*;

const MIB: usize = 1024 * 1024;

/// What is charged for a call that is there, be nothing of it sent.
const CALL_BYTES: usize = 16 * 1024;

/// A server that holds 8 MiB, of which one principal may hold 4.
async fn server(files: &Files, principals: &[&Known]) -> ServerHandle {
    let entries: Vec<&str> = principals.iter().map(|known| known.entry.as_str()).collect();
    let mut config = ServerConfig {
        access_file: Some(files.write("access.toml", entries.concat())),
        http_listen: Some("127.0.0.1:0".to_owned()),
        max_message_bytes: 2 * MIB,
        load: LoadLimits { max_bytes_in_flight: 8 * MIB, ..LoadLimits::default() },
        ..config()
    };
    config.rules.max_payload_bytes = MIB / 4;
    serve(config).await
}

async fn shown(server: &ServerHandle, series: &str) -> usize {
    let page = kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{series} in {page}")).parse().unwrap()
}

/// Waits until the server holds so many bytes.
async fn until_held(server: &ServerHandle, enough: impl Fn(usize) -> bool) {
    soon(async { while !enough(shown(server, "kagzi_bytes_in_flight").await) {} }).await;
}

/// A connection whose frames are made here.
struct Wire {
    requests: SendRequest<Bytes>,
    token: String,
    /// Opens the windows of answers.
    open: Option<oneshot::Sender<()>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// One whose answers have windows of so many bytes, until [`open`](Self::open).
    async fn of(server: &ServerHandle, token: &str, window: u32) -> Self {
        let stream = TcpStream::connect(server.local_addr()).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 30);
        let (requests, mut connection) = builder.handshake(stream).await.unwrap();
        let (open, opened) = oneshot::channel();
        let connection = tokio::spawn(async move {
            tokio::select! {
                ended = &mut connection => return drop(ended),
                opened = opened => if opened.is_err() { return },
            }
            connection.set_initial_window_size(1 << 20).unwrap();
            connection.await.ok();
        });
        Self { requests, token: token.to_owned(), open: Some(open), connection }
    }

    async fn begin(&mut self, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        self.begin_at(&format!("/kagzi.v1.{path}")).await
    }

    async fn begin_at(&mut self, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("http://kagzi{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", self.token))
            .body(())
            .unwrap();
        let mut requests = self.requests.clone().ready().await.unwrap();
        requests.send_request(request, false).unwrap()
    }

    async fn call(&mut self, path: &str, message: &impl prost::Message) -> ResponseFuture {
        let (answer, mut body) = self.begin(path).await;
        body.send_data(framed(message), true).unwrap();
        answer
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn framed(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat().into()
}

/// The status of an answer that has no body.
fn status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

#[track_caller]
fn assert_refused(refused: &Status) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.metadata["limit"].as_str()),
        ("LIMIT_REACHED", "max_bytes_in_flight")
    );
    assert!(!refused.get_details_retry_info().unwrap().retry_delay.unwrap().is_zero());
}

const CLIENT: &str = "role = \"client\"\nnamespaces = [\"*\"]";
const WORKER: &str = "role = \"worker\"\nnamespaces = [\"*\"]\nqueues = [\"q\"]";

#[tokio::test]
async fn half_sent_calls_are_held_up_to_a_share_be_they_allowed_or_not_and_others_find_room() {
    let files = Files::new();
    let (ada, bob) = (known("ada", &[CLIENT]), known("bob", &[CLIENT]));
    let server = server(&files, &[&ada, &bob]).await;
    let mut by_bob = Caller::with_token(&server, &bob.token).await;
    for path in ["WorkflowService/StartWorkflow", "WorkflowService/CancelWorkflow"] {
        let refused_before = shown(&server, "kagzi_refusals_total{reason=\"max_bytes_in_flight\"}").await;
        let mut wire = Wire::of(&server, &ada.token, 65_535).await;
        let (mut held, mut refused) = (Vec::new(), Vec::new());
        for _ in 0..12 {
            let (answer, mut body) = wire.begin(path).await;
            let mut half = vec![0; MIB];
            half[..5].copy_from_slice(&[0, 0, 0x10, 0, 0]);
            body.reserve_capacity(half.len());
            body.send_data(half.into(), false).unwrap();
            held.push((answer, body));
        }
        // What is refused leaves room for the others: three fit, whichever they are.
        soon(async {
            while refused.len() < 8 {
                for at in (0..held.len()).rev() {
                    let answer = futures::FutureExt::now_or_never(&mut held[at].0);
                    if let Some(answer) = answer {
                        refused.push(answer.unwrap());
                        drop(held.swap_remove(at));
                    }
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        for answer in &refused {
            assert_refused(&status(answer.headers()).unwrap());
        }
        until_held(&server, |bytes| bytes > 2 * MIB).await;
        assert!(shown(&server, "kagzi_bytes_in_flight").await <= 4 * MIB);
        let refused_now = shown(&server, "kagzi_refusals_total{reason=\"max_bytes_in_flight\"}").await;
        assert!(refused_now - refused_before >= refused.len(), "{path}");
        by_bob.workflows.start_workflow(start("default", "q", "t")).await.unwrap();
        drop((held, wire));
        until_held(&server, |bytes| bytes == 0).await;
    }
    server.shutdown().await.unwrap();
}

/// Asks for a run by as many calls; gives the answers that were not refused, unread, and how many were.
async fn unread(wire: &mut Wire, get: &v1::GetWorkflowRequest, calls: usize) -> (Vec<RecvStream>, usize) {
    let mut answers = Vec::new();
    for _ in 0..calls {
        let answer = wire.call("WorkflowService/GetWorkflow", get).await;
        answers.push(soon(answer).await.unwrap());
    }
    let (mut open, mut refused) = (Vec::new(), 0);
    for answer in answers {
        match status(answer.headers()) {
            // Its question was refused.
            Some(status) => {
                assert_refused(&status);
                refused += 1;
            }
            None => open.push(answer.into_body()),
        }
    }
    (open, refused)
}

#[tokio::test]
async fn answers_that_are_not_read_are_held_up_to_a_share_until_they_are_read_or_given_up() {
    const PAYLOAD: usize = 200_000;
    let files = Files::new();
    let (ada, bob) = (known("ada", &[CLIENT]), known("bob", &[CLIENT]));
    let server = server(&files, &[&ada, &bob]).await;
    let mut by_ada = Caller::with_token(&server, &ada.token).await;
    let mut by_bob = Caller::with_token(&server, &bob.token).await;
    let input = v1::Payload { data: vec![7; PAYLOAD].into(), ..Default::default() };
    let start = v1::StartWorkflowRequest { input: Some(input), ..start("default", "q", "t") };
    let run_id = by_ada.workflows.start_workflow(start.clone()).await.unwrap().into_inner().run_id;
    let get = v1::GetWorkflowRequest { namespace: "default".to_owned(), run_id, wait: None };
    until_held(&server, |bytes| bytes == 0).await;

    let mut wire = Wire::of(&server, &ada.token, 0).await;
    let (open, refused) = unread(&mut wire, &get, 40).await;
    until_held(&server, |bytes| bytes > 17 * PAYLOAD).await;
    assert!(shown(&server, "kagzi_bytes_in_flight").await <= 4 * MIB);
    // A question, small as it is, finds room for as long as no answer has taken the last of it.
    assert!(refused < 40, "{refused}");
    by_bob.workflows.get_workflow(get.clone()).await.unwrap();
    let too_much = by_ada.workflows.start_workflow(start.clone()).await.unwrap_err();
    assert_refused(&too_much);

    wire.open.take().unwrap().send(()).unwrap();
    let (mut whole, mut instead) = (0, 0);
    for mut body in open {
        let mut bytes = 0;
        while let Some(data) = soon(body.data()).await {
            let data = data.unwrap();
            bytes += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = soon(body.trailers()).await.unwrap().unwrap();
        match status(&trailers).unwrap() {
            ok if ok.code() == Code::Ok => {
                assert!(bytes > PAYLOAD);
                whole += 1;
            }
            refused => {
                assert_eq!(bytes, 0);
                assert_refused(&refused);
                instead += 1;
            }
        }
    }
    // As many as its share holds beside what calls cost by being there.
    assert!((18..=20).contains(&whole), "{whole}");
    assert_eq!(whole + instead + refused, 40);
    until_held(&server, |bytes| bytes == 0).await;
    by_ada.workflows.get_workflow(get.clone()).await.unwrap();
    // Given up, they hold nothing either.
    let mut wire = Wire::of(&server, &ada.token, 0).await;
    let (open, _) = unread(&mut wire, &get, 10).await;
    until_held(&server, |bytes| bytes > 10 * PAYLOAD).await;
    drop(open);
    until_held(&server, |bytes| bytes == 0).await;
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_a_session_brings_is_held_until_it_is_done_and_a_half_message_until_it_ends() {
    let files = Files::new();
    let ada = known("ada", &[WORKER]);
    let server = server(&files, &[&ada]).await;
    let mut wire = Wire::of(&server, &ada.token, 1 << 20).await;
    let (answer, mut body) = wire.begin("WorkerService/StreamWork").await;
    let open = v1::stream_work_request::Request::Open(v1::OpenWork {
        namespace: "default".to_owned(),
        queues: vec!["q".to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    });
    let message = |request| v1::StreamWorkRequest { id: 1, trace_context: None, request: Some(request) };
    body.send_data(framed(&message(open)), false).unwrap();
    let mut answers = soon(answer).await.unwrap().into_body();
    // For the name of its queue.
    let named = 40 + "q".len();
    let mut long = 0;
    // Of a lease that nobody has: refused and held no more, but for the memory that the long one was read into.
    for bytes in [MIB, 0] {
        let payload = v1::Payload { data: vec![0; bytes].into(), ..Default::default() };
        let complete = v1::CompleteStepRequest { output: Some(payload), ..Default::default() };
        let sent = framed(&message(v1::stream_work_request::Request::CompleteStep(complete)));
        let size = sent.len();
        body.send_data(sent, false).unwrap();
        soon(answers.data()).await.unwrap().unwrap();
        long = size.max(long);
        until_held(&server, |bytes| bytes == long + named + CALL_BYTES).await;
    }
    // Of another the header and a byte.
    body.send_data([0, 0, 0x10, 0, 0, 0][..].to_vec().into(), false).unwrap();
    until_held(&server, |bytes| bytes == MIB + 5 + long + named + CALL_BYTES).await;
    body.send_reset(h2::Reason::CANCEL);
    until_held(&server, |bytes| bytes == 0).await;
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn strangers_who_send_no_more_than_headers_are_few_and_go_soon() {
    let files = Files::new();
    let ada = known("ada", &[CLIENT]);
    let server = server(&files, &[&ada]).await;
    let mut wire = Wire::of(&server, "nobody's", 65_535).await;
    let mut asking = Vec::new();
    for _ in 0..8 {
        asking.push(wire.begin_at("/grpc.health.v1.Health/Check").await);
    }
    // Of one address there is room for four, and no more than a few seconds for these.
    let (mut refused, mut late) = (0, 0);
    for (answer, _body) in asking {
        let answer = soon(answer).await.unwrap();
        let status = status(answer.headers()).unwrap();
        if status.code() == Code::DeadlineExceeded {
            late += 1;
        } else {
            assert_refused(&status);
            refused += 1;
        }
    }
    assert_eq!((refused, late), (4, 4));
    until_held(&server, |bytes| bytes == 0).await;
    let mut by_ada = Caller::with_token(&server, &ada.token).await;
    by_ada.workflows.start_workflow(start("default", "q", "t")).await.unwrap();
    server.shutdown().await.unwrap();
}
