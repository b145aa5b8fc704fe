//! The command line, the real binary against a real server with a real worker.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use kagzi_sdk::{Client, Context, Encryption, RetryPolicy, Start, Step, StepError, Worker, WorkflowError};
use kagzi_server::{Server, ServerConfig, ServerHandle};
use serde_json::Value;
use tokio::sync::Semaphore;

/// A server in memory, and a worker that greets, or refuses to.
struct Shop {
    server: ServerHandle,
    worker: tokio::task::JoinHandle<()>,
}

async fn greet(context: Context, name: String) -> Result<String, WorkflowError> {
    let once = Step::named("greet").retry(RetryPolicy::never());
    context
        .step(once, || async {
            if name == "nobody" {
                return Err(StepError::non_retryable("no_such_person", "nobody cannot be greeted"));
            }
            Ok(format!("hello {name}"))
        })
        .await
}

impl Shop {
    async fn open() -> Self {
        let config = ServerConfig {
            listen: "127.0.0.1:0".to_owned(),
            store: "memory:".to_owned(),
            ..ServerConfig::default()
        };
        let server = Server::bind(config).await.unwrap().spawn();
        let client = Client::connect(&server.url()).await.unwrap();
        let worker = Worker::builder(client).queue("default").register("greet", greet).build().unwrap();
        let worker = tokio::spawn(async move { worker.run().await.unwrap() });
        Self { server, worker }
    }

    /// Runs a command off the runtime, which goes on serving meanwhile.
    async fn kagzi(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        command.args(["--server", &self.server.url()]).args(args);
        Ended(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
    }

    async fn start(&self, args: &[&str]) -> String {
        let ended = self.kagzi(&[&["start", "greet", "--json"], args].concat()).await;
        ended.json()["run_id"].as_str().unwrap().to_owned()
    }
}

struct Ended(Output);

impl Ended {
    fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout)
            .unwrap_or_else(|_| panic!("{}{}", self.stdout(), self.stderr()))
    }
}

