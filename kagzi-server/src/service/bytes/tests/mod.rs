//! What is charged, to whom, and until when. Time is tokio's, paused.

mod accounts;

use std::convert::Infallible;
use std::path::PathBuf;

use bytes::Bytes;
use futures::FutureExt as _;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use kagzi_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::service_fn;

use super::*;
use crate::config::{LoadLimits, ServerConfig};
use crate::service::load::{CALL_BYTES, READING_BYTES};
use crate::service::tests::services_of;

const WITHIN: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_hours(1);

/// All that may be held; one principal may hold half of it.
const MOST: usize = 10_000_000;

const A_CALL: &str = "/kagzi.v1.WorkflowService/StartWorkflow";
/// What is charged for a call that was read.
const READ_BYTES: usize = CALL_BYTES - READING_BYTES;

const A_SESSION: &str = "/kagzi.v1.WorkerService/StreamWork";

fn services() -> Services {
    services_of(&ServerConfig {
        access_file: Some(PathBuf::from("access.toml")),
        max_message_bytes: 4_000_000,
        load: LoadLimits { max_bytes_in_flight: MOST, ..LoadLimits::default() },
        ..ServerConfig::default()
    })
}

/// How many bytes are held, as everybody can see.
fn held(services: &Services) -> usize {
    let text = services.metrics().text().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("kagzi_bytes_in_flight ")).unwrap();
    line.parse().unwrap()
}

#[track_caller]
fn assert_counted(services: &Services, reason: &str, refusals: u32) {
    assert_shown(services, &format!("kagzi_refusals_total{{reason=\"{reason}\"}} {refusals}"));
}

#[track_caller]
fn assert_shown(services: &Services, line: &str) {
    let text = services.metrics().text().unwrap();
    assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
}

/// The client's end of a body.
type Sending = mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>;

fn body() -> (Sending, Body) {
    let (sending, mut coming) = mpsc::unbounded_channel();
    let frames = futures::stream::poll_fn(move |context| coming.poll_recv(context));
    (sending, Body::new(StreamBody::new(frames)))
}

fn send(sending: &Sending, data: impl Into<Bytes>) {
    sending.send(Ok(Frame::data(data.into()))).unwrap();
}

fn request(who: &str, path: &str, body: Body) -> Request<Body> {
    let mut request = Request::builder().uri(path).body(body).unwrap();
    request.extensions_mut().insert(Caller::named(who));
    request
}

/// Reads a body to its end, as a call does.
async fn read(mut body: Body) -> Result<usize, Status> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.into_data().map_or(0, |data| data.len());
    }
    Ok(bytes)
}

/// Calls something that reads its request and then goes on until it is told, or for ever; gives how the reading ended.
async fn call(services: &Services, request: Request<Body>, answer: Option<usize>) -> Response<Body> {
    let inner = service_fn(move |request: Request<Body>| async move {
        if let Err(status) = read(request.into_body()).await {
            return Ok::<_, Infallible>(status.into_http());
        }
        match answer {
            Some(bytes) => {
                Ok(Response::new(Body::new(http_body_util::Full::new(Bytes::from(vec![7; bytes])))))
            }
            None => std::future::pending().await,
        }
    });
    let layer = BytesLayer { services: services.clone(), within: WITHIN };
    layer.layer(inner).call(request).await.unwrap()
}

#[track_caller]
fn assert_refused(status: &Status, reason: &str, limit: Option<&str>) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata.get("limit").map(String::as_str)), (reason, limit));
    assert!(!status.get_details_retry_info().unwrap().retry_delay.unwrap().is_zero());
}

fn refusal(answer: &Response<Body>) -> Status {
    Status::from_header_map(answer.headers()).unwrap()
}

/// A message of so many bytes, header and all; of fewer than a header has, nothing.
fn message(bytes: usize) -> Vec<u8> {
    if bytes < 5 {
        return Vec::new();
    }
    let length = u32::try_from(bytes - 5).unwrap().to_be_bytes();
    [&[0], &length[..], &vec![0; bytes - 5]].concat()
}

#[tokio::test(start_paused = true)]
async fn half_sent_requests_are_held_up_to_the_share_of_their_principal_and_others_find_room() {
    let services = services();
    let mut open = Vec::new();
    let mut begin = |who: &'static str, bytes: usize| {
        let (sending, body) = body();
        // The reader takes memory for all of it as soon as it knows how long it is.
        send(&sending, message(bytes)[..7].to_vec());
        let services = services.clone();
        let mut calling = async move { call(&services, request(who, A_CALL, body), Some(0)).await }.boxed();
        let answer = (&mut calling).now_or_never();
        open.push((sending, calling));
        answer
    };
    for _ in 0..2 {
        assert!(begin("ada", 2_000_000).is_none());
    }
    let refused = refusal(&begin("ada", 2_000_000).unwrap());
    assert_refused(&refused, "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert_eq!(held(&services), 4_000_000 + 2 * CALL_BYTES);
    assert!(begin("bob", 4_000_000).is_none());
    assert!(begin("cy", 600_000).is_none());
    assert_refused(&refusal(&begin("cy", 100_000).unwrap()), "OVERLOADED", None);
    assert_counted(&services, "max_bytes_in_flight", 1);
    assert_counted(&services, "overloaded", 1);
    // What ada has left is worth nothing to her while the others have taken all but what is kept.
    assert_refused(&refusal(&begin("ada", 100_000).unwrap()), "OVERLOADED", None);
    // That is for those who hold little, as long as they do.
    assert!(begin("dan", 200_000).is_none());
    assert_refused(&refusal(&begin("dan", 100_000).unwrap()), "OVERLOADED", None);
    assert!(begin("dan", 50_000).is_none());
    drop(open);
    assert_eq!(held(&services), 0);
}

