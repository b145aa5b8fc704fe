//! JWTs: keys from a file and from a URL, rotated while the server runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kagzi_proto::v1;
use kagzi_server::{LoadLimits, RateLimit, Server, ServerConfig};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic::Code;

use crate::support::*;

/// An issuer of tokens.
pub struct Issuer {
    id: &'static str,
    key: Ed25519KeyPair,
}

impl Issuer {
    pub fn new(id: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { id, key: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap() }
    }

    fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x})
    }

    pub fn token(&self, subject: &str, lasts: Duration) -> String {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + lasts;
        let header = json!({"alg": "EdDSA", "kid": self.id}).to_string();
        let claims =
            json!({"iss": "acme", "aud": "kagzi", "sub": subject, "exp": expires.as_secs_f64()}).to_string();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

fn set(issuers: &[&Issuer]) -> String {
    json!({"keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>()}).to_string()
}

/// A worker's stream.
pub struct Stream {
    requests: tokio::sync::mpsc::Sender<v1::StreamWorkRequest>,
    answers: tonic::Streaming<v1::StreamWorkResponse>,
}

impl Stream {
    pub async fn open(caller: &mut Caller) -> Self {
        let open = v1::OpenWork {
            namespace: "default".to_owned(),
            queues: vec!["q".to_owned()],
            worker_id: "w".to_owned(),
            ..Default::default()
        };
        let (requests, incoming) = tokio::sync::mpsc::channel(1);
        requests.send(asks(v1::stream_work_request::Request::Open(open))).await.unwrap();
        let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
        let answers = caller.workers.stream_work(incoming).await.unwrap().into_inner();
        Self { requests, answers }
    }

    pub async fn must_answer(&mut self) {
        let take = v1::TakeRuns { limit: 1, ..Default::default() };
        self.requests.send(asks(v1::stream_work_request::Request::Take(take))).await.unwrap();
        soon(self.answers.message()).await.unwrap().unwrap();
    }

    /// Why the server ends it.
    pub async fn end(&mut self) -> Code {
        soon(self.answers.message()).await.unwrap_err().code()
    }
}

fn asks(request: v1::stream_work_request::Request) -> v1::StreamWorkRequest {
    v1::StreamWorkRequest { id: 0, trace_context: None, request: Some(request) }
}

const ADA: &str = "[[principal]]\nname = 'ada'\nsubjects = ['acme|ada']\n\
    [[principal.grant]]\nrole = 'worker'\nnamespaces = ['default']\n";

pub const HOUR: Duration = Duration::from_hours(1);

pub fn with_keys(files: &Files, keys: String) -> ServerConfig {
    ServerConfig {
        access_file: Some(files.write("access.toml", ADA)),
        jwt_keys: Some(keys),
        jwt_issuer: Some("acme".to_owned()),
        jwt_audience: Some("kagzi".to_owned()),
        jwt_leeway: Duration::ZERO,
        ..config()
    }
}

pub fn in_file(files: &Files, issuers: &[&Issuer]) -> String {
    files.write("keys.json", set(issuers)).display().to_string()
}

/// Keys behind a URL, and how often they were asked for.
struct KeyServer {
    url: String,
    document: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl KeyServer {
    async fn new(document: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let (document, asked) = (Arc::new(Mutex::new(document)), Arc::new(AtomicUsize::new(0)));
        let (shared, count) = (Arc::clone(&document), Arc::clone(&asked));
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if socket.read_buf(&mut request).await.unwrap() == 0 {
                        break;
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let document = shared.lock().unwrap().clone();
                let status = if document.is_empty() { "500 Down" } else { "200 OK" };
                let length = document.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{document}"
                );
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { url, document, asked }
    }

    fn publish(&self, issuers: &[&Issuer]) {
        *self.document.lock().unwrap() = set(issuers);
    }
}

#[tokio::test]
async fn a_subject_of_the_access_file_may_what_it_grants_and_an_unknown_one_is_nobody() {
    let (files, issuer, forger) = (Files::new(), Issuer::new("k"), Issuer::new("k"));
    let server = serve(with_keys(&files, in_file(&files, &[&issuer]))).await;
    let ask = async |token: String| code(Caller::with_token(&server, &token).await.ask().await);
    assert_eq!(ask(issuer.token("acme|ada", HOUR)).await, Code::Ok);
    assert_eq!(ask(issuer.token("acme|bob", HOUR)).await, Code::Unauthenticated);
    assert_eq!(ask(issuer.token("acme|ada", Duration::ZERO)).await, Code::Unauthenticated);
    assert_eq!(ask(forger.token("acme|ada", HOUR)).await, Code::Unauthenticated);
    let token = issuer.token("acme|ada", HOUR);
    let mut ada = Caller::with_token(&server, &token).await;
    for _ in 0..3 {
        let denied = ada.workflows.start_workflow(start("default", "q", "t")).await;
        assert_eq!(code(denied), Code::PermissionDenied, "she works, and starts nothing");
        assert_eq!(code(ada.ask().await), Code::Ok);
    }
}

#[tokio::test]
async fn a_subject_whom_the_access_file_does_not_name_is_counted_as_unknown() {
    let (files, issuer) = (Files::new(), Issuer::new("k"));
    let rate_auth_failures = RateLimit { per_second: 1, burst: 3 };
    let load = LoadLimits { rate_auth_failures, ..LoadLimits::default() };
    let server = serve(ServerConfig { load, ..with_keys(&files, in_file(&files, &[&issuer])) }).await;
    let mut bob = Caller::with_token(&server, &issuer.token("acme|bob", HOUR)).await;
    assert_eq!(code(bob.ask().await), Code::Unauthenticated);
    soon(async { while code(bob.ask().await) != Code::ResourceExhausted {} }).await;
    let mut ada = Caller::with_token(&server, &issuer.token("acme|ada", HOUR)).await;
    assert_eq!(code(ada.ask().await), Code::Ok);
}

#[tokio::test]
async fn a_token_that_was_seen_before_expires_all_the_same_and_so_does_its_stream() {
    let (files, issuer) = (Files::new(), Issuer::new("k"));
    let server = serve(with_keys(&files, in_file(&files, &[&issuer]))).await;
    let mut ada = Caller::with_token(&server, &issuer.token("acme|ada", Duration::from_secs(1))).await;
    assert_eq!(code(ada.ask().await), Code::Ok);
    let mut stream = Stream::open(&mut ada).await;
    assert_eq!(stream.end().await, Code::Unauthenticated);
    assert_eq!(code(ada.ask().await), Code::Unauthenticated);
}

#[tokio::test]
async fn a_stream_ends_when_the_key_of_its_token_is_taken_back_and_goes_on_when_others_are() {
    let (files, stolen, kept, other) = (Files::new(), Issuer::new("a"), Issuer::new("b"), Issuer::new("c"));
    let server = serve(with_keys(&files, in_file(&files, &[&stolen, &kept, &other]))).await;
    let mut streams = Vec::new();
    for issuer in [&stolen, &kept] {
        let mut ada = Caller::with_token(&server, &issuer.token("acme|ada", HOUR)).await;
        streams.push(Stream::open(&mut ada).await);
    }
    // Its name is no matter: the key is the same.
    in_file(&files, &[&stolen, &Issuer { id: "renamed", key: kept.key }]);
    let mut by_other = Caller::with_token(&server, &other.token("acme|ada", HOUR)).await;
    soon(async { while code(by_other.ask().await) != Code::Unauthenticated {} }).await;
    for stream in &mut streams {
        stream.must_answer().await;
    }
    in_file(&files, &[&other]);
    for stream in &mut streams {
        assert_eq!(stream.end().await, Code::Unauthenticated);
    }
}

#[tokio::test]
async fn keys_in_a_file_are_exchanged_without_a_restart_and_a_broken_file_changes_nothing() {
    let (files, old, new) = (Files::new(), Issuer::new("old"), Issuer::new("new"));
    let server = serve(with_keys(&files, in_file(&files, &[&old]))).await;
    let mut by_old = Caller::with_token(&server, &old.token("acme|ada", HOUR)).await;
    let mut by_new = Caller::with_token(&server, &new.token("acme|ada", HOUR)).await;
    assert_eq!((code(by_old.ask().await), code(by_new.ask().await)), (Code::Ok, Code::Unauthenticated));
    files.write("keys.json", "{}");
    for _ in 0..20 {
        assert_eq!(code(by_old.ask().await), Code::Ok);
    }
    in_file(&files, &[&new]);
    soon(async { while code(by_new.ask().await) != Code::Ok {} }).await;
    assert_eq!(code(by_old.ask().await), Code::Unauthenticated, "a token that was seen before, too");
}

#[tokio::test]
async fn a_set_that_was_emptied_takes_all_keys_back_and_an_empty_file_is_a_mistake_that_shows() {
    let (files, issuer) = (Files::new(), Issuer::new("k"));
    let with_http = ServerConfig {
        http_listen: Some("127.0.0.1:0".to_owned()),
        ..with_keys(&files, in_file(&files, &[&issuer]))
    };
    let server = serve(with_http).await;
    let mut ada = Caller::with_token(&server, &issuer.token("acme|ada", HOUR)).await;
    assert_eq!(code(ada.ask().await), Code::Ok);
    let page = async || kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    let shows = async |line: &str| soon(async { while !page().await.contains(line) {} }).await;
    shows("kagzi_jwt_keys{algorithm=\"EdDSA\"} 1\n").await;
    shows("kagzi_file_unusable{file=\"jwt_keys\"} 0\n").await;

    // Nobody says by it that there are no keys: somebody was cut off while writing.
    files.write("keys.json", "");
    shows("kagzi_file_unusable{file=\"jwt_keys\"} 1\n").await;
    assert_eq!(code(ada.ask().await), Code::Ok);
    assert!(page().await.contains("kagzi_jwt_keys{algorithm=\"EdDSA\"} 1\n"));

    files.write("keys.json", set(&[]));
    soon(async { while code(ada.ask().await) != Code::Unauthenticated {} }).await;
    shows("kagzi_jwt_keys{algorithm=\"EdDSA\"} 0\n").await;
    shows("kagzi_file_unusable{file=\"jwt_keys\"} 0\n").await;
    in_file(&files, &[&issuer]);
    soon(async { while code(ada.ask().await) != Code::Ok {} }).await;
}

#[tokio::test]
async fn keys_behind_a_url_are_exchanged_without_a_restart() {
    let (files, old, new) = (Files::new(), Issuer::new("old"), Issuer::new("new"));
    let keys = KeyServer::new(set(&[&old])).await;
    let often = Duration::from_millis(5);
    let server =
        serve(ServerConfig { jwt_refresh_interval: often, ..with_keys(&files, keys.url.clone()) }).await;
    let mut by_old = Caller::with_token(&server, &old.token("acme|ada", HOUR)).await;
    let mut by_new = Caller::with_token(&server, &new.token("acme|ada", HOUR)).await;
    assert_eq!((code(by_old.ask().await), code(by_new.ask().await)), (Code::Ok, Code::Unauthenticated));
    keys.publish(&[&old, &new]);
    soon(async { while code(by_new.ask().await) != Code::Ok {} }).await;
    assert_eq!(code(by_old.ask().await), Code::Ok);
    // An issuer that is down, or talks nonsense, takes no key away.
    keys.document.lock().unwrap().clear();
    let asked = keys.asked.load(Ordering::SeqCst);
    soon(async {
        while keys.asked.load(Ordering::SeqCst) < asked + 3 {
            by_new.ask().await.unwrap();
        }
    })
    .await;
    keys.publish(&[&new]);
    soon(async { while code(by_old.ask().await) != Code::Unauthenticated {} }).await;
    assert_eq!(code(by_new.ask().await), Code::Ok);
}

#[tokio::test]
async fn a_key_that_is_not_known_has_the_url_asked_once_and_made_up_keys_do_not_again() {
    let (files, old, new) = (Files::new(), Issuer::new("old"), Issuer::new("new"));
    let keys = KeyServer::new(set(&[&old])).await;
    let server = serve(with_keys(&files, keys.url.clone())).await;
    // Whether they come with the start or by this call, they are asked for once.
    let mut by_old = Caller::with_token(&server, &old.token("acme|ada", HOUR)).await;
    assert_eq!(code(by_old.ask().await), Code::Ok);
    assert_eq!(keys.asked.load(Ordering::SeqCst), 1);
    keys.publish(&[&old, &new]);
    let mut made_up = HashMap::new();
    for id in ["a", "b", "c", "d"] {
        let token = Issuer::new(id).token("acme|ada", HOUR);
        made_up.insert(id, code(Caller::with_token(&server, &token).await.ask().await));
    }
    assert!(made_up.values().all(|code| *code == Code::Unauthenticated), "{made_up:?}");
    assert_eq!(keys.asked.load(Ordering::SeqCst), 1, "no more often than once in a while");
}

#[tokio::test]
async fn a_new_key_under_the_id_of_an_old_one_is_asked_for_once_and_wrong_signatures_do_not_again() {
    let (files, old, new) = (Files::new(), Issuer::new("k"), Issuer::new("k"));
    let keys = KeyServer::new(set(&[&old])).await;
    let server = serve(with_keys(&files, keys.url.clone())).await;
    soon(async {
        while keys.asked.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    keys.publish(&[&new]);
    // It was asked for with the start, and so not again for ten seconds.
    let mut by_new = Caller::with_token(&server, &new.token("acme|ada", HOUR)).await;
    assert_eq!(code(by_new.ask().await), Code::Unauthenticated);
    for _ in 0..20 {
        let stranger = Issuer::new("k").token("acme|ada", HOUR);
        assert_eq!(code(Caller::with_token(&server, &stranger).await.ask().await), Code::Unauthenticated);
    }
    assert_eq!(keys.asked.load(Ordering::SeqCst), 1, "no more often than once in a while");
}

#[tokio::test]
async fn without_keys_callers_are_told_to_come_again_and_tokens_of_other_kinds_get_in() {
    let (files, issuer, bob) = (Files::new(), Issuer::new("k"), known("bob", &[]));
    let keys = KeyServer::new(String::new()).await;
    let config = with_keys(&files, keys.url.clone());
    files.write(
        "access.toml",
        format!("{ADA}{}[[principal.grant]]\nrole = 'admin'\nnamespaces = ['*']", bob.entry),
    );
    let server = serve(config).await;
    let mut ada = Caller::with_token(&server, &issuer.token("acme|ada", HOUR)).await;
    assert_eq!(code(ada.ask().await), Code::Unavailable);
    assert_eq!(code(Caller::with_token(&server, &bob.token).await.ask().await), Code::Ok);
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_refused_by_the_name_of_the_setting() {
    let files = Files::new();
    let refused = [
        files.path("no-such.json").display().to_string(),
        files.write("bad.json", "{\"keys\": []}").display().to_string(),
        "http://keys.example/jwks".to_owned(),
        "ftp://keys.example/jwks".to_owned(),
        "https://".to_owned(),
    ];
    for keys in refused {
        let said = Server::bind(with_keys(&files, keys.clone())).await.unwrap_err().to_string();
        assert!(said.contains("jwt_keys: expected a JSON Web Key Set"), "{keys}: {said}");
    }
}
