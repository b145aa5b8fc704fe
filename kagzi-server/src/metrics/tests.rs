//! A load in process, and figures that agree with what was done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    BeginStep, CancelRun, Claim, ClaimedRun, CompleteRun, CompleteStep, DeleteFinished, FailRun, FailStep,
    Failure, Heartbeat, IdempotencyKey, Lease, ManualClock, Namespace, NextStep, OperationId, Payload,
    QueueName, RequeueRun, RetryPolicy, Rules, RunId, SharedStore, Sleep, SleepUntil, StartRun, StepId, Then,
    WorkerId, WorkflowType,
};

use super::*;

const LEASE: Duration = Duration::from_secs(30);

/// A counted store over a clock that is turned by hand.
struct Bench {
    store: SharedStore,
    metrics: Metrics,
    clock: ManualClock,
}

fn bench() -> Bench {
    let clock = ManualClock::default();
    let rules = Rules { poison_after: 2, ..Rules::default() };
    let inner: SharedStore = Arc::new(MemoryStore::new(Arc::new(clock.clone()), rules));
    let metrics = Metrics::new(&inner);
    Bench { store: Metered::over(inner, metrics.clone()), metrics, clock }
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn a_start(queue: &str) -> StartRun {
    let (queue, workflow) = (QueueName::new(queue).unwrap(), WorkflowType::new("t").unwrap());
    StartRun::new(namespace(), queue, workflow, Payload::json("1"))
}

fn step(name: &str) -> StepId {
    StepId::new(name).unwrap()
}

fn failure() -> Failure {
    Failure::retryable("broken", "it broke")
}

impl Bench {
    async fn start(&self, queue: &str) -> RunId {
        self.store.start(vec![a_start(queue)]).await.unwrap()[0].run_id
    }

    async fn claim(&self, queue: &str, limit: u32) -> Vec<ClaimedRun> {
        let claim = Claim {
            namespace: namespace(),
            queues: vec![QueueName::new(queue).unwrap()],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("w").unwrap(),
            lease_length: LEASE,
            limit,
            steps_limit: 10,
            operation: OperationId::generate(),
        };
        self.store.claim(claim).await.unwrap()
    }

    /// A run that was started and claimed.
    async fn held(&self, start: StartRun) -> Lease {
        let queue = start.queue.clone();
        self.store.start(vec![start]).await.unwrap();
        self.claim(queue.as_str(), 1).await.remove(0).lease.lease
    }

    async fn begin(&self, lease: &Lease, name: &str) {
        let begin = BeginStep {
            lease: lease.clone(),
            step: NextStep::new(step(name), 0),
            operation: OperationId::generate(),
        };
        self.store.begin_step(begin).await.unwrap();
    }

    async fn complete(&self, lease: &Lease, name: &str, then: Then) {
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id: step(name),
            attempt: 1,
            output: Payload::json("1"),
            then,
            operation: OperationId::generate(),
        };
        self.store.complete_step(complete).await.unwrap();
    }

    async fn fail_step(&self, lease: &Lease, name: &str) {
        let fail = FailStep {
            lease: lease.clone(),
            step_id: step(name),
            attempt: 1,
            failure: failure(),
            operation: OperationId::generate(),
        };
        self.store.fail_step(fail).await.unwrap();
    }

    /// Begins a step, and has the reaper find that it took too long.
    async fn time_out_a_step(&self, lease: Lease) {
        let timeout = Some(Duration::from_secs(1));
        let begin = BeginStep {
            lease,
            step: NextStep { timeout, ..NextStep::new(step("s"), 0) },
            operation: OperationId::generate(),
        };
        self.store.begin_step(begin).await.unwrap();
        self.clock.advance(Duration::from_secs(2));
        self.store.reap(100).await.unwrap();
    }

    fn scrape(&self) -> BTreeMap<String, f64> {
        scrape(&self.metrics)
    }
}

/// Every series with its value, as Prometheus would read it.
fn scrape(metrics: &Metrics) -> BTreeMap<String, f64> {
    let text = metrics.text().unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    series.collect()
}

#[track_caller]
fn assert_figures(seen: &BTreeMap<String, f64>, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        let got = seen.get(&format!("kagzi_{name}"));
        assert_eq!(got, Some(value), "kagzi_{name} in {seen:#?}");
    }
}

