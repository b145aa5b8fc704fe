//! Dead letters: told with their reasons, and requeued one by one or by filter.

use kagzi_sdk::{Client, Start};
use serde_json::Value;

use crate::support::*;

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
