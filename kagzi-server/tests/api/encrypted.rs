//! Payloads that clients and workers encrypt, through a server over every store.

use std::sync::Arc;

use kagzi_sdk::{Client, Context, Encryption, Start, StepError, Worker, WorkflowError};

use crate::support::*;

const OLD: &str = "old:QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
const NEW: &str = "new:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";

async fn encrypting(server: &TestServer, keys: &[&str]) -> Client {
    let encryption = Encryption::from_keys(keys.join("\n")).unwrap();
    Client::connect(server.handle.url()).await.unwrap().with_payload_codec(Arc::new(encryption))
}

async fn greet(ctx: Context, name: String) -> Result<String, WorkflowError> {
    let greeting = ctx.step("compose", || async { Ok::<_, StepError>(format!("Hello, {name}!")) }).await?;
    ctx.step("deliver", || async { Ok(format!("{greeting} Delivered.")) }).await
}

#[tokio::test]
async fn a_server_passes_on_what_it_cannot_read() {
    for backend in BACKENDS {
        let server = serve(backend).await;
        let start = || Start::workflow("greet").input("secret").unwrap().idempotency_key("one");
        let old = encrypting(&server, &[OLD]).await;
        let run = old.start(start()).await.unwrap();
        let new = encrypting(&server, &[NEW, OLD]).await;
        let again = new.start(start()).await.unwrap();
        assert_eq!(again.run_id(), run.run_id(), "{backend:?}: the same start under another key");

        let worker = Worker::builder(new).queue("default").register("greet", greet).build().unwrap();
        let working = tokio::spawn(worker.run());
        assert_eq!(again.result::<String>().await.unwrap(), "Hello, secret! Delivered.", "{backend:?}");
        working.abort();

        let plain = Client::connect(server.handle.url()).await.unwrap();
        let record = plain.get(run.run_id()).await.unwrap();
        let attempts = plain.attempts(run.run_id()).await.unwrap();
        let mut seen = vec![record.input, record.output.unwrap()];
        seen.extend(attempts.into_iter().map(|attempt| attempt.output.unwrap()));
        assert_eq!(seen.len(), 4);
        for payload in seen {
            assert_eq!(payload.content_type.as_str(), Encryption::CONTENT_TYPE, "{backend:?}");
            assert!(!payload.bytes.windows(6).any(|window| window == b"secret"), "{backend:?}");
        }
    }
}
