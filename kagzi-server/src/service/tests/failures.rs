//! How much of calls that fail is in the log.

use tracing::Level;
use tracing::dispatcher::DefaultGuard;

use kagzi_core::StoreError;
use kagzi_sdk::wire::GetRun;

use super::told::{Origin, Told};
use super::*;
use crate::auth::Caller;
use crate::written::Written;

/// A log of this level, while the guard is kept.
fn log(level: Level) -> (Arc<Written>, DefaultGuard) {
    let written = Arc::new(Written::default());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(Arc::clone(&written))
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    (written, guard)
}

fn lines(written: &Written, about: &str) -> Vec<String> {
    let text = String::from_utf8(written.take()).unwrap();
    text.lines().filter(|line| line.contains(about)).map(str::to_owned).collect()
}

/// Asks so often for a run that is not there.
async fn miss(services: &Services, caller: &str, times: usize) {
    for _ in 0..times {
        let get = v1::GetWorkflowRequest {
            namespace: "default".to_owned(),
            run_id: "0190a5e0-0000-7000-8000-000000000000".to_owned(),
            ..Default::default()
        };
        let mut request = Request::new(get);
        request.extensions_mut().insert(Caller::named(caller));
        assert_eq!(services.get_workflow(request).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_makes_calls_that_fail_does_not_fill_the_log_and_what_is_left_out_is_summed_up() {
    let (written, _guard) = log(Level::INFO);
    let services = services();
    miss(&services, "ada", 1000).await;
    assert_eq!(lines(&written, "call failed").len(), 100);
    // Another's failures are told of all the same.
    miss(&services, "bob", 20).await;
    assert_eq!(lines(&written, "call failed").len(), 20);
    tokio::time::sleep(Duration::from_secs(1)).await;
    miss(&services, "ada", 1000).await;
    assert_eq!(lines(&written, "").len(), 10);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let summary = lines(&written, "");
    let [line] = &summary[..] else { panic!("{summary:?}") };
    for part in ["calls=1890", "last_principal=\"ada\"", "last_reason=\"RUN_NOT_FOUND\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // What was summed up is not counted again.
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(lines(&written, ""), [""; 0]);
    miss(&services, "ada", 101).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(lines(&written, "calls=1 ").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_failure_that_callers_can_cause_is_bounded() {
    let (written, _guard) = log(Level::INFO);
    let services = services();
    for _ in 0..300 {
        let invalid = v1::StartWorkflowRequest { namespace: "default".to_owned(), ..Default::default() };
        services.start_workflow(Request::new(invalid)).await.unwrap_err();
        let depths = v1::GetQueueDepthsRequest { namespace: "elsewhere".to_owned() };
        services.get_queue_depths(Request::new(depths)).await.unwrap_err();
        services.complete_step(Request::new(v1::CompleteStepRequest::default())).await.unwrap_err();
    }
    assert_eq!(lines(&written, "").len(), 100);
}

#[tokio::test(start_paused = true)]
async fn at_level_debug_each_failure_is_told_of() {
    let (written, _guard) = log(Level::DEBUG);
    let services = services();
    miss(&services, "ada", 150).await;
    assert_eq!(lines(&written, "call failed").len(), 150);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_does_not_fill_the_log_and_a_bug_is_told_of_each_time() {
    let (written, _guard) = log(Level::INFO);
    let services = services();
    services.store().close().await.unwrap();
    let away = services.store().now().await.unwrap_err();
    assert!(matches!(away, StoreError::Unavailable { .. }), "{away}");
    let bug = StoreError::Internal { context: "testing", detail: "it is broken".to_owned() };
    let told = Told::of("GetWorkflow", None::<&GetRun>, &Origin::of(Caller::named("ada"), None));
    for (error, lines_told) in [(away, 100), (bug, 150)] {
        for _ in 0..150 {
            services.refused(&told, &error);
        }
        assert_eq!(lines(&written, "call failed").len(), lines_told, "{error}");
    }
}
