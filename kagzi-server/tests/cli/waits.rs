//! Waiting: for a run, for a queue to drain, and what is said to whoever waits in vain.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use kagzi_sdk::{Client, Context, Start, Worker};
use tokio::sync::Semaphore;

use crate::support::*;

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
    assert!(shop.answered("CountWorkflows").await >= 2);
    assert_eq!(shop.answered("GetQueueDepths").await, 0, "what other queues hold is not counted for it");
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
