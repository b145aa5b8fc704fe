//! In paused time, over addresses where nobody listens.

use kagzi_core::{Store, StoreError};

use super::*;

/// Nobody listens there.
const AWAY: &str = "postgres://u@127.0.0.1:1/db";

/// Fails a test that would hang instead of letting it. By the clock on the wall: who tries without a pause keeps the
/// paused one from going on.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    let (over, never) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_mins(1));
        over.send(()).ok();
    });
    tokio::select! {
        done = work => done,
        _ = never => panic!("it would hang"),
    }
}

fn waits_for(store: &str, start_timeout: Duration) -> ServerConfig {
    ServerConfig { store: store.to_owned(), start_timeout, ..ServerConfig::default() }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_waited_for_as_long_as_the_setting_says_and_no_longer() {
    for minutes in [1, 10] {
        let patience = Duration::from_mins(minutes);
        let opened = open_or_wait(&waits_for(AWAY, patience)).await.unwrap();
        assert_eq!(opened.store.backend(), "postgres");
        let away = opened.store.next_due().await.unwrap_err();
        assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
        assert!(away.to_string().contains("since the server started"), "{away}");
        assert!(!away.to_string().contains("u@127"), "callers need not know where it is: {away}");
        let waiting = opened.waiting.unwrap();
        let began = waiting.began;
        let given_up = soon(tokio::time::timeout(2 * patience, waiting.run())).await;
        let error = given_up.expect("it is bounded").unwrap_err();
        assert!(began.elapsed() >= patience, "{:?}", began.elapsed());
        assert!(
            matches!(error, ServerError::StoreStayedAway { waited, .. } if waited == patience),
            "{error:?}"
        );
        let said = error.to_string();
        assert!(said.contains("start_timeout") && said.contains("127.0.0.1:1/db"), "{said}");
        opened.store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_comes_is_that_store_from_then_on() {
    let store = Awaited::new("memory", "it is away".to_owned());
    let mut early = store.wake_hub().subscribe([kagzi_core::Topic::Deadlines]);
    store.is_away("it is still away".to_owned());
    assert!(store.now().await.unwrap_err().to_string().contains("it is still away"));
    assert!(!early.take_announcement());
    let there: SharedStore = Arc::new(kagzi_core::memory::MemoryStore::default());
    store.is(Arc::clone(&there));
    assert!(early.take_announcement(), "who came too early looks again");
    store.now().await.unwrap();
    assert!(std::ptr::eq(store.wake_hub(), there.wake_hub()));
    store.close().await.unwrap();
    there.now().await.unwrap_err();
}

#[tokio::test]
async fn what_waiting_cannot_mend_and_who_does_not_want_to_wait_ends_at_once() {
    let refused = |store: &str, start_timeout| {
        let config = waits_for(store, start_timeout);
        async move { open_or_wait(&config).await.map(|opened| opened.waiting).unwrap_err() }
    };
    let long = Duration::from_hours(1);
    for store in ["sqlite:///no/such/directory/kagzi.db", "postgres://u@127.0.0.1:1/db?partitions=0"] {
        let error = refused(store, long).await;
        assert!(matches!(error, ServerError::OpenStore { .. }), "{error:?}");
        assert!(!error.is_for_now(), "{error}");
    }
    assert!(matches!(refused("mysql://h/db", long).await, ServerError::UnknownStore { .. }));
    let error = refused(AWAY, Duration::ZERO).await;
    assert!(error.is_for_now() && matches!(error, ServerError::OpenStore { .. }), "{error:?}");
}
