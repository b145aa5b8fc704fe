//! Runs: started, looked at, listed, cancelled.

use std::sync::Arc;

use kagzi_sdk::{Client, Encryption, Worker};
use serde_json::Value;

use crate::support::*;

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