#[tokio::test]
async fn every_figure_of_runs_and_steps_agrees_with_what_was_done() {
    let bench = bench();
    // Three starts, one of them twice under its key.
    let keyed = StartRun { idempotency_key: Some(IdempotencyKey::new("k").unwrap()), ..a_start("a") };
    let again = StartRun { operation: OperationId::generate(), ..keyed.clone() };
    bench.store.start(vec![keyed, a_start("a")]).await.unwrap();
    bench.store.start(vec![again]).await.unwrap();
    bench.start("b").await;
    assert!(bench.claim("nothing here", 5).await.is_empty());

    // One run by steps to its end, one by a completion of its own.
    let claimed = bench.claim("a", 5).await;
    let (first, second) = (&claimed[0].lease.lease, &claimed[1].lease.lease);
    bench.begin(first, "one").await;
    bench.begin(first, "one").await;
    bench.complete(first, "one", Then::Begin(NextStep::new(step("two"), 1))).await;
    bench.begin(first, "one").await;
    bench.complete(first, "two", Then::CompleteRun(Payload::json("2"))).await;
    let output = Payload::json("2");
    let complete = CompleteRun { lease: second.clone(), output, operation: OperationId::generate() };
    bench.store.complete_run(complete).await.unwrap();

    // Writes and heartbeats of leases that are no more.
    let late = BeginStep {
        lease: first.clone(),
        step: NextStep::new(step("late"), 2),
        operation: OperationId::generate(),
    };
    bench.store.begin_step(late).await.unwrap_err();
    let beat = |lease: &Lease| Heartbeat { lease: lease.clone(), lease_length: LEASE };
    let third = bench.claim("b", 5).await.remove(0).lease.lease;
    bench.store.heartbeat(vec![beat(first), beat(&third), beat(second)]).await.unwrap();

    // A sleep, and a cancellation of the sleeper.
    let sleep = Sleep {
        lease: third.clone(),
        step_id: step("nap"),
        position: 0,
        until: SleepUntil::After(Duration::from_secs(5)),
        operation: OperationId::generate(),
    };
    bench.store.sleep(sleep).await.unwrap();
    let cancel = CancelRun {
        namespace: namespace(),
        run_id: third.run_id,
        reason: String::new(),
        operation: OperationId::generate(),
    };
    bench.store.cancel(cancel.clone()).await.unwrap();
    bench.store.cancel(CancelRun { operation: OperationId::generate(), ..cancel }).await.unwrap();

    assert_figures(
        &bench.scrape(),
        &[
            ("starts_total{namespace=\"n\",queue=\"a\",outcome=\"created\"}", 2.0),
            ("starts_total{namespace=\"n\",queue=\"a\",outcome=\"existing\"}", 1.0),
            ("starts_total{namespace=\"n\",queue=\"b\",outcome=\"created\"}", 1.0),
            ("claims_total{namespace=\"n\",outcome=\"taken\"}", 2.0),
            ("claims_total{namespace=\"n\",outcome=\"empty\"}", 1.0),
            ("runs_claimed_total{namespace=\"n\",queue=\"a\"}", 2.0),
            ("runs_claimed_total{namespace=\"n\",queue=\"b\"}", 1.0),
            ("runs_reclaimed_total", 0.0),
            ("step_begins_total{outcome=\"execute\"}", 2.0),
            ("step_begins_total{outcome=\"in_progress\"}", 1.0),
            ("step_begins_total{outcome=\"memoized\"}", 1.0),
            ("steps_total{outcome=\"completed\"}", 2.0),
            ("steps_total{outcome=\"slept\"}", 1.0),
            ("leases_lost_total{operation=\"begin_step\"}", 1.0),
            ("leases_lost_total{operation=\"heartbeat\"}", 2.0),
            ("leases_lost_total{operation=\"complete_step\"}", 0.0),
            ("runs_finished_total{state=\"completed\"}", 2.0),
            ("runs_finished_total{state=\"cancelled\"}", 1.0),
            ("runs_finished_total{state=\"failed\"}", 0.0),
            ("store_operations_in_flight", 0.0),
            ("store_operation_duration_seconds_count{operation=\"start\",outcome=\"ok\"}", 3.0),
            ("store_operation_duration_seconds_count{operation=\"begin_step\",outcome=\"ok\"}", 3.0),
            ("store_operation_duration_seconds_count{operation=\"begin_step\",outcome=\"refused\"}", 1.0),
            ("store_operation_duration_seconds_count{operation=\"complete_step\",outcome=\"ok\"}", 2.0),
            ("store_operation_duration_seconds_count{operation=\"heartbeat\",outcome=\"ok\"}", 1.0),
        ],
    );
}

