//! A store that fails, hangs and recovers when told to, in paused time.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::FutureExt as _;
use kagzi_core::memory::MemoryStore;
use kagzi_core::*;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;

use super::*;
use crate::health::Health;

const INTERVAL: Duration = Duration::from_secs(5);

/// What the database does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Weather {
    #[default]
    Fair,
    /// Every call is refused at once.
    Refuses,
    /// No call is answered.
    Hangs,
    /// Only what reads is answered: a full disk.
    RefusesWrites,
    /// Only what reads is answered, as far as the test asks: a part of the store is away.
    LacksAPart,
    /// The same, and the part was lost while it wrote.
    LosesAPart,
    /// Only what reads is answered, and what finds nothing to write: commits wait for a standby that has gone.
    HangsWrites,
    /// Only what reads is answered, and a look hears why: another process has locked the file.
    Locked,
}

const WHY: &str = "the test says so";

fn refused() -> StoreError {
    StoreError::unavailable(WHY, Duration::from_millis(500))
}

/// A store that follows the weather, and counts the calls that reach it.
#[derive(Debug, Default)]
struct Moody {
    inner: MemoryStore,
    weather: Mutex<Weather>,
    calls: Mutex<HashMap<&'static str, usize>>,
}

impl Moody {
    fn turn(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    fn calls(&self, name: &str) -> usize {
        self.calls.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    async fn endure(&self, name: &'static str, reads: bool) -> Result<(), StoreError> {
        *self.calls.lock().unwrap().entry(name).or_default() += 1;
        let weather = *self.weather.lock().unwrap();
        match weather {
            Weather::Fair => Ok(()),
            Weather::RefusesWrites
            | Weather::LacksAPart
            | Weather::LosesAPart
            | Weather::HangsWrites
            | Weather::Locked
                if reads =>
            {
                Ok(())
            }
            Weather::LacksAPart => Err(refused().within(ErrorScope::Part)),
            Weather::LosesAPart => Err(StoreError::outcome_unknown(WHY).within(ErrorScope::Part)),
            Weather::HangsWrites if ["claim", "reap", "delete_finished"].contains(&name) => Ok(()),
            Weather::Locked if name != "probe" => std::future::pending().await,
            Weather::Hangs | Weather::HangsWrites => std::future::pending().await,
            Weather::Refuses | Weather::RefusesWrites | Weather::Locked => Err(refused()),
        }
    }
}

macro_rules! moody {
    ($($reads:literal $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Moody {
            fn backend(&self) -> &'static str {
                "moody"
            }

            fn wake_hub(&self) -> &WakeHub {
                self.inner.wake_hub()
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.endure(stringify!($name), $reads).await?;
                self.inner.$name($($argument),*).await
            })*
        }
    };
}

moody! {
    true now() -> Timestamp;
    false probe() -> ();
    false start(batch: Vec<StartRun>) -> Vec<Started>;
    true get_run(namespace: &Namespace, run_id: RunId) -> RunRecord;
    true list_runs(request: &ListRuns) -> Page<Run>;
    true count_runs(namespace: &Namespace, filter: &RunFilter) -> u64;
    true list_attempts(request: &ListAttempts) -> Page<Attempt>;
    false cancel(request: CancelRun) -> CancelOutcome;
    false requeue(request: RequeueRun) -> RequeueOutcome;
    false claim(request: Claim) -> Vec<ClaimedRun>;
    false heartbeat(batch: Vec<Heartbeat>) -> Vec<Result<GrantedLease, StoreError>>;
    false begin_step(request: BeginStep) -> BeginOutcome;
    false complete_step(request: CompleteStep) -> CompleteStepOutcome;
    false fail_step(request: FailStep) -> FailureOutcome;
    false sleep(request: Sleep) -> SleepOutcome;
    false complete_run(request: CompleteRun) -> CompleteRunOutcome;
    false fail_run(request: FailRun) -> FailureOutcome;
    false release(request: ReleaseRun) -> ReleaseOutcome;
    false reap(limit: u32) -> Reaped;
    true next_due() -> NextDue;
    true queue_depths(namespace: &Namespace) -> Vec<QueueDepth>;
    false set_queue_state(request: SetQueueState) -> QueueOutcome;
    false delete_finished(request: &DeleteFinished) -> u64;
    false close() -> ();
}

struct Bench {
    moody: Arc<Moody>,
    store: SharedStore,
    breaker: Breaker,
    health: Health,
    metrics: Metrics,
    watch: Option<JoinHandle<()>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

fn bench() -> Bench {
    let moody = Arc::new(Moody::default());
    let below: SharedStore = Arc::clone(&moody) as SharedStore;
    let metrics = Metrics::new(&below);
    let breaker = Breaker::new(metrics.clone());
    let (reporter, _) = tonic_health::server::health_reporter();
    let health = Health::new(reporter, breaker.clone());
    let store = Guarded::over(below, breaker.clone());
    Bench { moody, store, breaker, health, metrics, watch: None }
}

/// With somebody who looks at the store.
fn watched() -> Bench {
    let mut bench = bench();
    let (health, below) = (bench.health.clone(), Arc::clone(&bench.moody) as SharedStore);
    bench.watch = Some(tokio::spawn(async move { health.watch(&below, INTERVAL).await }));
    bench
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn a_claim() -> Claim {
    Claim {
        namespace: namespace(),
        queues: vec![QueueName::new("empty").unwrap()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("w").unwrap(),
        lease_length: Duration::from_secs(30),
        limit: 1,
        steps_limit: 1,
        operation: OperationId::generate(),
    }
}

fn a_start() -> StartRun {
    let (queue, workflow) = (QueueName::new("q").unwrap(), WorkflowType::new("t").unwrap());
    StartRun::new(namespace(), queue, workflow, Payload::json("1"))
}

impl Bench {
    async fn start(&self) -> Result<Vec<Started>, StoreError> {
        self.store.start(vec![a_start()]).await
    }

    /// Starts until the breaker refuses without asking; how many calls that took.
    async fn fail_until_it_opens(&self) -> usize {
        let before = self.moody.calls("start");
        while !self.breaker.is_open() {
            self.start().await.unwrap_err();
        }
        self.moody.calls("start") - before
    }

    fn figure(&self, series: &str) -> String {
        let text = self.metrics.text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("kagzi_{series} ")));
        line.unwrap_or_else(|| panic!("{series} in {text}")).to_owned()
    }
}

fn retry_after<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> Duration {
    match answer {
        Err(StoreError::Unavailable { retry_after, .. }) => retry_after,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn it_opens_after_failures_in_a_row_and_then_refuses_at_once_with_a_delay() {
    let bench = bench();
    bench.moody.turn(Weather::Refuses);
    assert_eq!(bench.fail_until_it_opens().await, FAILURES as usize);
    let asked = bench.moody.calls("start");
    let before = Instant::now();
    for _ in 0..10 {
        let delay = retry_after(bench.start().await);
        assert!((SHORTEST_RETRY..=FIRST_DELAY).contains(&delay), "{delay:?}");
    }
    assert_eq!((bench.moody.calls("start"), before.elapsed()), (asked, Duration::ZERO), "nobody was asked");
    assert_eq!(bench.figure("breaker_state{state=\"open\"}"), "1");
    assert_eq!(bench.figure("breaker_state{state=\"closed\"}"), "0");
    assert_eq!(bench.figure("breaker_opened_total"), "1");
    assert_eq!(bench.figure("breaker_refusals_total"), "10");
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_not_in_a_row_and_refusals_that_are_answers_leave_it_closed() {
    let bench = bench();
    for _ in 0..3 * FAILURES {
        for _ in 1..FAILURES {
            bench.moody.turn(Weather::Refuses);
            bench.start().await.unwrap_err();
        }
        bench.moody.turn(Weather::Fair);
        bench.start().await.unwrap();
        // A run that does not exist is an answer, however often.
        bench.store.get_run(&namespace(), a_start().run_id()).await.unwrap_err();
    }
    assert!(!bench.breaker.is_open());
}

#[tokio::test(start_paused = true)]
async fn one_look_passes_after_each_delay_and_the_first_that_succeeds_closes_it() {
    let bench = watched();
    bench.moody.turn(Weather::Refuses);
    bench.fail_until_it_opens().await;
    let looks = bench.moody.calls("probe");
    let opened = Instant::now();
    let mut delays = Vec::new();
    for look in 1..=6 {
        let before = Instant::now();
        while bench.moody.calls("probe") < looks + look {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        delays.push(before.elapsed());
        assert!(bench.breaker.is_open());
    }
    assert!(delays[0] <= FIRST_DELAY + Duration::from_millis(2), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= LONGEST_DELAY + Duration::from_millis(2)), "{delays:?}");
    assert!(delays[5] >= LONGEST_DELAY / 2, "{delays:?}");
    let asked = bench.moody.calls("start");
    bench.start().await.unwrap_err();
    assert_eq!(bench.moody.calls("start"), asked, "only looks pass");

    bench.moody.turn(Weather::Fair);
    while bench.breaker.is_open() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(opened.elapsed() < Duration::from_secs(12));
    bench.start().await.unwrap();
    assert_eq!(bench.figure("breaker_state{state=\"closed\"}"), "1");
    assert_eq!(bench.figure("breaker_opened_total"), "1");
}

#[tokio::test(start_paused = true)]
async fn while_a_look_is_under_way_it_is_half_open_and_lets_nobody_else_pass() {
    let bench = watched();
    bench.moody.turn(Weather::Refuses);
    bench.fail_until_it_opens().await;
    bench.moody.turn(Weather::Hangs);
    let looks = bench.moody.calls("probe");
    while bench.moody.calls("probe") == looks {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(bench.figure("breaker_state{state=\"half_open\"}"), "1");
    let asked = bench.moody.calls("start");
    assert_eq!(retry_after(bench.start().await), SHORTEST_RETRY);
    assert_eq!((bench.moody.calls("start"), bench.moody.calls("probe")), (asked, looks + 1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_store_that_hangs_are_cut_off_within_a_second() {
    let bench = watched();
    // Not in doubt before, and not by chance at the time of a regular look.
    bench.start().await.unwrap();
    tokio::time::sleep(INTERVAL / 2).await;
    bench.moody.turn(Weather::Hangs);
    let before = Instant::now();
    let (namespace, all) = (namespace(), RunFilter::default());
    let (write, read) = tokio::join!(bench.start(), bench.store.count_runs(&namespace, &all));
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    // A write may have been done; its caller is told to send it again.
    assert!(matches!(write, Err(StoreError::OutcomeUnknown { .. })), "{write:?}");
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    assert!(bench.breaker.is_open());
    assert_eq!(bench.health.status(), ServingStatus::NotServing);

    bench.moody.turn(Weather::Fair);
    while bench.breaker.is_open() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.start().await.unwrap();
    assert_eq!(bench.health.status(), ServingStatus::Serving);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_keep_up_does_not_blame_the_store() {
    let bench = watched();
    tokio::time::sleep(INTERVAL * 3 / 2).await;
    assert_eq!(bench.health.status(), ServingStatus::Serving);
    let before = bench.moody.calls("probe");
    let looks_since = || bench.moody.calls("probe") - before;
    bench.moody.turn(Weather::Hangs);
    let mut waits = Box::pin(bench.start());
    assert!((&mut waits).now_or_never().is_none());
    tokio::time::sleep(STALLED + 2 * TICK).await;
    assert_eq!(looks_since(), 1, "a look is under way");
    // What should have been found out within a third of a second is found out after three, twice.
    for looks in 2..=3 {
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(!bench.breaker.is_open());
        tokio::time::sleep(2 * TICK).await;
        assert_eq!(looks_since(), looks, "it is looked at again");
    }
    // A third time is not by chance.
    tokio::time::advance(Duration::from_secs(3)).await;
    tokio::task::yield_now().await;
    assert!(bench.breaker.is_open());
    waits.await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn one_call_that_takes_long_is_waited_for_while_the_store_answers_others() {
    let bench = watched();
    bench.moody.turn(Weather::Hangs);
    let mut slow = Box::pin(bench.start());
    assert!((&mut slow).now_or_never().is_none());
    bench.moody.turn(Weather::Fair);
    let long = tokio::time::timeout(Duration::from_secs(20), slow).await;
    assert!(long.is_err(), "it waits as long as its caller does");
    assert_eq!(bench.figure("breaker_opened_total"), "0");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_only_reads_is_away_and_a_look_says_so() {
    let bench = watched();
    bench.moody.turn(Weather::RefusesWrites);
    bench.start().await.unwrap_err();
    // The service reports the call that failed.
    bench.health.doubt();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bench.breaker.is_open());
    assert_eq!(bench.health.status(), ServingStatus::NotServing);
    bench.moody.turn(Weather::Fair);
    tokio::time::sleep(LONGEST_DELAY).await;
    assert_eq!(bench.health.status(), ServingStatus::Serving);
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_writes_hang_is_away_though_it_answers_all_others() {
    let bench = watched();
    bench.start().await.unwrap();
    bench.moody.turn(Weather::HangsWrites);
    let store = Arc::clone(&bench.store);
    let others = tokio::spawn(async move {
        loop {
            store.claim(a_claim()).await.ok();
            store.next_due().await.ok();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let within = STALLED + Duration::from_secs(1);
    let cut_off = tokio::time::timeout(within, bench.start()).await.expect("somebody looks");
    assert!(matches!(cut_off, Err(StoreError::OutcomeUnknown { .. })), "{cut_off:?}");
    assert_eq!(bench.health.status(), ServingStatus::NotServing);
    retry_after(bench.start().await);
    // It stays so, however long the store reads.
    tokio::time::sleep(INTERVAL * 3).await;
    assert_eq!(bench.health.status(), ServingStatus::NotServing);
    bench.moody.turn(Weather::Fair);
    tokio::time::sleep(LONGEST_DELAY + Duration::from_secs(1)).await;
    assert_eq!(bench.health.status(), ServingStatus::Serving);
    bench.start().await.unwrap();
    others.abort();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_locked_while_it_reads_is_away_within_a_second_for_whoever_writes_or_looks_for_work()
{
    for starts in [true, false] {
        let bench = watched();
        bench.start().await.unwrap();
        tokio::time::sleep(INTERVAL / 2).await;
        let store = Arc::clone(&bench.store);
        let reads = tokio::spawn(async move {
            loop {
                store.next_due().await.ok();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        bench.moody.turn(Weather::Locked);
        let locked = Instant::now();
        let cut_off = async {
            if starts { bench.start().await.map(drop) } else { bench.store.claim(a_claim()).await.map(drop) }
        };
        let cut_off = tokio::time::timeout(Duration::from_secs(1), cut_off).await.expect("somebody looks");
        assert!(matches!(cut_off, Err(StoreError::OutcomeUnknown { .. })), "{cut_off:?}");
        while bench.health.status() == ServingStatus::Serving {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(locked.elapsed() < Duration::from_secs(1));
        }
        bench.moody.turn(Weather::Fair);
        tokio::time::sleep(LONGEST_DELAY).await;
        assert_eq!(bench.health.status(), ServingStatus::Serving);
        reads.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_calls_find_out_while_a_look_is_under_way_is_told_at_once() {
    let bench = watched();
    bench.moody.turn(Weather::Hangs);
    let looks = bench.moody.calls("probe");
    bench.health.doubt();
    while bench.moody.calls("probe") == looks {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.moody.turn(Weather::Refuses);
    let before = Instant::now();
    bench.fail_until_it_opens().await;
    while bench.health.status() != ServingStatus::NotServing {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(before.elapsed() < Duration::from_millis(10), "nobody waits for the look");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_nobody_writes_to_is_asked_whether_it_would_take_a_write() {
    let bench = watched();
    let mut looks = Vec::new();
    for weather in [Weather::Fair, Weather::RefusesWrites] {
        bench.moody.turn(weather);
        tokio::time::sleep(2 * INTERVAL).await;
        looks.push((bench.moody.calls("probe"), bench.health.status()));
    }
    assert_eq!(looks[0].1, ServingStatus::Serving);
    assert!(looks[0].0 >= 1, "{looks:?}");
    assert_eq!(looks[1].1, ServingStatus::NotServing);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_written_to_is_not_asked_for_a_write_of_the_server() {
    let bench = watched();
    for _ in 0..20 {
        bench.start().await.unwrap();
        tokio::time::sleep(INTERVAL / 4).await;
    }
    assert_eq!(bench.moody.calls("probe"), 0);
    assert!(bench.moody.calls("next_due") >= 4);
}

#[tokio::test(start_paused = true)]
async fn what_a_part_of_the_store_took_along_refuses_nobody_else() {
    let bench = watched();
    for weather in [Weather::LacksAPart, Weather::LosesAPart] {
        bench.moody.turn(weather);
        for _ in 0..20 * FAILURES {
            bench.start().await.unwrap_err();
            assert!(!bench.breaker.is_open(), "{weather:?}");
        }
    }
    bench.moody.turn(Weather::RefusesWrites);
    assert_eq!(
        bench.fail_until_it_opens().await,
        FAILURES as usize,
        "the rest of the store may be away as ever"
    );
}
