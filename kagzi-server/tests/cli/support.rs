//! A server, a worker, and the real binary that asks them.

use std::process::{Command, Output};

use kagzi_sdk::{Client, Context, RetryPolicy, Step, StepError, Worker, WorkflowError};
use kagzi_server::{Server, ServerConfig, ServerHandle};
use serde_json::Value;

/// A server in memory, and a worker that greets, or refuses to.
pub struct Shop {
    pub server: ServerHandle,
    pub worker: tokio::task::JoinHandle<()>,
}

pub async fn greet(context: Context, name: String) -> Result<String, WorkflowError> {
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
    pub async fn open() -> Self {
        let config = ServerConfig {
            listen: "127.0.0.1:0".to_owned(),
            http_listen: Some("127.0.0.1:0".to_owned()),
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
    pub async fn kagzi(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        command.args(["--server", &self.server.url()]).args(args);
        Ended(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
    }

    /// How many calls of a method the server has answered.
    pub async fn answered(&self, method: &str) -> u64 {
        let page = kagzi_testkit::http_get(self.server.http_addr().unwrap(), "/metrics").await.unwrap();
        let series = format!("kagzi_requests_total{{method=\"{method}\",code=\"OK\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    pub async fn start(&self, args: &[&str]) -> String {
        let ended = self.kagzi(&[&["start", "greet", "--json"], args].concat()).await;
        ended.json()["run_id"].as_str().unwrap().to_owned()
    }
}

/// How a command has ended, and what it said.
pub struct Ended(pub Output);

impl Ended {
    pub fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout)
            .unwrap_or_else(|_| panic!("{}{}", self.stdout(), self.stderr()))
    }
}

/// Nobody has started it.
pub const UNKNOWN_RUN: &str = "019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11";
