//! What was answered is over: nothing of it holds locks any more, and no answer mixes before and after.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;

use kagzi_core::{
    AttemptScope, BeginOutcome, CancelRun, CompleteRun, CompleteStep, DeleteFinished, ErrorScope, Lease,
    ListAttempts, OperationId, PageRequest, Payload, RequeueRun, StepId, Store, StoreError, Then, Timestamp,
};
use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use support::{begin, database, held, namespace};

async fn complete_run(store: &dyn Store, lease: &Lease) -> Result<(), StoreError> {
    let output = Payload::json("1");
    let complete = CompleteRun { lease: lease.clone(), output, operation: OperationId::generate() };
    store.complete_run(complete).await.map(drop)
}

/// Operations that are refused while `lease` is in force, each on a path of its own.
async fn refused(store: &dyn Store, lease: &Lease, which: u32) -> Result<(), StoreError> {
    let forged = Lease { worker_id: "another".parse().unwrap(), ..lease.clone() };
    let (namespace, run_id, operation) = (namespace(), lease.run_id, OperationId::generate());
    match which % 4 {
        0 => begin(store, &forged, 0).await.map(drop),
        1 => complete_run(store, &forged).await,
        2 => store.requeue(RequeueRun { namespace, run_id, operation }).await.map(drop),
        _ => {
            let complete = CompleteStep {
                lease: lease.clone(),
                step_id: StepId::new("never begun").unwrap(),
                attempt: 1,
                output: Payload::json("1"),
                then: Then::Nothing,
                operation,
            };
            store.complete_step(complete).await.map(drop)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_operation_lets_go_of_the_run_before_it_answers() {
    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let lease = held(&store, 1).await.remove(0);
    let mut other = PgConnection::connect(&database.url()).await.unwrap();
    let id = lease.run_id.as_uuid();
    for round in 0..200 {
        refused(&store, &lease, round).await.unwrap_err();
        let lock = format!("SELECT FROM runs WHERE run_id = '{id}' FOR UPDATE NOWAIT");
        let locked = other.execute(AssertSqlSafe(lock)).await;
        assert!(locked.is_ok(), "round {round}: the run is still locked: {locked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_listed_beside_a_removal_are_there_or_their_run_is_not_found() {
    let database = database().await;
    let store = Arc::new(PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap());
    let mut listings = Vec::new();
    for lease in held(&*store, 30).await {
        assert!(matches!(begin(&*store, &lease, 0).await.unwrap(), BeginOutcome::Execute { .. }));
        complete_run(&*store, &lease).await.unwrap();
        let store = Arc::clone(&store);
        listings.push(tokio::spawn(async move {
            loop {
                let page = PageRequest::first(10);
                let (namespace, run_id) = (namespace(), lease.run_id);
                let request = ListAttempts { namespace, run_id, scope: AttemptScope::All, page };
                match store.list_attempts(&request).await {
                    Ok(page) => assert_eq!(page.items.len(), 1, "a run without its attempts"),
                    Err(StoreError::RunNotFound { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    let (before, states) = (Timestamp::MAX, Vec::new());
    let one = DeleteFinished { namespace: Some(namespace()), states, before, limit: 1 };
    while store.delete_finished(&one).await.unwrap() > 0 {}
    for listing in listings {
        listing.await.unwrap();
    }
}

/// As Citus tells it: the node was asked to commit, and did not answer.
const NOT_ANSWERED: &str = "
    CREATE FUNCTION is_not_answered() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not commit transaction for shard 102008 on at least one active node'
            USING ERRCODE = 'XX000';
    END $$;
    CREATE CONSTRAINT TRIGGER commit_is_not_answered AFTER UPDATE ON runs DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION is_not_answered()";

/// As Citus tells it: the node of a statement is not there.
const NOT_THERE: &str = "
    CREATE FUNCTION is_not_there() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'connection to the remote node n2:5432 failed' USING ERRCODE = '08006';
    END $$;
    CREATE TRIGGER node_is_not_there BEFORE INSERT ON steps FOR EACH ROW EXECUTE FUNCTION is_not_there()";

#[tokio::test]
async fn a_write_whose_node_is_not_there_is_about_a_part_of_the_store() {
    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let lease = held(&store, 1).await.remove(0);
    database.run(NOT_THERE).await.unwrap();
    // Its batch may have been done, and then there is nobody to ask.
    let error = begin(&store, &lease, 0).await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, StoreError::OutcomeUnknown { scope: ErrorScope::Part, .. }), "{told}");
    assert!(told.contains("n2:5432"), "{told}");
}

#[tokio::test]
async fn a_commit_that_a_node_did_not_answer_has_an_unknown_outcome() {
    let database = database().await;
    let store = PostgresStore::connect(PostgresOptions::new(database.url())).await.unwrap();
    let run_id = held(&store, 1).await.remove(0).run_id;
    database.run(NOT_ANSWERED).await.unwrap();
    let cancel = CancelRun {
        namespace: namespace(),
        run_id,
        reason: String::new(),
        operation: OperationId::generate(),
    };
    let error = store.cancel(cancel).await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{told}");
    assert!(told.contains("a node of the cluster was lost while cancelling a run"), "{told}");
    assert_eq!(error.scope(), Some(ErrorScope::Part));
}