#[tokio::test]
async fn every_retry_dead_letter_and_repair_is_counted_once_whoever_does_it() {
    let bench = bench();
    let once = || RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
    // A step that is tried again, and one that is not; a run likewise.
    let retried = bench.held(a_start("q")).await;
    bench.begin(&retried, "s").await;
    bench.fail_step(&retried, "s").await;
    let last = bench.held(StartRun { retry: Some(once()), ..a_start("q") }).await;
    bench.begin(&last, "s").await;
    bench.fail_step(&last, "s").await;
    let permanent = bench.held(a_start("q")).await;
    let fail = FailRun {
        lease: permanent.clone(),
        failure: Failure::non_retryable("no", "never"),
        operation: OperationId::generate(),
    };
    bench.store.fail_run(fail).await.unwrap();
    let requeue =
        RequeueRun { namespace: namespace(), run_id: last.run_id, operation: OperationId::generate() };
    bench.store.requeue(requeue).await.unwrap();
    assert_figures(
        &bench.scrape(),
        &[
            ("retries_total{of=\"step\"}", 1.0),
            ("retries_total{of=\"run\"}", 0.0),
            ("steps_total{outcome=\"failed\"}", 2.0),
            ("dead_letters_total{reason=\"retries_exhausted\"}", 1.0),
            ("dead_letters_total{reason=\"non_retryable\"}", 1.0),
            ("runs_finished_total{state=\"failed\"}", 2.0),
            ("runs_requeued_total", 1.0),
        ],
    );

    // Two leases expire: the reaper repairs one, a claim of its queue the other.
    bench.clock.advance(Duration::from_hours(1));
    bench.store.reap(100).await.unwrap();
    let (by_reaper, by_claim) = (bench.held(a_start("r")).await, bench.held(a_start("c")).await);
    bench.clock.advance(LEASE);
    assert_eq!(bench.claim("c", 1).await[0].run.run_id, by_claim.run_id);
    bench.store.reap(100).await.unwrap();
    assert_figures(
        &bench.scrape(),
        &[
            ("runs_repaired_total{repair=\"lease_expired\"}", 2.0),
            ("runs_repaired_total{repair=\"woken\"}", 1.0),
            ("runs_reclaimed_total", 1.0),
        ],
    );
    // And again: the second loss without a finished step is poison.
    assert_eq!(bench.claim("r", 1).await[0].run.run_id, by_reaper.run_id);
    bench.clock.advance(LEASE);
    assert!(bench.claim("c", 1).await.is_empty());
    bench.store.reap(100).await.unwrap();
    // A step that runs out of time, and a run.
    let slow = bench.held(StartRun { run_timeout: Some(LEASE * 10), ..a_start("t") }).await;
    bench.time_out_a_step(slow).await;
    assert_figures(&bench.scrape(), &[("retries_total{of=\"step\"}", 2.0)]);
    // And one whose only attempt does.
    let only = bench.held(StartRun { retry: Some(once()), ..a_start("o") }).await;
    bench.time_out_a_step(only).await;
    assert_figures(
        &bench.scrape(),
        &[
            ("retries_total{of=\"step\"}", 2.0),
            ("dead_letters_total{reason=\"retries_exhausted\"}", 2.0),
            ("runs_finished_total{state=\"failed\"}", 5.0),
        ],
    );
    bench.clock.advance(LEASE * 10);
    bench.store.reap(100).await.unwrap();
    let seen = bench.scrape();
    assert_figures(
        &seen,
        &[
            ("runs_repaired_total{repair=\"lease_expired\"}", 2.0),
            ("runs_repaired_total{repair=\"poisoned\"}", 2.0),
            ("runs_repaired_total{repair=\"step_timed_out\"}", 2.0),
            ("runs_repaired_total{repair=\"run_timed_out\"}", 1.0),
            ("steps_total{outcome=\"timed_out\"}", 2.0),
            ("dead_letters_total{reason=\"poison\"}", 2.0),
            ("dead_letters_total{reason=\"run_timeout\"}", 1.0),
            ("runs_finished_total{state=\"failed\"}", 6.0),
            ("runs_reclaimed_total", 2.0),
        ],
    );

    let delete = DeleteFinished {
        namespace: None,
        states: Vec::new(),
        before: bench.store.now().await.unwrap().saturating_add(LEASE),
        limit: 100,
    };
    let deleted = bench.store.delete_finished(&delete).await.unwrap();
    assert_eq!(deleted, 5, "all that failed but the one that was requeued");
    assert_figures(&bench.scrape(), &[("runs_deleted_total", 5.0)]);
}

