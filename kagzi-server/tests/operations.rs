//! The commands that work on a store without a server, over both databases.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    Claim, Heartbeat, Namespace, OperationId, Payload, QueueName, StartRun, Store as _, StoreError, WorkerId,
    WorkflowType,
};
use kagzi_proto::v1::StartWorkflowRequest;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_server::{Server, ServerConfig};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use kagzi_testkit::{PostgresServer, TestDatabase, http_get, postgres};
use serde_json::{Value, json};

fn kagzi(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

/// The program, told nothing by this test's surroundings.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    for variable in [
        "KAGZI_STORE",
        "KAGZI_STORE_CONNECTIONS",
        "KAGZI_STORE_PARTITIONS",
        "KAGZI_CONFIG",
        "KAGZI_MIGRATE",
        "KAGZI_AUDIT_LOG",
    ] {
        command.env_remove(variable);
    }
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a command says with `--json`, and how it ends.
fn answer(args: &[&str]) -> (Option<i32>, Value) {
    let output = kagzi(&[args, &["--json"]].concat());
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)));
    (output.status.code(), value)
}

/// What the doctor found in one matter.
fn found<'v>(answer: &'v Value, check: &str) -> &'v Value {
    let checks = answer["checks"].as_array().unwrap();
    checks.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("no {check} in {answer:#}"))
}

struct Sqlite {
    directory: tempfile::TempDir,
}

impl Sqlite {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.path("kagzi.db"))
    }
}

async fn database() -> TestDatabase {
    let server: &PostgresServer = postgres().await.unwrap();
    server.fresh_database().await.unwrap()
}

/// A store without a schema: dry run, migration, nothing more to do; the doctor before and after.
fn is_migrated_and_examined(url: &str, steps: &Value) {
    let newest = steps.as_array().unwrap().len();
    let (code, sick) = answer(&["doctor", "--store", url]);
    assert_eq!((code, &sick["verdict"]), (Some(1), &json!("fail")));
    assert_eq!(found(&sick, "schema")["verdict"], "fail");
    assert!(found(&sick, "schema")["remedy"].as_str().unwrap().contains("kagzi migrate"), "{sick:#}");

    let refused = kagzi(&["serve", "--listen", "127.0.0.1:0", "--store", url, "--migrate", "never"]);
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(told(&refused).contains("kagzi migrate"), "{}", told(&refused));

    // Twice: the first one has changed nothing, and neither has the server.
    for _ in 0..2 {
        let (code, plan) = answer(&["migrate", "--store", url, "--dry-run"]);
        assert_eq!((code, &plan["from"], &plan["to"]), (Some(0), &json!(0), &json!(newest)));
        assert_eq!((&plan["migrations"], &plan["dry_run"]), (steps, &json!(true)));
    }
    let (code, done) = answer(&["migrate", "--store", url]);
    assert_eq!(
        (code, &done["from"], &done["to"], &done["migrations"]),
        (Some(0), &json!(0), &json!(newest), steps)
    );
    let (code, again) = answer(&["migrate", "--store", url]);
    assert_eq!((code, &again["from"], &again["migrations"]), (Some(0), &json!(newest), &json!([])));

    let (code, well) = answer(&["doctor", "--store", url]);
    assert_eq!(code, Some(0), "{well:#}");
    for check in ["reach", "clock", "version", "schema", "indexes"] {
        assert_eq!(found(&well, check)["verdict"], "ok", "{well:#}");
    }
    let lines = kagzi(&["doctor", "--store", url]);
    let checks = well["checks"].as_array().unwrap().len();
    assert_eq!(String::from_utf8(lines.stdout).unwrap().lines().count(), checks, "one line a check");
}

#[test]
fn sqlite_is_migrated_when_told_and_examined() {
    let sqlite = Sqlite::new();
    let url = sqlite.url();
    is_migrated_and_examined(&url, &json!(["0001_runs_and_steps", "0002_ready_of_type", "0003_queues"]));
    let (_, well) = answer(&["doctor", "--store", &url]);
    for check in ["integrity", "durability", "log"] {
        assert_eq!(found(&well, check)["verdict"], "ok", "{well:#}");
    }
}