const UNKNOWN_RUN: &str = "019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_started_waited_for_and_looked_at() {
    let shop = Shop::open().await;
    let ended =
        shop.kagzi(&["start", "greet", "--input", "\"world\"", "--label", "a=b", "--wait", "--json"]).await;
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let run = ended.json();
    assert_eq!((run["state"].as_str(), run["labels"]["a"].as_str()), (Some("COMPLETED"), Some("b")));
    assert!(run["created_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(run["input"], Value::Null, "payloads are shown only when asked for");

    let run_id = run["run_id"].as_str().unwrap();
    let shown = shop.kagzi(&["get", run_id, "--show-payloads", "--json"]).await.json();
    assert_eq!((&shown["input"]["json"], &shown["output"]["json"]), (&"world".into(), &"hello world".into()));
    let text = shop.kagzi(&["get", run_id]).await.stdout();
    assert!(text.contains("COMPLETED") && !text.contains("hello world"), "{text}");

    let steps = shop.kagzi(&["steps", run_id, "--json"]).await.json();
    assert_eq!(steps["attempts"][0]["step_id"], "greet");
    assert_eq!(steps["attempts"][0]["state"], "COMPLETED");
    assert!(shop.kagzi(&["steps", run_id]).await.stdout().contains("COMPLETED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_keys_of_an_application_its_payloads_are_sent_encrypted_and_shown_plain() {
    const OURS: &str = "ours:QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
    const OTHER: &str = "other:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";
    let shop = Shop::open().await;
    let plain = Client::connect(&shop.server.url()).await.unwrap();
    let encrypting = plain.clone().with_payload_codec(Arc::new(Encryption::from_keys(OURS).unwrap()));
    let worker = Worker::builder(encrypting).queue("sealed").register("greet", greet).build().unwrap();
    let working = tokio::spawn(worker.run());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, keys: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, keys).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (keys, other) = (file("keys", OURS), file("other", OTHER));

    let start =
        ["start", "greet", "--queue", "sealed", "--input", "\"ada\"", "--wait", "--show-payloads", "--json"];
    let ended = shop.kagzi(&[start.as_slice(), &["--payload-key-file", &keys]].concat()).await;
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout(), ended.stderr());
    assert_eq!(ended.json()["output"]["json"], "hello ada");
    let run_id = ended.json()["run_id"].as_str().unwrap().to_owned();
    let kept = plain.get(run_id.parse().unwrap()).await.unwrap();
    assert_eq!(kept.input.content_type.as_str(), Encryption::CONTENT_TYPE, "the server sees none of it");

    let get = ["get", &run_id, "--show-payloads", "--json"];
    let shown = shop.kagzi(&[get.as_slice(), &["--payload-key-file", &keys]].concat()).await.json();
    assert_eq!((&shown["input"]["json"], &shown["output"]["json"]), (&"ada".into(), &"hello ada".into()));
    let steps = ["steps", &run_id, "--show-payloads", "--json", "--payload-key-file", &keys];
    assert_eq!(shop.kagzi(&steps).await.json()["attempts"][0]["output"]["json"], "hello ada");
    let without = shop.kagzi(&get).await;
    assert_eq!(without.json()["input"]["content_type"], Encryption::CONTENT_TYPE);
    assert!(!without.stdout().contains("ada"), "{}", without.stdout());
    let wrong = shop.kagzi(&[get.as_slice(), &["--payload-key-file", &other]].concat()).await;
    assert_eq!(wrong.code(), Some(1));
    assert!(wrong.stderr().contains("\"ours\"") && !wrong.stderr().contains("QkJC"), "{}", wrong.stderr());
    let none = shop.kagzi(&[get.as_slice(), &["--payload-key-file", "/no/such/file"]].concat()).await;
    assert_eq!(none.code(), Some(2));
    assert!(none.stderr().contains("/no/such/file"), "{}", none.stderr());

    // What was never encrypted is shown to a person as it is.
    let plain_run = shop.start(&["--input", "\"bob\""]).await;
    let get = ["get", &plain_run, "--show-payloads", "--json", "--payload-key-file", &keys];
    assert_eq!(shop.kagzi(&get).await.json()["input"]["json"], "bob");
    working.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_is_a_dead_letter_with_its_reason_and_can_be_requeued() {
    let shop = Shop::open().await;
    let ended = shop.kagzi(&["start", "greet", "--input", "\"nobody\"", "--wait", "--json"]).await;
    assert_eq!(ended.code(), Some(1), "a run that failed is no success");
    let run_id = ended.json()["run_id"].as_str().unwrap().to_owned();

    let letters = shop.kagzi(&["dead-letters", "--json"]).await.json();
    assert_eq!(letters["runs"][0]["dead_letter"], "NON_RETRYABLE");
    assert_eq!(letters["runs"][0]["failure"]["code"], "no_such_person");
    let text = shop.kagzi(&["dead-letters"]).await.stdout();
    assert!(text.contains(&run_id) && text.contains("nobody cannot be greeted"), "{text}");

    let ended = shop.kagzi(&["requeue", &run_id, UNKNOWN_RUN, "--json"]).await;
    assert_eq!(ended.code(), Some(3), "one of the two does not exist");
    assert_eq!(ended.json()["requeued"][0], run_id.as_str());
    assert_eq!(ended.json()["refused"][0]["reason"], "RUN_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_requeued_by_filter_over_all_pages_and_only_when_it_is_meant() {
    // More than a page of them.
    const MANY: usize = 205;
    let shop = Shop::open().await;
    let client = Client::connect(&shop.server.url()).await.unwrap();
    let start = |number: usize| {
        let start = Start::workflow("greet").input("nobody").unwrap();
        if number == 0 { start.label("a", "b") } else { start }
    };
    for handle in client.start_many((0..MANY).map(start).collect()).await.unwrap() {
        handle.finished().await.unwrap();
    }
    // They have failed for good; from here on nobody takes what is requeued.
    shop.worker.abort();
    let count = |args: &'static [&'static str], field: &'static str| {
        let shop = &shop;
        async move {
            let ended = shop.kagzi(&[&["requeue", "--all", "--json"], args].concat()).await;
            assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
            ended.json()[field].as_array().unwrap().len()
        }
    };
    assert_eq!(count(&["--dry-run"], "would_requeue").await, MANY);
    assert_eq!(count(&["--dry-run", "--reason", "non_retryable"], "would_requeue").await, MANY);
    assert_eq!(count(&["--dry-run", "--label", "a=b"], "would_requeue").await, 1);
    for none in
        [["--dry-run", "--reason", "poison"], ["--dry-run", "--queue", "q"], ["--dry-run", "--type", "t"]]
    {
        let ended = shop.kagzi(&[["requeue", "--all", "--json"], none].concat()).await;
        assert_eq!(ended.json()["would_requeue"], Value::Array(Vec::new()), "{none:?}");
    }
    assert_eq!(count(&["--label", "a=b"], "requeued").await, 1, "the dry runs have requeued none");
    assert_eq!(count(&[], "requeued").await, MANY - 1);
    assert_eq!(count(&[], "requeued").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_names_one_run() {
    let shop = Shop::open().await;
    let args = ["start", "greet", "--input", "\"world\"", "--key", "k", "--delay", "1h", "--json"];
    let (first, second) = (shop.kagzi(&args).await.json(), shop.kagzi(&args).await.json());
    assert_eq!((first["outcome"].as_str(), second["outcome"].as_str()), (Some("CREATED"), Some("EXISTING")));
    assert_eq!(first["run_id"], second["run_id"]);
    let other = shop.kagzi(&["start", "greet", "--input", "\"moon\"", "--key", "k"]).await;
    assert_eq!(other.code(), Some(1));
    assert!(other.stderr().contains("input"), "it says what differs: {}", other.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_run_is_seen_in_its_queue_and_can_be_cancelled_once() {
    let shop = Shop::open().await;
    let run_id = shop.start(&["--queue", "later", "--delay", "1h"]).await;
    let queues = shop.kagzi(&["queues", "--json"]).await.json();
    assert_eq!(
        (&queues["queues"][0]["queue"], &queues["queues"][0]["sleeping"]),
        (&"later".into(), &1.into())
    );

    let cancelled = shop.kagzi(&["cancel", &run_id, "--reason", "changed our minds", "--json"]).await;
    assert_eq!((cancelled.code(), &cancelled.json()["outcome"]), (Some(0), &"CANCELLED".into()));
    let again = shop.kagzi(&["cancel", &run_id, "--json"]).await;
    assert_eq!((again.code(), &again.json()["outcome"]), (Some(0), &"ALREADY_FINISHED".into()));
    assert!(shop.kagzi(&["get", &run_id]).await.stdout().contains("changed our minds"));
    assert!(shop.kagzi(&["queues"]).await.stdout().contains("no queue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_come_in_pages_that_hold_together() {
    let shop = Shop::open().await;
    let mut started = Vec::new();
    for _ in 0..3 {
        started.push(shop.start(&["--delay", "1h", "--label", "team=a"]).await);
    }
    shop.start(&["--delay", "1h", "--label", "team=b"]).await;
    let list = ["list", "--label", "team=a", "--state", "sleeping", "--limit", "2", "--json"];
    let first = shop.kagzi(&list).await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = shop.kagzi(&[&list[..], &["--cursor", cursor]].concat()).await.json();
    let ids = [&first, &second].into_iter().flat_map(|page| page["runs"].as_array().unwrap());
    let ids: Vec<&str> = ids.map(|run| run["run_id"].as_str().unwrap()).collect();
    started.reverse();
    assert_eq!(ids, started, "the youngest first, each once");
    assert_eq!(second["next_cursor"], Value::Null);
    assert_eq!(
        shop.kagzi(&["list", "--limit", "2"]).await.stdout().lines().count(),
        3,
        "a header and two rows"
    );
    assert_eq!(shop.kagzi(&["list", "--cursor", "invented"]).await.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_apart_by_the_exit_code() {
    let shop = Shop::open().await;
    let unknown = shop.kagzi(&["get", UNKNOWN_RUN]).await;
    assert_eq!(unknown.code(), Some(3));
    assert!(
        unknown.stderr().starts_with("error: ") && unknown.stderr().contains("  why: "),
        "{}",
        unknown.stderr()
    );
    assert_eq!(shop.kagzi(&["get", "not-an-id"]).await.code(), Some(2));
    assert_eq!(shop.kagzi(&["start", "greet", "--input", "no json"]).await.code(), Some(2));
    assert_eq!(shop.kagzi(&["list", "--namespace", "elsewhere"]).await.stdout(), "");

    let taken = kagzi_testkit::free_port().unwrap();
    let nobody = shop.kagzi(&["list", "--server", &format!("http://127.0.0.1:{taken}")]).await;
    assert_eq!(nobody.code(), Some(4));
    assert!(nobody.stderr().contains("kagzi dev"), "it says what to do: {}", nobody.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_no_worker_ends_says_so_and_ends_once_there_is_one() {
    let shop = Shop::open().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    command.args(["start", "weave", "--queue", "looms", "--wait", "--server", &shop.server.url()]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = waiting.stderr.take().unwrap();
    let remark = tokio::task::spawn_blocking(move || {
        BufReader::new(stderr).lines().map(Result::unwrap).find(|line| line.contains("no worker has claimed"))
    });
    let remark = remark.await.unwrap().unwrap();
    assert!(remark.contains("queue \"looms\"") && remark.contains("workflow type \"weave\""), "{remark}");

    let client = Client::connect(&shop.server.url()).await.unwrap();
    let weave = |_: Context, (): ()| async { Ok("woven") };
    let worker = Worker::builder(client).queue("looms").register("weave", weave).build().unwrap();
    let worker = tokio::spawn(async move { worker.run().await });
    let ended =
        tokio::task::spawn_blocking(move || Ended(waiting.wait_with_output().unwrap())).await.unwrap();
    worker.abort();
    assert_eq!(ended.code(), Some(0));
    assert!(ended.stdout().contains("COMPLETED"), "{}", ended.stdout());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_paused_until_it_is_resumed_and_those_who_wait_are_told() {
    let shop = Shop::open().await;
    let paused = shop.kagzi(&["queue", "pause", "default", "--reason", "no paper", "--wait", "--json"]).await;
    assert_eq!(paused.code(), Some(0), "{}", paused.stderr());
    assert_eq!(paused.json(), serde_json::json!({"queue": "default", "outcome": "PAUSED", "running": 0}));
    let queues = shop.kagzi(&["queues", "--json"]).await.json();
    let queue = &queues["queues"][0];
    assert_eq!((queue["state"].as_str(), queue["pause_reason"].as_str()), (Some("PAUSED"), Some("no paper")));
    assert!(queue["paused_since"].as_str().unwrap().ends_with('Z'), "{queue}");
    assert!(shop.kagzi(&["queues"]).await.stdout().contains(": no paper"));

    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    command.args(["start", "greet", "--input", "\"world\"", "--wait", "--server", &shop.server.url()]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = waiting.stderr.take().unwrap();
    let remark = tokio::task::spawn_blocking(move || {
        BufReader::new(stderr).lines().map(Result::unwrap).find(|line| line.contains("is paused"))
    });
    let remark = remark.await.unwrap().unwrap();
    assert!(
        remark.contains("queue \"default\" is paused since") && remark.contains(": no paper"),
        "{remark}"
    );

    let again = shop.kagzi(&["queue", "pause", "default"]).await;
    assert_eq!((again.code(), again.stdout().trim()), (Some(0), "default was paused before"));
    let resumed = shop.kagzi(&["queue", "resume", "default", "--json"]).await.json();
    assert_eq!(resumed, serde_json::json!({"queue": "default", "outcome": "RESUMED"}));
    let ended =
        tokio::task::spawn_blocking(move || Ended(waiting.wait_with_output().unwrap())).await.unwrap();
    assert_eq!(ended.code(), Some(0), "the run that waited is worked on: {}", ended.stdout());
    let open = shop.kagzi(&["queue", "resume", "default"]).await;
    assert_eq!((open.code(), open.stdout().trim()), (Some(0), "default was open before"));
    let long = shop.kagzi(&["queue", "pause", "default", "--reason", &"x".repeat(513)]).await;
    assert_eq!(long.code(), Some(2), "{}", long.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_does_not_drain_in_time_says_what_is_held() {
    let shop = Shop::open().await;
    let client = Client::connect(&shop.server.url()).await.unwrap();
    let (begun, going_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&going_on));
    let weave = move |_: Context, (): ()| {
        let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
        async move {
            begins.add_permits(1);
            goes_on.acquire().await.unwrap().forget();
            Ok("woven")
        }
    };
    let worker = Worker::builder(client.clone()).queue("looms").register("weave", weave).build().unwrap();
    let worker = tokio::spawn(async move { worker.run().await });
    let run = client.start(Start::workflow("weave").queue("looms")).await.unwrap();
    begun.acquire().await.unwrap().forget();

    let late = shop.kagzi(&["queue", "pause", "looms", "--wait", "--timeout", "1ms"]).await;
    assert_eq!((late.code(), late.stdout().as_str()), (Some(5), ""), "{}", late.stderr());
    let said = late.stderr();
    assert!(
        said.contains("queue looms has not drained") && said.contains(&run.run_id().to_string()),
        "{said}"
    );
    going_on.add_permits(1);
    let drained = shop.kagzi(&["queue", "pause", "looms", "--wait", "--json"]).await.json();
    let expected = serde_json::json!({"queue": "looms", "outcome": "ALREADY_PAUSED", "running": 0});
    assert_eq!(drained, expected);
    assert_eq!(run.result::<String>().await.unwrap(), "woven");
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_its_timeout_or_a_signal_and_the_run_goes_on() {
    let shop = Shop::open().await;
    let ended = shop.kagzi(&["start", "weave", "--wait", "--timeout", "1ms", "--json"]).await;
    assert_eq!((ended.code(), ended.stdout().as_str()), (Some(5), ""), "{}", ended.stderr());
    assert!(ended.stderr().contains("--timeout has passed"), "{}", ended.stderr());

    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    command.args(["start", "weave", "--wait", "--server", &shop.server.url()]);
    let mut waiting = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let mut stderr = BufReader::new(waiting.stderr.take().unwrap());
        let mut said = String::new();
        // By the remark it has been waiting for a while, and so has its handler for signals.
        while !said.contains("no worker has claimed") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
        }
        let killed = Command::new("kill").args(["-INT", &waiting.id().to_string()]).status().unwrap();
        assert!(killed.success());
        stderr.read_to_string(&mut said).unwrap();
        (waiting.wait().unwrap().code(), said)
    });
    let (code, said) = ended.await.unwrap();
    assert_eq!(code, Some(130));
    assert!(said.contains("it goes on; look at it with `kagzi get "), "{said}");
    assert_eq!(shop.kagzi(&["list", "--state", "pending", "--json"]).await.json()["runs"][1]["claims"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_too_long_is_refused_by_the_name_of_its_flag() {
    let shop = Shop::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    for megabytes in [3, 30] {
        std::fs::write(file.path(), vec![b'x'; megabytes << 20]).unwrap();
        let input = format!("@{}", file.path().display());
        let ended = shop.kagzi(&["start", "greet", "--input", &input]).await;
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr());
        assert!(ended.stderr().contains("why: --input: "), "{}", ended.stderr());
        assert!(ended.stderr().contains("pass a reference"), "{}", ended.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_key_given_twice_is_refused_and_starts_nothing() {
    let shop = Shop::open().await;
    for args in [["start", "greet"].as_slice(), &["list"]] {
        let ended = shop.kagzi(&[args, &["--label", "a=b", "--label", "a=c"]].concat()).await;
        assert_eq!(ended.code(), Some(2));
        assert!(ended.stderr().contains("\"a\" is given twice"), "{}", ended.stderr());
    }
    assert_eq!(shop.kagzi(&["list", "--json"]).await.json()["runs"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_that_its_store_is_away_is_not_taken_for_a_wrong_address() {
    let shop = Shop::open().await;
    // Closed, as it is from then on when the database is away for good.
    shop.server.store().close().await.unwrap();
    let ended = shop.kagzi(&["list"]).await;
    assert_eq!(ended.code(), Some(4), "{}", ended.stderr());
    assert!(!ended.stderr().contains("--server"), "{}", ended.stderr());
    assert!(ended.stderr().contains(&format!("log of the server at {}", shop.server.url())));
    shop.worker.abort();
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf8_is_refused_by_the_name_of_its_field() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let bad = OsStr::from_bytes(b"a\xff");
    let refused = [
        (["start"].as_slice(), "'<TYPE>'"),
        (&["start", "greet", "--queue"], "'--queue <QUEUE>'"),
        (&["start", "--queue"], "'--queue <QUEUE>'"),
        (&["list", "--label"], "'--label <KEY=VALUE>'"),
        (&["get"], "'<RUN>'"),
        (&["--namespace"], "'--namespace <NAMESPACE>'"),
        (&["list", "--namespace"], "'--namespace <NAMESPACE>'"),
        (&["serve", "--namespaces"], "'--namespaces <NAMES>'"),
    ];
    let said = |command: &mut Command| {
        let ended = Ended(command.output().unwrap());
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr());
        ended.stderr()
    };
    for (args, field) in refused {
        let said = said(Command::new(env!("CARGO_BIN_EXE_kagzi")).args(args).arg(bad));
        assert!(said.contains(&format!("for {field}: expected UTF-8")), "{args:?}: {said}");
    }
    let said = said(Command::new(env!("CARGO_BIN_EXE_kagzi")).arg("list").env("KAGZI_NAMESPACE", bad));
    assert!(said.contains("KAGZI_NAMESPACE for '--namespace <NAMESPACE>': expected UTF-8"), "{said}");
}

#[test]
fn the_configuration_is_looked_at_before_the_store_and_the_store_before_the_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kagzi"))
            .args(["serve", "--listen", &taken])
            .args(args)
            .output()
            .unwrap();
        Ended(output)
    };
    let all_wrong = serve(&["--store", "mysql://h/db", "--max-payload-bytes", "0"]);
    assert_eq!(all_wrong.code(), Some(2));
    assert!(all_wrong.stderr().contains("max_payload_bytes: expected from 1 to"), "{}", all_wrong.stderr());
    let store_wrong = serve(&["--store", "mysql://h/db"]);
    assert_eq!(store_wrong.code(), Some(2));
    assert!(store_wrong.stderr().contains("schemes built in"), "{}", store_wrong.stderr());
    let port_taken = serve(&["--store", "memory:"]);
    assert_eq!(port_taken.code(), Some(1));
    assert!(port_taken.stderr().contains(&format!("{taken} is in use")), "{}", port_taken.stderr());
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        let script = Ended(command.args(["completions", shell]).output().unwrap());
        assert_eq!(script.code(), Some(0));
        assert!(script.stdout().contains("dead-letters"), "{shell}");
        assert!(script.stdout().contains("namespace"), "{shell}");
        assert!(!script.stdout().contains("demo-worker"), "{shell}: that is nobody's to type");
    }
}

#[test]
fn a_negative_value_is_refused_by_the_name_of_its_field() {
    let refused = [
        (["start", "greet", "--delay", "-5s"].as_slice(), "--delay"),
        (&["start", "greet", "--run-timeout", "-1s"], "--run-timeout"),
        (&["list", "--limit", "-1"], "--limit"),
        (&["serve", "--default-lease", "-5s"], "--default-lease"),
    ];
    for (args, field) in refused {
        let output = Command::new(env!("CARGO_BIN_EXE_kagzi")).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(&format!("invalid value '{}' for '{field}", args.last().unwrap())), "{said}");
    }
}

#[test]
fn what_is_no_number_is_refused_with_what_was_expected_and_by_the_name_of_its_field() {
    let said = |args: &[&str], variable: (&str, &str)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        let output = command.args(args).env(variable.0, variable.1).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    let told = said(&["serve"], ("KAGZI_MAX_WAITS", "abc"));
    assert!(told.contains("'abc' for '--max-waits <N>': expected a whole number, 0 or more"), "{told}");
    let told = said(&["serve", "--max-payload-bytes", "2MiB"], ("X", ""));
    assert!(told.contains("'2MiB' for '--max-payload-bytes <BYTES>': expected a whole number"), "{told}");
    let told = said(&["serve"], ("KAGZI_RETRY_FACTOR", "two"));
    assert!(told.contains("'two' for '--retry-factor <FACTOR>': expected a number"), "{told}");
}

#[test]
fn a_server_does_not_start_with_a_variable_that_is_nearly_a_setting() {
    let serve = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        // It ends at once, for another reason, if the variable is no obstacle.
        command.args(["serve", "--store", "mysql://h/db"]).env(name, "planted-value");
        Ended(command.output().unwrap())
    };
    let misspelt = serve("KAGZI_ACCESSFILE");
    assert_eq!(misspelt.code(), Some(2));
    let told = misspelt.stderr();
    assert!(told.contains("KAGZI_ACCESSFILE: ") && told.contains("KAGZI_ACCESS_FILE"), "{told}");
    assert!(!told.contains("schemes built in") && !told.contains("planted-value"), "{told}");
    let unheard = serve("KAGZI_UNHEARD_OF_THING");
    let told = unheard.stderr();
    assert!(told.contains("nobody reads the variable KAGZI_UNHEARD_OF_THING"), "{told}");
    assert!(told.contains("schemes built in") && !told.contains("planted-value"), "{told}");
    let told = serve("KAGZI_CONFORMANCE_SEED");
    assert!(!told.stderr().contains("KAGZI_CONFORMANCE_SEED"), "{}", told.stderr());
}
