//! Reads that scan: who waits for them, and for how long.

use super::*;
use crate::service::load::scans::Scanning;

/// A server of two tenants over a store that scans four times at once, without asking for it.
fn load_of(load: LoadLimits) -> Load {
    Load::of(&ServerConfig { store: "postgres://somebody@somewhere/store".to_owned(), ..of_tenants(load) })
}

/// A scan, with its turn or without, yet.
type Scan = (BoxFuture<'static, Result<Option<Scanning>, Status>>, Option<Result<Option<Scanning>, Status>>);

fn scan(load: &Load, who: &str, about: &str) -> Scan {
    let (load, who, about) = (load.clone(), caller(who), namespace(about));
    let turn = async move { load.scan(Errand::Scan, &who, [&about].into_iter()).await };
    let mut turn = turn.map(|turn| turn.map_err(Refusal::into_status)).boxed();
    let done = (&mut turn).now_or_never();
    (turn, done)
}

#[track_caller]
fn assert_has_its_turn(scan: &Scan) {
    assert!(matches!(scan.1, Some(Ok(Some(_)))), "{:?}", scan.1);
}

#[tokio::test(start_paused = true)]
async fn scans_beyond_a_share_wait_behind_their_own_and_for_nobody_elses() {
    // By the share of a principal alone, and by that of a namespace alone.
    for (principal_share, namespace_share, others) in [(0.5, 1.0, "noisy"), (1.0, 0.5, "quiet")] {
        let load = load_of(LoadLimits { principal_share, namespace_share, ..LoadLimits::default() });
        let mut held: Vec<_> = (0..2).map(|_| scan(&load, "a", "noisy")).collect();
        held.iter().for_each(assert_has_its_turn);
        let mut waiting: Vec<_> = (0..20).map(|_| scan(&load, "a", "noisy")).collect();
        assert!(waiting.iter().all(|scan| scan.1.is_none()));
        let quiet = [scan(&load, "b", others), scan(&load, "b", others)];
        quiet.iter().for_each(assert_has_its_turn);
        // First come, first served.
        held.pop();
        assert!((&mut waiting[1].0).now_or_never().is_none());
        let first = (&mut waiting[0].0).now_or_never();
        assert!(matches!(first, Some(Ok(Some(_)))), "{first:?}");
        assert!((&mut waiting[1].0).now_or_never().is_none());
        // One that is given up leaves nothing, and what ends makes room.
        waiting.drain(..2);
        drop((first, held, quiet));
        assert!((&mut waiting[0].0).now_or_never().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_waits_for_a_second_is_refused_by_what_it_waits_for() {
    for (principal_share, namespace_share, limit) in
        [(0.5, 1.0, Some("principal_share")), (1.0, 0.5, Some("namespace_share")), (1.0, 1.0, None)]
    {
        let load = load_of(LoadLimits { principal_share, namespace_share, ..LoadLimits::default() });
        let held: Vec<_> = (0..4).map(|_| scan(&load, "a", "noisy")).collect();
        let turns = held.iter().filter(|scan| scan.1.is_some()).count();
        assert_eq!(turns, if limit.is_some() { 2 } else { 4 });
        let began = Instant::now();
        let refused = scan(&load, "a", "noisy").0.await.unwrap_err();
        assert_refused(&refused, if limit.is_some() { "LIMIT_REACHED" } else { "OVERLOADED" }, limit);
        // The timer's ticks are milliseconds.
        let waited = Duration::from_secs(1)..=Duration::from_millis(1001);
        assert!(waited.contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn what_does_not_scan_has_no_turn_and_neither_has_what_a_store_does_not_bound() {
    let load = load_of(LoadLimits::default());
    let unbounded =
        Load::of(&ServerConfig { store: "memory:".to_owned(), ..of_tenants(LoadLimits::default()) });
    let (who, about) = (caller("a"), namespace("noisy"));
    let reads =
        [Errand::Other(Patience::AtOnce), Errand::Other(Patience::Waits), Errand::Work, Errand::Start];
    for (load, errand) in reads.map(|errand| (&load, errand)).into_iter().chain([(&unbounded, Errand::Scan)])
    {
        let turns: Vec<_> = (0..100)
            .map(|_| load.scan(errand, &who, [&about].into_iter()).now_or_never().unwrap().unwrap())
            .collect();
        assert!(turns.iter().all(Option::is_none));
    }
}

#[tokio::test(start_paused = true)]
async fn pages_and_counts_have_turns_and_are_shown_while_they_wait_and_reads_by_id_have_none() {
    let services =
        services_of(&ServerConfig { store: "sqlite://two-readers.db".to_owned(), ..ServerConfig::default() });
    let load = &services.0.load;
    // One of two readers scans.
    let held = scan(load, "anyone", "default");
    assert_has_its_turn(&held);
    let run_id = services.start_workflow(a_start()).await.unwrap().into_inner().run_id;
    let about = || "default".to_owned();
    let get = v1::GetWorkflowRequest { namespace: about(), run_id: run_id.clone(), ..Default::default() };
    services.get_workflow(Request::new(get)).await.unwrap();
    let list = v1::ListWorkflowsRequest { namespace: about(), ..Default::default() };
    let count = v1::CountWorkflowsRequest { namespace: about(), ..Default::default() };
    let attempts = v1::ListStepAttemptsRequest { namespace: about(), run_id, ..Default::default() };
    let mut scans: Vec<BoxFuture<'_, bool>> = vec![
        services.list_workflows(Request::new(list)).map(|answer| answer.is_ok()).boxed(),
        services.count_workflows(Request::new(count)).map(|answer| answer.is_ok()).boxed(),
        services.list_step_attempts(Request::new(attempts)).map(|answer| answer.is_ok()).boxed(),
        services.get_queue_depths(depths()).map(|answer| answer.is_ok()).boxed(),
    ];
    let waiting = scans.iter_mut().map(futures::FutureExt::now_or_never).collect::<Vec<_>>();
    assert_eq!(waiting, [None; 4]);
    let text = services.metrics().text().unwrap();
    assert!(text.contains("\nkagzi_requests_waiting{for=\"scan\"} 4\n"), "{text}");
    drop(held);
    assert_eq!(futures::future::join_all(scans).await, [true; 4]);
    let text = services.metrics().text().unwrap();
    assert!(text.contains("\nkagzi_requests_waiting{for=\"scan\"} 0\n"), "{text}");
}