#[test]
fn who_only_looks_makes_no_file() {
    let sqlite = Sqlite::new();
    for args in [["doctor", "--store"].as_slice(), &["migrate", "--dry-run", "--store"]] {
        kagzi(&[args, &[&sqlite.url()]].concat());
        assert!(!std::fs::exists(sqlite.path("kagzi.db")).unwrap(), "{args:?}");
    }
}

#[test]
fn a_server_whose_store_stays_away_ends_when_it_has_waited_as_long_as_it_was_told() {
    let refused = |timeout: &str| {
        let output = kagzi(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "postgres://u@127.0.0.1:1/db",
            "--start-timeout",
            timeout,
        ]);
        assert_eq!(output.status.code(), Some(4), "{}", told(&output));
        told(&output)
    };
    let waited = refused("500ms");
    assert!(waited.contains("listening on ") && waited.contains("within start_timeout (500ms)"), "{waited}");
    assert!(waited.contains("the store does not open yet"), "{waited}");
    let at_once = refused("0s");
    assert!(!at_once.contains("listening on ") && at_once.contains("cannot be reached"), "{at_once}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_wait_for_a_database_that_does_not_exist_or_a_user_whom_it_does_not_know() {
    let database = database().await;
    let url = database.url();
    let user = url.split_once("://").unwrap().1.split([':', '@']).next().unwrap();
    for (url, expected) in [
        (url.replace(database.name(), "no_database_of_this_name"), "a database that exists"),
        (url.replacen(&format!("://{user}"), "://nobody_of_this_name", 1), "a user whom the server lets in"),
    ] {
        let args = ["serve", "--listen", "127.0.0.1:0", "--start-timeout", "20s", "--store", &url];
        let refused = kagzi(&args);
        assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
        assert!(told(&refused).contains(expected), "{}", told(&refused));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_migrated_when_told_and_examined() {
    let database = database().await;
    let url = database.url();
    let steps = json!(["0001_tables", "0002_functions", "0003_queues", "0004_look", "0005_cluster"]);
    is_migrated_and_examined(&url, &steps);
    let (_, well) = answer(&["doctor", "--store", &url]);
    assert_eq!(found(&well, "writable")["verdict"], "ok", "{well:#}");
    assert_eq!(found(&well, "connections")["verdict"], "ok", "{well:#}");
    assert_eq!(found(&well, "locks")["verdict"], "ok", "{well:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ails_postgres_is_told_with_what_mends_it() {
    let database = database().await;
    let url = database.url();
    answer(&["migrate", "--store", &url]);
    database
        .run("DROP INDEX runs_attention; ALTER TABLE steps SET (autovacuum_enabled = false)")
        .await
        .unwrap();
    database
        .run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'runs_ready'::regclass")
        .await
        .unwrap();
    let (code, sick) = answer(&["doctor", "--store", &url, "--store-connections", "1000"]);
    assert_eq!(code, Some(1));
    let indexes = found(&sick, "indexes");
    assert_eq!(indexes["verdict"], "fail", "{sick:#}");
    let remedy = indexes["remedy"].as_str().unwrap();
    assert!(
        remedy.contains("CREATE INDEX CONCURRENTLY runs_attention ON runs (attention_at, partition)"),
        "{remedy}"
    );
    assert!(remedy.contains("REINDEX INDEX CONCURRENTLY runs_ready;"), "{remedy}");
    assert_eq!(found(&sick, "connections")["verdict"], "fail", "{sick:#}");
    assert_eq!(found(&sick, "autovacuum")["verdict"], "warn", "{sick:#}");
    assert!(found(&sick, "autovacuum")["found"].as_str().unwrap().contains("steps"), "{sick:#}");

    database.run("SET enable_seqscan = on; CREATE INDEX runs_attention ON runs (attention_at, partition) WHERE attention_at IS NOT NULL; REINDEX INDEX runs_ready; ALTER TABLE steps RESET (autovacuum_enabled)").await.unwrap();
    let (code, well) = answer(&["doctor", "--store", &url]);
    assert_eq!(code, Some(0), "{well:#}");
    assert_eq!(found(&well, "indexes")["verdict"], "ok", "{well:#}");
}

/// Somebody makes an index without CONCURRENTLY, say.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_table_is_locked_a_server_is_not_ready_says_which_and_comes_back_by_itself() {
    let database = Arc::new(database().await);
    let config = ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        http_listen: Some("127.0.0.1:0".to_owned()),
        store: database.url(),
        health_interval: Duration::from_millis(20),
        ..ServerConfig::default()
    };
    let server = Server::bind(config).await.unwrap().spawn();
    let ready = async |status: &str| {
        let status = format!("HTTP/1.1 {status} ");
        let looking = async {
            while !http_get(server.http_addr().unwrap(), "/readyz").await.unwrap().starts_with(&status) {}
        };
        tokio::time::timeout(Duration::from_mins(1), looking).await.unwrap();
    };
    ready("200").await;
    let locking = {
        let database = Arc::clone(&database);
        tokio::spawn(async move {
            database.run("BEGIN; LOCK TABLE payloads IN SHARE MODE; SELECT pg_sleep(3600)").await
        })
    };
    ready("503").await;
    let channel = tonic::transport::Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
    let mut client = WorkflowServiceClient::new(channel);
    let start = StartWorkflowRequest {
        namespace: "default".to_owned(),
        queue: "q".to_owned(),
        workflow_type: "t".to_owned(),
        ..Default::default()
    };
    let refused = client.start_workflow(start.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("the table payloads is locked"), "{refused:?}");
    let (code, sick) = answer(&["doctor", "--store", &database.url()]);
    assert_eq!((code, &found(&sick, "locks")["verdict"]), (Some(1), &json!("fail")), "{sick:#}");
    database
        .run("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE mode = 'ShareLock' AND relation = 'payloads'::regclass")
        .await
        .unwrap();
    locking.await.unwrap().unwrap_err();
    ready("200").await;
    client.start_workflow(start).await.unwrap();
}

#[test]
fn a_store_out_of_reach_is_a_finding_and_a_wrong_url_a_mistake() {
    let (code, away) = answer(&["doctor", "--store", "postgres://u@127.0.0.1:1/db"]);
    assert_eq!((code, &found(&away, "reach")["verdict"]), (Some(1), &json!("fail")));
    assert_eq!(kagzi(&["doctor", "--store", "mysql://h/db"]).status.code(), Some(2));
}

#[test]
fn a_sqlite_store_is_backed_up_and_restored() {
    let sqlite = Sqlite::new();
    let (url, file) = (sqlite.url(), sqlite.path("backup.db"));
    answer(&["migrate", "--store", &url]);
    let (code, backup) = answer(&["backup", "--store", &url, "--to", &file]);
    assert_eq!((code, &backup["runs"], &backup["schema_version"]), (Some(0), &json!(0), &json!(3)));
    let again = kagzi(&["backup", "--store", &url, "--to", &file]);
    assert!(again.status.code() == Some(2) && told(&again).contains("exists"), "{}", told(&again));

    let refused = kagzi(&["restore", "--store", &url, "--from", &file]);
    assert!(refused.status.code() == Some(2) && told(&refused).contains("exists"), "{}", told(&refused));
    let (code, restored) = answer(&["restore", "--store", &url, "--from", &file, "--force"]);
    assert_eq!(code, Some(0));
    assert!(std::fs::exists(restored["put_aside"].as_str().unwrap()).unwrap());
    assert_eq!(answer(&["doctor", "--store", &url]).0, Some(0));

    let elsewhere = kagzi(&["backup", "--store", "postgres://u@127.0.0.1:1/db", "--to", &sqlite.path("x")]);
    assert!(
        elsewhere.status.code() == Some(2) && told(&elsewhere).contains("pg_dump"),
        "{}",
        told(&elsewhere)
    );
}

#[test]
fn what_changes_or_copies_a_store_is_on_record_where_there_is_one_and_not_done_off_it() {
    let sqlite = Sqlite::new();
    let (url, file, record) = (sqlite.url(), sqlite.path("backup.db"), sqlite.path("audit.jsonl"));
    let config = sqlite.path("kagzi.toml");
    std::fs::write(&config, format!("store = \"{url}\"\naudit_log = \"{record}\"\n")).unwrap();
    answer(&["migrate", "--dry-run", "--config", &config]);
    assert!(!std::fs::exists(&record).unwrap(), "it changes nothing");
    assert_eq!(answer(&["migrate", "--config", &config]).0, Some(0));
    assert_eq!(answer(&["backup", "--config", &config, "--to", &file]).0, Some(0));
    // By the option, too; what is refused is told with its reason.
    let refused = kagzi(&["restore", "--store", &url, "--from", &file, "--audit-log", &record]);
    assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
    assert_eq!(answer(&["restore", "--config", &config, "--from", &file, "--force"]).0, Some(0));
    let text = std::fs::read_to_string(&record).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told_of = |line: &Value| {
        let text = |key: &str| line[key].as_str().map(str::to_owned).unwrap_or_default();
        (text("method"), text("outcome"), text("file"))
    };
    let line =
        |method: &str, outcome: &str, file: &str| (method.to_owned(), outcome.to_owned(), file.to_owned());
    let expected = [
        line("kagzi migrate", "BEGINS", ""),
        line("kagzi migrate", "OK", ""),
        line("kagzi backup", "BEGINS", &file),
        line("kagzi backup", "OK", &file),
        line("kagzi restore", "BEGINS", &file),
        line("kagzi restore", "INVALID_ARGUMENT", &file),
        line("kagzi restore", "BEGINS", &file),
        line("kagzi restore", "OK", &file),
    ];
    assert_eq!(lines.iter().map(told_of).collect::<Vec<_>>(), expected, "{text}");
    for pair in lines.chunks(2) {
        assert_eq!(pair[0]["action"], pair[1]["action"], "{pair:?}");
        for line in pair {
            assert_eq!((line["store"].as_str(), line["credential"].as_str()), (Some(&*url), Some("machine")));
            assert!(line["time"].as_str().is_some() && line["principal"].as_str().is_some(), "{line}");
        }
    }
    // Where no record can be kept.
    #[cfg(target_os = "linux")]
    {
        let copy = sqlite.path("copy.db");
        let refused = kagzi(&["backup", "--store", &url, "--to", &copy, "--audit-log", "/dev/full"]);
        assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
        assert!(
            told(&refused).contains("/dev/full") && told(&refused).contains("nothing was done"),
            "{}",
            told(&refused)
        );
        assert!(!std::fs::exists(&copy).unwrap());
    }
}

/// What the page on operations has people run after they restored Postgres.
#[tokio::test(flavor = "multi_thread")]
async fn the_statement_for_a_restored_postgres_fences_off_who_held_a_lease() {
    let page = include_str!("../../docs/operations.md");
    let statement = &page[page.find("UPDATE runs").unwrap()..];
    let statement = &statement[..=statement.find(';').unwrap()];

    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let (namespace, queue) = (Namespace::new("n").unwrap(), QueueName::new("q").unwrap());
    let workflow = WorkflowType::new("w").unwrap();
    let start = StartRun::new(namespace.clone(), queue.clone(), workflow, Payload::json("1"));
    store.start(vec![start]).await.unwrap();
    let claim = Claim {
        namespace,
        queues: vec![queue],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: Duration::from_mins(1),
        limit: 1,
        steps_limit: 1,
        operation: OperationId::generate(),
    };
    let lease = store.claim(claim).await.unwrap().remove(0).lease.lease;
    let beat = || Heartbeat { lease: lease.clone(), lease_length: Duration::from_mins(2) };
    store.heartbeat(vec![beat()]).await.unwrap().remove(0).unwrap();
    database.run(statement).await.unwrap();
    let answer = store.heartbeat(vec![beat()]).await.unwrap().remove(0);
    assert!(matches!(answer, Err(StoreError::LeaseLost { .. })), "{answer:?}");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_moved_to_several_partitions_by_one_command() {
    let database = database().await;
    let (url, sign) = (database.url(), if database.url().contains('?') { '&' } else { '?' });
    let (old, new) = (format!("{url}{sign}schema=old"), format!("{url}{sign}schema=new&partitions=7"));
    let namespace = Namespace::new("default").unwrap();
    let start = || {
        let (queue, workflow) = (QueueName::new("q").unwrap(), WorkflowType::new("w").unwrap());
        StartRun::new(namespace.clone(), queue, workflow, Payload::json("1"))
    };
    let store = PostgresStore::connect(PostgresOptions::new(&old)).await.unwrap();
    let started = store.start((0..10).map(|_| start()).collect()).await.unwrap();
    let args = ["migrate-partitions", "--store", &old, "--to", &new];
    let refused = kagzi(&args);
    assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
    assert!(told(&refused).contains("stop every server"), "{}", told(&refused));
    store.close().await.unwrap();
    let moved = once_nobody_is_connected(&args);
    let moved: Value = serde_json::from_slice(&moved.stdout).unwrap_or_else(|_| panic!("{}", told(&moved)));
    assert_eq!((&moved["from_partitions"], &moved["partitions"]), (&json!(1), &json!(7)));
    assert_eq!((&moved["tables"][0]["table"], &moved["tables"][0]["rows"]), (&json!("runs"), &json!(10)));
    let store = PostgresStore::connect(PostgresOptions::new(&new)).await.unwrap();
    for one in started {
        store.get_run(&namespace, one.run_id).await.unwrap();
    }
    store.close().await.unwrap();
    let over = once_nobody_is_connected(&args);
    assert!(told(&over).contains("moved all runs of this schema"), "{}", told(&over));
    let sqlite = kagzi(&["migrate-partitions", "--store", "sqlite://never-made.db", "--to", &new]);
    assert_eq!(sqlite.status.code(), Some(2), "{}", told(&sqlite));
    assert!(told(&sqlite).contains("only a Postgres store has partitions"), "{}", told(&sqlite));
}

/// What a command says with `--json` once the server has noticed that connections were closed, which it does a moment later.
fn once_nobody_is_connected(args: &[&str]) -> Output {
    loop {
        let output = kagzi(&[args, &["--json"]].concat());
        if !told(&output).contains("stop every server") {
            return output;
        }
    }
}

#[test]
fn who_migrates_or_examines_is_told_which_store_is_meant_and_that_it_is_the_default() {
    let sqlite = Sqlite::new();
    let directory = std::fs::canonicalize(sqlite.directory.path()).unwrap();
    let place = directory.join("kagzi.db");
    std::fs::write(sqlite.path("kagzi.toml"), "audit_log = \"audit.jsonl\"\n").unwrap();
    let by_default = |args: &[&str]| {
        let mut command = command();
        told(&command.args(args).args(["--config", "kagzi.toml"]).current_dir(&directory).output().unwrap())
    };
    let says = |said: &str, parts: &[&str]| {
        let store =
            said.lines().find(|line| line.contains("sqlite://kagzi.db")).unwrap_or_else(|| panic!("{said}"));
        for part in [&["the default", place.to_str().unwrap()], parts].concat() {
            assert!(store.contains(part), "{part}: {said}");
        }
    };
    says(&by_default(&["migrate", "--dry-run"]), &["there is no such file; it would be made"]);
    says(&by_default(&["doctor"]), &["ok    store"]);
    assert!(!place.exists());
    says(&by_default(&["migrate"]), &["a new file, made just now"]);
    let again = by_default(&["migrate"]);
    says(&again, &[]);
    assert!(!again.contains("new file") && again.contains("up to date"), "{again}");
    assert!(by_default(&["doctor", "--json"]).contains("\"store_source\": \"default\""));

    // One that is named is told without its password.
    let url = "postgres://ada:s3cret@127.0.0.1:1/db";
    let (_, away) = answer(&["doctor", "--store", url]);
    assert_eq!(away["store_source"], "named");
    assert_eq!(found(&away, "store")["found"], "postgres://ada:***@127.0.0.1:1/db");
    let (_, done) = answer(&["migrate", "--store", &sqlite.url()]);
    assert_eq!((&done["store"], &done["store_source"]), (&json!(sqlite.url()), &json!("named")));
    let lines = told(&kagzi(&["migrate", "--store", &sqlite.url()]));
    assert!(lines.starts_with(&format!("store {}\n", sqlite.url())), "{lines}");
}