#[tokio::test(start_paused = true)]
async fn the_largest_message_finds_room_however_small_the_share() {
    let limits = LoadLimits { max_bytes_in_flight: MOST, principal_share: 0.01, ..LoadLimits::default() };
    let config = ServerConfig { max_message_bytes: 4_000_000, load: limits, ..ServerConfig::default() };
    let services = services_of(&ServerConfig { access_file: Some(PathBuf::from("access.toml")), ..config });
    for (bytes, fits) in [(4_000_005, true), (4_000_006, false)] {
        let (sending, body) = body();
        send(&sending, message(bytes));
        drop(sending);
        let answer = call(&services, request("ada", A_CALL, body), Some(0)).await;
        assert_eq!(Status::from_header_map(answer.headers()).is_none(), fits, "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_come_whole_in_time_is_refused_and_holds_nothing_more() {
    let services = services();
    let (sending, body) = body();
    send(&sending, vec![0; 1000]);
    let before = Instant::now();
    let trickle = async {
        loop {
            tokio::time::sleep(WITHIN / 7).await;
            if sending.send(Ok(Frame::data(Bytes::from_static(b"x")))).is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let answer = tokio::select! {
        answer = call(&services, request("ada", A_CALL, body), Some(0)) => answer,
        () = trickle => unreachable!(),
    };
    assert_eq!(before.elapsed(), WITHIN);
    let refused = refusal(&answer);
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert_eq!(refused.get_details_error_info().unwrap().reason, "REQUEST_TIMEOUT");
    assert!(refused.message().contains("request_body_timeout"), "{refused:?}");
    assert_counted(&services, "request_body_timeout", 1);
    drop(answer);
    assert_eq!(held(&services), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_request_brought_is_held_while_it_waits_and_no_longer() {
    let services = services();
    let whole = |who: &'static str, answer| {
        let (sending, body) = body();
        send(&sending, vec![0; 3_000_000]);
        let services = services.clone();
        async move { call(&services, request(who, A_CALL, body), answer).await }.boxed()
    };
    let mut waiting = whole("ada", None);
    assert!((&mut waiting).now_or_never().is_none());
    tokio::time::sleep(HOUR).await;
    assert!((&mut waiting).now_or_never().is_none(), "its time ended when it had come");
    assert_eq!(held(&services), 3_000_000 + READ_BYTES);
    let refused = refusal(&whole("ada", Some(0)).await);
    assert_refused(&refused, "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert!(Status::from_header_map(whole("bob", Some(0)).await.headers()).is_none());
    // Its caller goes.
    drop(waiting);
    assert_eq!(held(&services), 0);
    // Done, it makes room for its own answer.
    let answer = whole("ada", Some(4_000_000)).await;
    assert_eq!(read(answer.into_body()).await.unwrap(), 4_000_000);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_held_until_the_transport_drops_it_and_beyond_the_share_it_is_refused() {
    let services = services();
    let answer = async |bytes| {
        let answer = call(&services, request("ada", A_CALL, Body::empty()), Some(bytes)).await;
        answer.into_body()
    };
    let (mut first, mut second) = (answer(3_000_000).await, answer(3_000_000).await);
    let taken = first.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((taken.len(), held(&services)), (3_000_000, 3_000_000 + 2 * READ_BYTES));
    // However it is cut, and though the body is gone.
    drop(first);
    let rest = taken.slice(2_999_999..);
    drop(taken);
    assert_eq!(held(&services), 3_000_000 + 2 * READ_BYTES);
    let instead = second.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_refused(&Status::from_header_map(&instead).unwrap(), "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert!(second.is_end_stream() && second.frame().await.is_none());
    assert_counted(&services, "max_bytes_in_flight", 1);
    // One that says hardly more than that something was done gets through, and is charged for.
    let mut short = Vec::new();
    for _ in 0..30 {
        let mut body = answer(1024).await;
        short.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    drop(second);
    assert_eq!(held(&services), 3_000_000 + 30 * 1024 + 31 * READ_BYTES);
    drop((short, rest));
    assert_eq!(held(&services), 0);
    assert_eq!(read(answer(3_000_000).await).await.unwrap(), 3_000_000);
}

/// A session that the layer has let in.
struct Session {
    sending: Sending,
    body: Body,
    held: RequestBytes,
}

async fn session(services: &Services) -> Session {
    let (sending, body) = body();
    let (let_in, mut coming) = mpsc::unbounded_channel();
    let inner = service_fn(move |request: Request<Body>| {
        let_in.send(request).unwrap();
        async { Ok::<_, Infallible>(Response::new(Body::empty())) }
    });
    let layer = BytesLayer { services: services.clone(), within: WITHIN };
    layer.layer(inner).call(request("ada", A_SESSION, body)).await.unwrap();
    let (parts, body) = coming.recv().await.unwrap().into_parts();
    Session { sending, body, held: parts.extensions.get::<RequestBytes>().unwrap().clone() }
}

impl Session {
    /// Reads all that has come.
    fn read(&mut self) -> Result<(), Status> {
        while let Some(Some(frame)) = self.body.frame().now_or_never() {
            frame?;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn each_message_of_a_session_is_held_until_it_is_done_and_one_that_is_not_whole_too() {
    let services = services();
    let mut session = session(&services).await;
    let all = [message(1_000_000), message(5), message(2_000_000)].concat();
    for piece in all[..2_500_000].chunks(99_999) {
        send(&session.sending, piece.to_vec());
    }
    session.read().unwrap();
    let (first, second) = (session.held.take(), session.held.take());
    assert_eq!(held(&services), 3_000_005 + CALL_BYTES);
    // The memory that a long one was read into is there until others have been read that fill it.
    drop(first);
    assert_eq!(held(&services), 3_000_005 + CALL_BYTES);
    send(&session.sending, all[2_500_000..].to_vec());
    session.read().unwrap();
    drop((second, session.held.take()));
    assert_eq!(held(&services), 2_000_000 + CALL_BYTES);
    for left in [2_000_000, 2_000_000, 2_000_000, 2_000_000, 0] {
        send(&session.sending, message(15_000));
        session.read().unwrap();
        drop(session.held.take());
        assert_eq!(held(&services), left + CALL_BYTES);
    }
    // One that is beyond what is left waits, and ends the stream when its time is over.
    send(&session.sending, message(4_000_000));
    session.read().unwrap();
    let large = session.held.take();
    send(&session.sending, message(1_000_000)[..5].to_vec());
    session.read().unwrap();
    let before = Instant::now();
    tokio::time::sleep(WITHIN / 3).await;
    send(&session.sending, vec![0; 1]);
    session.read().unwrap();
    let refused = session.body.frame().await.unwrap().unwrap_err();
    assert_refused(&refused, "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert!(before.elapsed() >= WITHIN && before.elapsed() < WITHIN + Duration::from_secs(1));
    drop((session, large));
    assert_eq!(held(&services), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_may_be_silent_between_messages_and_not_within_one() {
    let services = services();
    let mut session = session(&services).await;
    send(&session.sending, message(100));
    session.read().unwrap();
    tokio::time::sleep(HOUR).await;
    session.read().unwrap();
    let message = message(100);
    let (half, rest) = message.split_at(50);
    send(&session.sending, half.to_vec());
    session.read().unwrap();
    tokio::time::sleep(WITHIN / 2).await;
    send(&session.sending, rest.to_vec());
    session.read().unwrap();
    tokio::time::sleep(HOUR).await;
    session.read().unwrap();
    send(&session.sending, half.to_vec());
    session.read().unwrap();
    let before = Instant::now();
    let refused = session.body.frame().await.unwrap().unwrap_err();
    assert_eq!((refused.code(), before.elapsed()), (Code::DeadlineExceeded, WITHIN));
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_session_has_its_time_from_its_first_byte_however_it_trickles() {
    let services = services();
    let mut session = session(&services).await;
    send(&session.sending, message(1000)[..500].to_vec());
    session.read().unwrap();
    let before = Instant::now();
    let refused = loop {
        tokio::select! {
            biased;
            frame = session.body.frame() => if let Err(refused) = frame.unwrap() { break refused },
            () = tokio::time::sleep(WITHIN / 7) => send(&session.sending, vec![0]),
        }
    };
    assert_eq!((refused.code(), before.elapsed()), (Code::DeadlineExceeded, WITHIN));
    drop(session);
    assert_eq!(held(&services), 0);
}

#[test]
fn every_call_whose_requests_are_a_stream_is_read_as_one() {
    let mut streamed = Vec::new();
    let reflection = tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET;
    for set in [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET, reflection] {
        for file in prost_types::FileDescriptorSet::decode(set).unwrap().file {
            for service in &file.service {
                let streams = service.method.iter().filter(|method| method.client_streaming());
                let path = |name| format!("/{}.{}/{name}", file.package(), service.name());
                streamed.extend(streams.map(|method| path(method.name())));
            }
        }
    }
    streamed.sort();
    let mut known: Vec<&str> = SESSIONS.into_iter().chain(QUESTIONS).collect();
    known.sort_unstable();
    assert_eq!(streamed, known);
}
