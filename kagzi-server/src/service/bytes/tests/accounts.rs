//! What is there for whom when there is little left: for strangers, for those who hold little, for those who finish work.

use kagzi_core::{Labels, Namespace, Payload, QueueName, StartRun, WorkflowType};
use tonic::codegen::http::{HeaderName, HeaderValue};

use super::*;
use crate::service::told::Origin;
use crate::transport::Peer;

const A_WRITE: &str = "/kagzi.v1.WorkerService/CompleteStep";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A call whose body goes on, and what came of it by now.
struct Begun {
    sending: Sending,
    calling: BoxFuture<'static, Response<Body>>,
    answer: Option<Response<Body>>,
}

fn begin(services: &Services, mut request: Request<Body>, bytes: usize) -> Begun {
    let (sending, coming) = body();
    send(&sending, message(bytes));
    *request.body_mut() = coming;
    let services = services.clone();
    let mut calling = async move { call(&services, request, Some(0)).await }.boxed();
    let answer = (&mut calling).now_or_never();
    Begun { sending, calling, answer }
}

#[tokio::test(start_paused = true)]
async fn calls_of_which_there_are_headers_alone_are_held_up_to_the_share() {
    let services = services();
    let mut begun = Vec::new();
    let refused = loop {
        let call = begin(&services, request("ada", A_CALL, Body::empty()), 0);
        if let Some(answer) = &call.answer {
            break refusal(answer);
        }
        begun.push(call);
    };
    assert_refused(&refused, "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert_eq!((begun.len(), held(&services)), (MOST / 2 / CALL_BYTES, begun.len() * CALL_BYTES));
    assert!(begin(&services, request("bob", A_CALL, Body::empty()), 0).answer.is_none());
    drop(begun);
    assert_eq!(held(&services), 0);
}

#[tokio::test(start_paused = true)]
async fn headers_are_charged_for_what_they_hold_here_and_not_for_what_they_are_on_the_wire() {
    let services = services();
    let with = |headers: usize| {
        let mut request = request("ada", A_CALL, Body::empty());
        for number in 0..headers {
            let name = HeaderName::try_from(format!("x{number:02x}")).unwrap();
            request.headers_mut().insert(name, HeaderValue::from_static(""));
        }
        begin(&services, request, 0)
    };
    let usual = with(20);
    assert_eq!(held(&services), CALL_BYTES);
    let many = with(200);
    assert_eq!(held(&services), 2 * CALL_BYTES + 200 * (256 + 3) - 6 * 1024);
    drop((usual, many));
    assert_eq!(held(&services), 0);
}

#[tokio::test(start_paused = true)]
async fn strangers_share_a_small_account_and_have_little_time() {
    let services = services();
    let ask = |address: u8| {
        let mut request = Request::builder().uri(CHECK).body(Body::empty()).unwrap();
        let address = Some(([192, 0, 2, address], 1).into());
        request.extensions_mut().insert(Peer::stranger(address));
        begin(&services, request, 0)
    };
    // Four of one address, and nineteen in all: of 10,000,000 bytes a thirty-second part.
    let mut asking: Vec<Begun> = (0..4).map(|_| ask(1)).collect();
    assert!(asking.iter().all(|asked| asked.answer.is_none()));
    let refused = refusal(&ask(1).answer.unwrap());
    assert_refused(&refused, "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert_counted(&services, "max_bytes_in_flight", 1);
    asking.extend((0..15).map(|at| ask(2 + at / 4)));
    assert!(asking.iter().all(|asked| asked.answer.is_none()));
    assert!(ask(9).answer.is_some());
    assert_eq!(held(&services), 19 * CALL_BYTES);
    let before = Instant::now();
    for asked in asking {
        assert_eq!(refusal(&asked.calling.await).code(), Code::DeadlineExceeded);
        drop(asked.sending);
    }
    assert_eq!(before.elapsed(), Duration::from_secs(2));
    assert_eq!(held(&services), 0);
    assert!(ask(9).answer.is_none());
}

#[tokio::test(start_paused = true)]
async fn however_much_others_hold_there_is_room_for_those_who_hold_little() {
    let services = services_of(&ServerConfig {
        access_file: Some(PathBuf::from("access.toml")),
        max_message_bytes: 4_000_000,
        namespaces: ["loud", "noisy", "quiet"].map(|name| name.parse().unwrap()).into(),
        load: LoadLimits { max_bytes_in_flight: MOST, ..LoadLimits::default() },
        ..ServerConfig::default()
    });
    let of = |who: &str, namespace: &str, path| {
        let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let grant = format!("role = 'worker'\nnamespaces = ['{namespace}']");
        request.extensions_mut().insert(Caller::granted(who, &grant));
        request
    };
    let fill = |who: &str, namespace: &str| {
        let mut begun = Vec::new();
        loop {
            let call = begin(&services, of(who, namespace, A_CALL), 100_000);
            if call.answer.is_some() {
                return begun;
            }
            begun.push(call);
        }
    };
    // Two principals of one tenant have its share, two of another what is left but what is kept.
    let mut filled = [fill("a", "noisy"), fill("b", "noisy")];
    let of_a_tenant = held(&services);
    assert!((MOST / 2 - 120_000..=MOST / 2).contains(&of_a_tenant), "{of_a_tenant}");
    assert!(filled[1].len() < 2, "a took it");
    filled[1].extend(fill("c", "loud"));
    filled[1].extend(fill("d", "loud"));
    let filled_up = held(&services);
    assert!(filled_up > MOST / 8 * 7 - 120_000, "{filled_up}");
    // Heartbeats and the ends of steps of a quiet one.
    for bytes in [100, 250_000] {
        let done = begin(&services, of("e", "quiet", A_WRITE), bytes);
        assert!(done.answer.is_none());
        drop(done.sending);
        assert!(Status::from_header_map(done.calling.await.headers()).is_none());
    }
    let mut session = session(&services).await;
    send(&session.sending, message(250_000));
    let come = session.body.frame().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(come.into_data().unwrap().len(), 250_000);
    drop((filled, session));
    assert_eq!(held(&services), 0);
}

#[tokio::test(start_paused = true)]
async fn writes_of_workers_wait_for_room_for_a_time_and_so_many_at_once() {
    let services = services();
    let full = begin(&services, request("ada", A_CALL, Body::empty()), MOST / 2 - 2 * CALL_BYTES);
    assert!(full.answer.is_none());
    let write = || begin(&services, request("ada", A_WRITE, Body::empty()), 50_000);
    let (waits, before) = (write(), Instant::now());
    assert!(waits.answer.is_none());
    let refused = waits.calling.await;
    assert!(before.elapsed() >= ROOM_WITHIN && before.elapsed() < ROOM_WITHIN + Duration::from_secs(1));
    assert_refused(&refusal(&refused), "LIMIT_REACHED", Some("max_bytes_in_flight"));
    assert_counted(&services, "max_bytes_in_flight", 1);
    drop(refused);
    // The first of these has paid for being there, the others not even that.
    let waiting: Vec<Begun> = (0..128).map(|_| write()).collect();
    assert!(waiting.iter().all(|write| write.answer.is_none()));
    assert_eq!(held(&services), MOST / 2);
    assert!(write().answer.is_some(), "one too many waits");
    assert_shown(&services, "kagzi_requests_waiting{for=\"room\"} 128");
    drop((waiting, full));
    assert_shown(&services, "kagzi_requests_waiting{for=\"room\"} 0");
    assert_eq!(held(&services), 0);
    // Room that comes in time.
    let full = begin(&services, request("ada", A_CALL, Body::empty()), MOST / 2 - 2 * CALL_BYTES);
    let (waits, other) = (write(), session(&services).await);
    let mut session = other;
    send(&session.sending, message(50_000));
    session.read().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((full, waits.sending));
    assert!(Status::from_header_map(waits.calling.await.headers()).is_none());
    assert_eq!(session.body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 50_000);
}

#[tokio::test]
async fn what_a_batch_of_starts_holds_beside_its_bytes_is_charged_until_it_is_done() {
    let services = services();
    let origin = Origin::of(Caller::named("ada"), None);
    let labels = Labels::new([("key".to_owned(), "value".to_owned())].into()).unwrap();
    let names = (Namespace::new("default").unwrap(), QueueName::new("q").unwrap());
    let start = StartRun::new(names.0, names.1, WorkflowType::new("t").unwrap(), Payload::raw(Vec::new()));
    let batch = vec![StartRun { labels, ..start }; 1000];
    let during = services.reply(&origin, "StartWorkflows", Ok(batch), |batch| {
        let services = services.clone();
        async move { Ok::<_, kagzi_core::StoreError>((batch.len(), held(&services))) }
    });
    let (starts, during) = during.await.unwrap();
    assert!(during >= starts * (size_of::<StartRun>() + 2 * size_of::<String>()), "{during}");
    assert_eq!(held(&services), 0);
}
