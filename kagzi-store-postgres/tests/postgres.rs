//! What is Postgres' own; the rules that all backends share are the suite's.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{
    Claim, ErrorScope, ManualClock, Namespace, OperationId, Payload, QueueChange, QueueName, SetQueueState,
    StartAt, StartRun, Store, StoreError, Topic, WorkerId, WorkflowType,
};
use kagzi_store_postgres::{Listen, Pooler, PostgresOptions, PostgresStore};
use kagzi_testkit::{ClusterOptions, PostgresCluster, TestDatabase, postgres};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

async fn database() -> TestDatabase {
    postgres().await.unwrap().fresh_database().await.unwrap()
}

fn start(queue: &str) -> StartRun {
    StartRun::new(
        Namespace::new("n").unwrap(),
        QueueName::new(queue).unwrap(),
        WorkflowType::new("w").unwrap(),
        Payload::json("1"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_servers_that_start_at_once_migrate_once() {
    let database = database().await;
    let openers: Vec<_> =
        (0..8).map(|_| tokio::spawn(PostgresStore::connect(PostgresOptions::new(database.url())))).collect();
    for opener in openers {
        let store = opener.await.unwrap().unwrap();
        store.start(vec![start("q")]).await.unwrap();
    }
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let row = connection.fetch_one("SELECT count(*), min(version) FROM kagzi_schema").await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);
    let runs = connection.fetch_one("SELECT count(*) FROM runs").await.unwrap();
    assert_eq!(runs.get::<i64, _>(0), 8);
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused_and_left_alone() {
    let database = database().await;
    drop(PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap());
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute("UPDATE kagzi_schema SET version = 1000").await.unwrap();
    let error = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap_err();
    assert!(matches!(error, StoreError::SchemaMismatch { found: 1000, .. }), "{error}");
    let row = connection.fetch_one("SELECT version FROM kagzi_schema").await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1000);
}

#[tokio::test]
async fn a_schema_with_tables_of_another_program_is_refused_and_left_alone() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute("CREATE TABLE runs (distance_km real)").await.unwrap();
    let error = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap_err();
    assert!(matches!(&error, StoreError::InvalidArgument { field, .. } if field == "schema"), "{error}");
    let text = error.to_string();
    assert!(text.contains("\"runs\"") && text.contains("?schema=kagzi"), "{text}");
    let ours = connection.fetch_one("SELECT to_regclass('kagzi_schema') IS NULL").await.unwrap();
    assert!(ours.get::<bool, _>(0), "nothing was made");
    let elsewhere = format!("{}?schema=kagzi", database.url());
    PostgresStore::connect(PostgresOptions::new(elsewhere)).await.unwrap();
}

/// What is logged at INFO and above on this thread while it lives.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
        tracing::subscriber::set_default(subscriber.finish())
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn of_eight_servers_one_says_that_it_migrated_and_none_repeats_what_postgres_chats() {
    let database = database().await;
    let log = Log::default();
    let guard = log.listen();
    // On the one thread of this runtime.
    let openers: Vec<_> =
        (0..8).map(|_| tokio::spawn(PostgresStore::connect(PostgresOptions::new(database.url())))).collect();
    for opener in openers {
        opener.await.unwrap().unwrap();
    }
    drop(guard);
    let text = log.text();
    assert_eq!(text.matches("schema migrated").count(), 1, "{text}");
    assert!(!text.contains("skipping"), "{text}");
}

#[tokio::test]
async fn a_server_that_does_not_flush_is_spoken_of_and_its_commits_are_made_durable_where_they_can_be() {
    let cluster = PostgresCluster::start(ClusterOptions {
        settings: vec!["fsync=off".to_owned(), "synchronous_commit=off".to_owned()],
        ..ClusterOptions::default()
    })
    .await
    .unwrap();
    let log = Log::default();
    let guard = log.listen();
    for pooler in [Pooler::None, Pooler::Transaction] {
        let options = PostgresOptions { pooler, ..PostgresOptions::new(cluster.url()) };
        let store = PostgresStore::connect(options).await.unwrap();
        let mut spy = PgConnection::connect(&cluster.url()).await.unwrap();
        spy.execute(
            "CREATE TABLE IF NOT EXISTS seen (setting text);
             CREATE OR REPLACE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
             CREATE OR REPLACE TRIGGER spy AFTER INSERT ON runs EXECUTE FUNCTION spy();",
        )
        .await
        .unwrap();
        store.start(vec![start("q")]).await.unwrap();
        let seen = spy.fetch_one("SELECT string_agg(setting, ' ') FROM seen").await.unwrap();
        assert!(!seen.get::<String, _>(0).contains("off"));
        store.close().await.unwrap();
    }
    drop(guard);
    let text = log.text();
    assert!(text.contains("NOT DURABLE") && text.contains("fsync"), "{text}");
    assert!(text.contains("synchronous_commit is off"), "{text}");
}

#[tokio::test]
async fn another_number_of_partitions_is_refused_and_none_takes_what_is_there() {
    let database = database().await;
    let seven = format!("{}?partitions=7", database.url());
    drop(PostgresStore::connect(PostgresOptions::new(seven)).await.unwrap());
    let three = format!("{}?partitions=3", database.url());
    let error = PostgresStore::connect(PostgresOptions::new(three)).await.unwrap_err();
    assert!(matches!(&error, StoreError::InvalidArgument { field, .. } if field == "partitions"), "{error}");
    let text = error.to_string();
    assert!(text.contains('7') && text.contains('3'), "it names both: {text}");
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    assert_eq!(store.partitions(), 7);
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable_and_the_error_says_what_to_do() {
    let port = kagzi_testkit::free_port().unwrap();
    let url = format!("postgres://nobody:secret@127.0.0.1:{port}/none");
    let error = PostgresStore::connect(PostgresOptions::new(url)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { retry_after, .. } if retry_after > Duration::ZERO));
    assert_eq!(error.scope(), Some(ErrorScope::Store));
    let text = error.to_string();
    assert!(text.contains("check that it runs") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_named_as_the_trouble() {
    let server = postgres().await.unwrap();
    let missing = server.url().replace("/postgres", "/kagzi_no_such_database").replacen(
        "//kagzi_no_such_database",
        "//postgres",
        1,
    );
    let error = PostgresStore::connect(PostgresOptions::new(missing)).await.unwrap_err();
    assert!(error.to_string().contains("a database that exists: create it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_database_wake_each_other() {
    let database = database().await;
    let here = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let there = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let start = start("q");
    let topic = Topic::Queue(start.namespace.clone(), start.queue.clone());
    let mut waiter = there.wake_hub().subscribe([topic]);
    let mut bystander =
        there.wake_hub().subscribe([Topic::Queue(start.namespace.clone(), QueueName::new("other").unwrap())]);
    here.start(vec![start]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), waiter.wait()).await.expect("it hears of the start");
    tokio::time::timeout(Duration::ZERO, bystander.wait()).await.expect_err("nobody else is woken");
    here.set_queue_state(change("q", QueueChange::Pause { reason: String::new() })).await.unwrap();
    here.set_queue_state(change("q", QueueChange::Resume)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), waiter.wait()).await.expect("it hears of the resumption");
    tokio::time::timeout(Duration::ZERO, bystander.wait()).await.expect_err("nobody else is woken");
}

fn change(queue: &str, change: QueueChange) -> SetQueueState {
    let (namespace, queue) = (Namespace::new("n").unwrap(), QueueName::new(queue).unwrap());
    SetQueueState { namespace, queue, change, operation: OperationId::generate() }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_one_database_do_not_meet() {
    let database = database().await;
    let connect = |schema: &str| {
        PostgresStore::connect(PostgresOptions {
            schema: Some(schema.to_owned()),
            ..PostgresOptions::new(database.url())
        })
    };
    let (one, two) = (connect("one").await.unwrap(), connect("two").await.unwrap());
    one.start(vec![start("q")]).await.unwrap();
    let namespace = Namespace::new("n").unwrap();
    assert_eq!(one.queue_depths(&namespace).await.unwrap().len(), 1);
    assert!(two.queue_depths(&namespace).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_without_listening_and_without_prepared_statements() {
    let database = database().await;
    let clock = ManualClock::default();
    for (listen, pooler) in [(Listen::Off, Pooler::None), (Listen::On, Pooler::Transaction)] {
        let options = PostgresOptions {
            listen,
            pooler,
            clock: Some(Arc::new(clock.clone())),
            ..PostgresOptions::new(database.url())
        };
        let store = PostgresStore::connect(options).await.unwrap();
        let started = store.start(vec![start("q")]).await.unwrap();
        let record = store.get_run(&Namespace::new("n").unwrap(), started[0].run_id).await.unwrap();
        assert_eq!(record.input, Payload::json("1"));
        store.close().await.unwrap();
        let error = store.start(vec![start("q")]).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_comes_back_costs_nothing_that_was_acknowledged() {
    let mut cluster = PostgresCluster::start(ClusterOptions::default()).await.unwrap();
    let options = PostgresOptions {
        acquire_timeout: Duration::from_millis(200),
        ..PostgresOptions::new(cluster.url())
    };
    let store = PostgresStore::connect(options).await.unwrap();
    let namespace = Namespace::new("n").unwrap();
    let before = store.start(vec![start("q")]).await.unwrap()[0].run_id;

    cluster.kill().unwrap();
    let during = start("q");
    let error = store.start(vec![during.clone()]).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = store.get_run(&namespace, before).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { retry_after, .. } if retry_after > Duration::ZERO));
    assert_eq!(error.scope(), Some(ErrorScope::Store));

    cluster.restart().await.unwrap();
    assert!(store.get_run(&namespace, before).await.is_ok(), "what was acknowledged is there");
    let again = store.start(vec![during.clone()]).await.unwrap();
    assert_eq!(again[0].run_id, during.run_id(), "the same operation can be sent again");
    assert_eq!(store.queue_depths(&namespace).await.unwrap()[0].pending, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_wakes_more_sleepers_of_several_queues_than_one_sweep_treats() {
    let database = database().await;
    let clock = ManualClock::default();
    let options =
        PostgresOptions { clock: Some(Arc::new(clock.clone())), ..PostgresOptions::new(database.url()) };
    let store = PostgresStore::connect(options).await.unwrap();
    let queues = ["a", "b", "c"];
    let second = Duration::from_secs(1);
    let sleepers = queues
        .iter()
        .flat_map(|queue| (0..600).map(|_| StartRun { start_at: StartAt::After(second), ..start(queue) }));
    store.start(sleepers.collect()).await.unwrap();
    clock.advance(second);
    let claim = Claim {
        namespace: Namespace::new("n").unwrap(),
        queues: queues.map(|queue| QueueName::new(queue).unwrap()).to_vec(),
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: Duration::from_mins(1),
        limit: 1,
        steps_limit: 10,
        operation: OperationId::generate(),
    };
    assert_eq!(store.claim(claim.clone()).await.unwrap().len(), 1);
    let pending: u64 = store.queue_depths(&claim.namespace).await.unwrap().iter().map(|of| of.pending).sum();
    assert_eq!(pending, 999, "a sweep treats the thousand runs that it may, and no more");
}