#[tokio::test(start_paused = true)]
async fn queues_are_shown_as_they_are_and_not_at_all_while_the_store_is_away() {
    let bench = bench();
    let namespaces = [namespace()];
    bench.start("q").await;
    bench.clock.advance(Duration::from_secs(7));
    bench.start("q").await;
    bench.held(a_start("held")).await;
    let second = Duration::from_secs(1);
    bench.metrics.collect_now(&bench.store, &namespaces, second).await;
    let runs = |queue: &str, state: &str| {
        format!("queue_runs{{namespace=\"n\",queue=\"{queue}\",state=\"{state}\"}}")
    };
    let oldest = "queue_oldest_due_age_seconds{namespace=\"n\",queue=\"q\"}";
    assert_figures(
        &bench.scrape(),
        &[
            (&runs("q", "pending"), 2.0),
            (&runs("held", "pending"), 0.0),
            (&runs("held", "running"), 1.0),
            (oldest, 7.0),
            ("reaper_lag_seconds", 0.0),
            ("collect_failures_total", 0.0),
        ],
    );

    bench.claim("q", 10).await;
    bench.clock.advance(LEASE + Duration::from_secs(3));
    bench.metrics.collect_now(&bench.store, &namespaces, second).await;
    assert_figures(&bench.scrape(), &[(oldest, 0.0), ("reaper_lag_seconds", 3.0)]);

    bench.store.close().await.unwrap();
    bench.metrics.collect_now(&bench.store, &namespaces, second).await;
    let seen = bench.scrape();
    assert_figures(&seen, &[("collect_failures_total", 1.0)]);
    let shown = |name: &str| seen.keys().any(|series| series.starts_with(name));
    assert!(!shown("kagzi_queue_") && !shown("kagzi_reaper_lag"), "{seen:#?}");
    assert_figures(
        &seen,
        &[("store_operation_duration_seconds_count{operation=\"next_due\",outcome=\"unavailable\"}", 1.0)],
    );
}

#[tokio::test]
async fn an_operation_whose_caller_goes_away_is_counted_as_dropped() {
    let bench = bench();
    let underway = bench.metrics.0.operations.begin(operation::Operation::Claim);
    assert_figures(&bench.scrape(), &[("store_operations_in_flight", 1.0)]);
    drop(underway);
    assert_figures(
        &bench.scrape(),
        &[
            ("store_operations_in_flight", 0.0),
            ("store_operation_duration_seconds_count{operation=\"claim\",outcome=\"dropped\"}", 1.0),
        ],
    );
}

#[test]
fn whoever_is_not_let_in_is_counted_by_the_reason() {
    use kagzi_sdk::wire::error::{
        limit_reached, namespace_not_found, overloaded, permission_denied, request_timeout, shutting_down,
        unauthenticated,
    };
    let bench = bench();
    let refusals = [
        ("overloaded", overloaded(LEASE)),
        ("rate_per_principal", limit_reached("rate_per_principal", LEASE)),
        ("rate_per_namespace", limit_reached("rate_per_namespace", LEASE)),
        ("rate_auth_failures", limit_reached("rate_auth_failures", LEASE)),
        ("rate_on_record", limit_reached("rate_on_record", LEASE)),
        ("principal_share", limit_reached("principal_share", LEASE)),
        ("namespace_share", limit_reached("namespace_share", LEASE)),
        ("max_bytes_in_flight", limit_reached("max_bytes_in_flight", LEASE)),
        ("request_body_timeout", request_timeout(LEASE)),
        ("shutting_down", shutting_down(LEASE)),
        ("unknown_namespace", namespace_not_found("n")),
        ("permission_denied", permission_denied("StartWorkflow")),
        ("unauthenticated", unauthenticated("none")),
    ];
    for (_, refusal) in &refusals {
        bench.metrics.refused(refusal);
    }
    bench.metrics.refused_connection();
    // What the store says no to was let in.
    let answer = kagzi_core::StoreError::BadCursor { got: "another" };
    bench.metrics.refused(&kagzi_sdk::wire::error::Refusal::from(&answer));
    let seen = bench.scrape();
    assert_eq!(
        seen.keys().filter(|name| name.starts_with("kagzi_refusals_total")).count(),
        refusals.len() + 1
    );
    for reason in refusals.iter().map(|(reason, _)| *reason).chain(["connections"]) {
        assert_figures(&seen, &[(&format!("refusals_total{{reason=\"{reason}\"}}"), 1.0)]);
    }
}

#[test]
fn every_name_is_of_the_form_that_prometheus_asks_for() {
    let bench = bench();
    for Described { name, kind, help, .. } in &bench.metrics.0.described {
        assert!(
            name.starts_with("kagzi_") && name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()),
            "{name}"
        );
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        assert!(!help.is_empty() && !help.ends_with('.'), "{name}: {help}");
    }
}

/// The table of the documentation, as it should be.
fn table() -> String {
    let metrics = bench().metrics;
    let rows = metrics.0.described.iter().map(|Described { name, kind, labels, help }| {
        let labels = labels.join(", ");
        format!("| `{name}` | {kind} | {labels} | {help} |\n")
    });
    rows.collect()
}

#[test]
fn the_documentation_lists_every_metric_and_no_other() {
    let documentation = include_str!("../../../docs/operations.md");
    let rows: String =
        documentation.split_inclusive('\n').filter(|line| line.starts_with("| `kagzi_")).collect();
    let expected = table();
    assert!(rows == expected, "docs/operations.md should have these rows:\n{expected}");
}
