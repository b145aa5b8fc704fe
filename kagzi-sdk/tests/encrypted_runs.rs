//! Whole runs through encryption: what the store holds, replays, starts sent again, keys that are not there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Tally, World, crash, until, with, work, world};
use kagzi_sdk::{
    Client, ClientError, CodecError, Context, Encryption, FailureKind, PayloadCodec, PayloadError,
    RetryPolicy, RunHandle, RunState, Start, StartOutcome, StepError, StoreError, Worker, WorkerBuilder,
    WorkflowError,
};
use kagzi_store_sqlite::{SqliteOptions, SqliteStore};
use tokio_util::sync::CancellationToken;

const KEY_A: &str = "a:QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
const KEY_B: &str = "b:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";

fn keys(keys: &[&str]) -> Arc<dyn PayloadCodec> {
    Arc::new(Encryption::from_keys(keys.join("\n")).unwrap())
}

impl World {
    fn client_with(&self, codec: Arc<dyn PayloadCodec>) -> Client {
        self.client.clone().with_payload_codec(codec)
    }
}

fn worker_of(client: &Client) -> WorkerBuilder {
    Worker::builder(client.clone()).queue("default").lease(Duration::from_secs(30))
}

/// Puts planted text into an input, outputs, details and an output of a run, with a restart of everything
/// in between, and gives all bytes of the database's files as they were before and after.
async fn plant(directory: &Path, codec: Option<Arc<dyn PayloadCodec>>) -> Vec<u8> {
    let path = directory.join("kagzi.db");
    let open = async || {
        let store = Arc::new(SqliteStore::open(SqliteOptions::new(&path)).await.unwrap());
        let client = Client::embedded(store);
        match &codec {
            Some(codec) => client.with_payload_codec(Arc::clone(codec)),
            None => client,
        }
    };
    let files = || {
        let mut bytes = Vec::new();
        for file in std::fs::read_dir(directory).unwrap() {
            bytes.extend(std::fs::read(file.unwrap().path()).unwrap());
        }
        bytes
    };
    let (first, reached) = (Tally::default(), CancellationToken::new());
    let seen = (first.clone(), reached.clone());
    let workflow = with(seen, |ctx: Context, input: String, (first, reached)| async move {
        let a = ctx
            .step("a", || async {
                first.one();
                Ok(format!("{input} planted-output"))
            })
            .await?;
        ctx.step("b", || async {
            if !reached.is_cancelled() {
                reached.cancel();
                std::future::pending::<()>().await;
            }
            Ok(())
        })
        .await?;
        Ok::<_, WorkflowError>(format!("{a} planted-result"))
    });
    let failing = |ctx: Context, (): ()| async move {
        ctx.step("f", || async {
            let error = StepError::non_retryable("declined", "clear-message");
            Err::<(), _>(error.with_details("planted-details")?)
        })
        .await
    };

    let client = open().await;
    let start = Start::workflow("w").input("planted-input").unwrap().label("team", "clear-label");
    let run_id = client.start(start).await.unwrap().run_id();
    let failed = client.start(Start::workflow("f")).await.unwrap();
    let worker = worker_of(&client).drain_timeout(Duration::ZERO);
    let worker = worker.register("w", workflow.clone()).register("f", failing).build().unwrap();
    let waited = async {
        reached.cancelled().await;
        failed.finished().await.unwrap();
    };
    worker.run_until(waited).await.unwrap();
    let mut bytes = files();
    drop((client, failed));

    let client = open().await;
    let worker = worker_of(&client).register("w", workflow).build().unwrap();
    let run = client.handle(run_id);
    let done = CancellationToken::new();
    let (drained, record) = tokio::join!(worker.run_until(done.clone().cancelled_owned()), async {
        let record = run.finished().await.unwrap();
        done.cancel();
        record
    });
    drained.unwrap();
    assert_eq!(run.result::<String>().await.unwrap(), "planted-input planted-output planted-result");
    assert_eq!(first.count(), 1, "the recorded step was replayed, not executed again");
    assert_eq!(&record.input.bytes[..], b"\"planted-input\"");
    bytes.extend(files());
    bytes
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_holds_no_plain_payload_and_runs_go_on_after_a_restart() {
    let (plain, sealed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plain = plant(plain.path(), None).await;
    let sealed = plant(sealed.path(), Some(keys(&[KEY_A]))).await;
    // Details stand within the failure's JSON, in base64.
    let details = STANDARD.encode("\"planted-details\"");
    for planted in ["planted-input", "planted-output", "planted-result", "planted-details"] {
        assert!(!holds(&sealed, planted), "{planted} lies in the database");
    }
    for planted in ["planted-input", "planted-output", "planted-result", &details] {
        assert!(holds(&plain, planted), "{planted}: the search finds what is there");
        assert!(!holds(&sealed, planted), "{planted} lies in the database");
    }
    for clear in ["clear-label", "clear-message"] {
        assert!(holds(&sealed, clear), "{clear} is documented to be in the clear");
    }
}

#[tokio::test(start_paused = true)]
async fn recorded_steps_are_replayed_after_a_crash_and_a_rotation() {
    let world = world();
    let (first, second) = (Tally::default(), Tally::default());
    let workflow =
        with((first.clone(), second.clone()), |ctx: Context, n: u32, (first, second)| async move {
            let a = ctx.step("a", || async { Ok(first.one()) }).await?;
            ctx.step("b", || async {
                if second.one() == 1 {
                    std::future::pending::<()>().await;
                }
                Ok(())
            })
            .await?;
            ctx.sleep(Duration::from_mins(1)).await?;
            Ok::<_, WorkflowError>((n, a))
        });
    let old = world.client_with(keys(&[KEY_A, KEY_B]));
    let crashing = work(worker_of(&old).register("w", workflow.clone()));
    let run = old.start(Start::workflow("w").input(&7).unwrap()).await.unwrap();
    until(|| async { second.count() == 1 }).await;
    crash(crashing).await;

    let new = world.client_with(keys(&[KEY_B, KEY_A]));
    let _worker = work(worker_of(&new).register("w", workflow));
    let run = new.handle(run.run_id());
    assert_eq!(run.result::<(u32, usize)>().await.unwrap(), (7, 1));
    assert_eq!((first.count(), second.count()), (1, 2));
    let stored = world.client.attempts(run.run_id()).await.unwrap();
    let key_of = |step: usize| stored[step].output.as_ref().unwrap().bytes[2];
    assert_eq!((key_of(0), key_of(2)), (b'a', b'b'), "each is under the key of its time");
    let read = run.attempts().await.unwrap();
    assert_eq!(&read[0].output.as_ref().unwrap().bytes[..], b"1");
}

fn start(n: u32) -> Start {
    Start::workflow("w").input(&n).unwrap().idempotency_key("k")
}

async fn again(client: &Client, first: &RunHandle, n: u32) {
    let again = client.start(start(n)).await.unwrap();
    assert_eq!((again.run_id(), again.start_outcome()), (first.run_id(), Some(StartOutcome::Existing)));
}

#[tokio::test(start_paused = true)]
async fn a_start_sent_again_agrees_whatever_key_it_is_under() {
    let world = world();
    let old = world.client_with(keys(&[KEY_A]));
    let first = old.start(start(1)).await.unwrap();
    again(&old, &first, 1).await;
    assert_eq!(world.store.calls("get_run"), 0, "under the same key its bytes are the same");
    let rotated = world.client_with(keys(&[KEY_B, KEY_A]));
    again(&rotated, &first, 1).await;
    for client in [&old, &rotated] {
        let error = client.start(start(2)).await.unwrap_err();
        let ClientError::Call(StoreError::IdempotencyConflict { differs, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(differs, &["input"]);
    }
    let stranger = world.client_with(keys(&[KEY_B]));
    let error = stranger.start(start(1)).await.unwrap_err();
    assert!(error.to_string().contains("key \"a\", which is not in the key ring"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn many_starts_at_once_agree_each_with_its_own_first() {
    let world = world();
    let batch = || (1..=3).map(|n| start(n).idempotency_key(format!("k{n}"))).collect::<Vec<_>>();
    let old = world.client_with(keys(&[KEY_A])).start_many(batch()).await.unwrap();
    let mut more = batch();
    more.extend([start(9), start(9)]); // twice the same in one batch, and new
    let new = world.client_with(keys(&[KEY_B, KEY_A])).start_many(more).await.unwrap();
    let ids = |handles: &[RunHandle]| handles.iter().map(RunHandle::run_id).collect::<Vec<_>>();
    assert_eq!(ids(&new[..3]), ids(&old));
    assert_eq!(new[3].run_id(), new[4].run_id());
}

#[tokio::test(start_paused = true)]
async fn runs_from_before_encryption_go_on_where_plain_text_is_accepted() {
    let world = world();
    let first = world.client.start(start(1)).await.unwrap();
    let strict = world.client_with(keys(&[KEY_A]));
    let error = strict.get(first.run_id()).await.unwrap_err();
    let not_encrypted = |error: &ClientError| {
        matches!(
            error,
            ClientError::Codec(CodecError::Payload { error: PayloadError::NotEncrypted { .. }, .. })
        )
    };
    assert!(not_encrypted(&error), "{error}");
    assert!(not_encrypted(&strict.start(start(1)).await.unwrap_err()));

    let accepting = Arc::new(Encryption::from_keys(KEY_A).unwrap().accept_plaintext());
    let accepting = world.client_with(accepting);
    again(&accepting, &first, 1).await;
    let _worker = work(worker_of(&accepting).register("w", |ctx: Context, n: u32| async move {
        ctx.step("double", || async move { Ok(2 * n) }).await
    }));
    let run = accepting.handle(first.run_id());
    assert_eq!(run.result::<u32>().await.unwrap(), 2);
    let stored = world.client.get(run.run_id()).await.unwrap();
    assert_eq!(stored.output.unwrap().content_type.as_str(), Encryption::CONTENT_TYPE);
}

#[tokio::test(start_paused = true)]
async fn details_of_failures_are_encrypted_for_steps_and_runs() {
    let world = world();
    let client = world.client_with(keys(&[KEY_A]));
    let _worker = work(
        worker_of(&client)
            .register("step", |ctx: Context, (): ()| async move {
                ctx.step("s", || async {
                    Err::<(), _>(StepError::non_retryable("no", "clear").with_details("secret")?)
                })
                .await
            })
            .register("run", |_: Context, (): ()| async move {
                Err::<(), _>(WorkflowError::non_retryable("no", "clear").with_details("secret")?)
            }),
    );
    for name in ["step", "run"] {
        let run = client.start(Start::workflow(name)).await.unwrap();
        let ClientError::WorkflowFailed(failed) = run.result::<()>().await.unwrap_err() else { panic!() };
        assert_eq!((failed.code.as_str(), failed.message.as_str()), ("no", "clear"));
        assert_eq!(failed.details::<String>().unwrap().as_deref(), Some("secret"));
        let stored = world.client.get(run.run_id()).await.unwrap().run.failure.unwrap();
        assert_eq!(stored.details.unwrap().content_type.as_str(), Encryption::CONTENT_TYPE);
        for attempt in run.attempts().await.unwrap() {
            assert_eq!(&attempt.failure.unwrap().details.unwrap().bytes[..], b"\"secret\"");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_under_a_key_that_is_not_there_waits_for_the_key_and_the_code_does_not_see_it() {
    let world = world();
    let (second, seen) = (Tally::default(), Tally::default());
    let workflow = with((second.clone(), seen.clone()), |ctx: Context, (): (), (second, seen)| async move {
        let a = ctx.step("a", || async { Ok(5) }).await;
        if a.is_err() {
            seen.one();
        }
        ctx.step("b", || async {
            if second.one() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
        .await?;
        a
    });
    let starter = world.client_with(keys(&[KEY_B, KEY_A]));
    let retry = RetryPolicy { max_attempts: 1000, ..RetryPolicy::default() };
    let run = starter.start(Start::workflow("w").retry(retry)).await.unwrap();
    let writer = world.client_with(keys(&[KEY_A, KEY_B]));
    let crashing = work(worker_of(&writer).register("w", workflow.clone()));
    until(|| async { second.count() == 1 }).await;
    crash(crashing).await;

    let keyless = world.client_with(keys(&[KEY_B]));
    let waiting = work(worker_of(&keyless).register("w", workflow.clone()));
    until(|| async { run.record().await.unwrap().run.failures >= 2 }).await;
    crash(waiting).await;
    assert_eq!((second.count(), seen.count()), (1, 0));

    let _worker = work(worker_of(&starter).register("w", workflow));
    assert_eq!(run.result::<u32>().await.unwrap(), 5);
    assert_eq!((second.count(), seen.count()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_encryption_says_what_it_lacks() {
    let world = world();
    let run = world.client_with(keys(&[KEY_A])).start(start(1)).await.unwrap();
    let _worker =
        work(world.worker().register("w", |_: Context, n: u32| async move { Ok::<_, WorkflowError>(n) }));
    let record = world.client.handle(run.run_id()).finished().await.unwrap();
    let failure = record.run.failure.unwrap();
    assert_eq!((record.run.state, failure.kind), (RunState::Failed, FailureKind::NonRetryable));
    assert!(failure.message.contains("give the client its key"), "{}", failure.message);
}
