//! What costs a call, and whom.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_batch_costs_each_namespace_its_own_starts_and_one_larger_than_the_burst_is_told_so() {
    let rate = Some(RateLimit { per_second: 10, burst: 10 });
    let limits = LoadLimits { rate_per_namespace: rate, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(limits));
    let (noisy, quiet) = (namespace("noisy"), namespace("quiet"));
    let charge = |starts: &[&Namespace]| {
        let charged = load.charge(Errand::Start, &caller("x"), starts.iter().copied()).now_or_never();
        charged.expect("nobody waits")
    };
    charge(&[&noisy, &noisy, &quiet, &noisy, &noisy]).unwrap();
    charge(&[&noisy; 7]).unwrap_err();
    charge(&[&noisy; 6]).unwrap();
    let Err(Excess::ForNow(refusal)) = charge(&[&noisy]) else { panic!("4 and 6 are all there is") };
    assert_refused(&refusal.into_status(), "LIMIT_REACHED", Some("rate_per_namespace"));
    charge(&[&quiet; 9]).unwrap();
    let Err(Excess::ForEver(error)) = charge(&[&noisy; 11]) else { panic!("it never fits") };
    let told = error.to_string();
    assert!(told.contains("at most 10 at once, the server's rate_per_namespace_burst"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_waits_for_work_waits_for_its_turn_and_no_other_call_does() {
    let rate = Some(RateLimit { per_second: 10, burst: 1 });
    let limits = LoadLimits { rate_per_namespace: rate, max_waits: 20, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(LoadLimits { namespace_share: 1.0, principal_share: 1.0, ..limits }));
    let (anyone, noisy) = (caller("anyone"), namespace("noisy"));
    let charge = |errand| load.charge(errand, &anyone, [&noisy].into_iter());
    let waits = Errand::Claim(Patience::Waits);
    charge(Errand::Start).await.unwrap();
    for errand in [Errand::Start, Errand::Claim(Patience::AtOnce), Errand::Other(Patience::Waits)] {
        charge(errand).now_or_never().expect("it is told at once").unwrap_err();
    }
    let began = Instant::now();
    charge(waits).await.unwrap();
    let its_turn = Duration::from_millis(100)..=Duration::from_millis(102);
    assert!(its_turn.contains(&began.elapsed()), "{:?}", began.elapsed());
    let began = Instant::now();
    let charged = futures::future::join_all((0..20).map(|_| charge(waits))).await;
    assert!(began.elapsed() <= TURN_WITHIN, "{:?}", began.elapsed());
    let granted = charged.iter().filter(|charged| charged.is_ok()).count();
    assert!((3..=5).contains(&granted), "{granted} in half a second, at ten a second");
    for refused in charged.into_iter().filter_map(Result::err) {
        let Excess::ForNow(refusal) = refused else { panic!("it fits") };
        assert_refused(&refusal.into_status(), "LIMIT_REACHED", Some("rate_per_namespace"));
    }
    let _held: Vec<_> = (0..20).map(|_| admit(&load, waits, "anyone", "noisy").unwrap()).collect();
    let Err(Excess::ForNow(refusal)) = charge(waits).now_or_never().unwrap() else { panic!("no place") };
    assert_refused(&refusal.into_status(), "OVERLOADED", None);
}

/// Services whose callers are all one principal, limited to some calls.
fn limited(burst: u32) -> Services {
    let rate = Some(RateLimit { per_second: 1, burst });
    let load = LoadLimits { rate_per_principal: rate, ..LoadLimits::default() };
    services_of(&ServerConfig { load, ..ServerConfig::default() })
}

#[tokio::test(start_paused = true)]
async fn starts_reads_and_polls_are_charged_and_what_finishes_work_is_not() {
    let services = limited(3);
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    services.start_workflow(a_start()).await.unwrap();
    services.get_queue_depths(depths()).await.unwrap();
    services.poll_activity(a_poll(Duration::ZERO)).await.unwrap();
    for refused in [
        services.start_workflow(a_start()).await.unwrap_err(),
        services.get_queue_depths(depths()).await.unwrap_err(),
        services.poll_activity(a_poll(Duration::ZERO)).await.unwrap_err(),
    ] {
        assert_refused(&refused, "LIMIT_REACHED", Some("rate_per_principal"));
        assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    }
    assert_counted(&services, "rate_per_principal", 3);

    let lease = Some(kagzi_sdk::wire::IntoWire::into_wire(lease));
    let beat = v1::Heartbeat { lease: lease.clone(), lease_length: None };
    for _ in 0..10 {
        let beats = v1::RecordHeartbeatRequest { heartbeats: vec![beat.clone()] };
        services.record_heartbeat(Request::new(beats)).await.unwrap();
    }
    let complete = v1::CompleteWorkflowRequest { lease, ..Default::default() };
    services.complete_workflow(Request::new(complete)).await.unwrap();

    tokio::time::advance(Duration::from_secs(1)).await;
    services.start_workflow(a_start()).await.unwrap();
    services.start_workflow(a_start()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_or_is_denied_costs_a_call_whatever_it_is_for() {
    let services = limited(3);
    let badly = || v1::PollActivityRequest { operation_id: "bad".to_owned(), ..Default::default() };
    let complete = || services.complete_workflow(Request::new(v1::CompleteWorkflowRequest::default()));
    let mut codes = Vec::new();
    codes.push(services.poll_activity(Request::new(badly())).await.unwrap_err().code());
    codes.push(complete().await.unwrap_err().code());
    let nobody = Origin::of(Caller::granted("nobody", "role = 'worker'\nnamespaces = ['other']"), None);
    let denied = async || {
        let read = Ok(namespace("default"));
        services.answer(&nobody, "GetQueueDepths", read, async |_| Ok::<_, StoreError>(())).await
    };
    for _ in 0..3 {
        codes.push(denied().await.unwrap_err().code());
    }
    codes.push(complete().await.unwrap_err().code());
    let (invalid, denied_code) = (Code::InvalidArgument, Code::PermissionDenied);
    assert_eq!(codes, [invalid, invalid, denied_code, denied_code, denied_code, invalid]);
    // They are told of a denial each time, and have nothing left for anything else.
    assert_eq!(denied().await.unwrap_err().code(), denied_code);
    let read = Ok(namespace("other"));
    let granted = services.answer(&nobody, "PollActivity", read, async |_| Ok::<_, StoreError>(()));
    let of_nobody = granted.await.unwrap_err();
    for refused in
        [complete().await.unwrap_err(), services.start_workflow(a_start()).await.unwrap_err(), of_nobody]
    {
        assert_refused(&refused, "LIMIT_REACHED", Some("rate_per_principal"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_opens_for_nothing_and_its_claims_are_charged_as_polls_are() {
    use v1::stream_work_request::Request as Ask;
    use v1::stream_work_response::Response as Answer;
    let services = limited(1);
    services.get_queue_depths(depths()).await.unwrap();
    let (requests, mut queue) = tokio::sync::mpsc::unbounded_channel();
    let ask = |id, request| {
        requests.send(Ok(v1::StreamWorkRequest { id, trace_context: None, request: Some(request) })).unwrap();
    };
    ask(
        0,
        Ask::Open(v1::OpenWork {
            namespace: "default".to_owned(),
            queues: vec!["q".to_owned()],
            worker_id: "w".to_owned(),
            ..Default::default()
        }),
    );
    let incoming = futures::stream::poll_fn(move |context| queue.poll_recv(context));
    let mut answers = services.open_stream(anyone(), incoming).await.unwrap();
    let take = || Ask::Take(v1::TakeRuns { limit: 1, ..Default::default() });
    ask(1, take());
    let refused = futures::StreamExt::next(&mut answers).await.unwrap().unwrap();
    let Some(Answer::Refused(refused)) = refused.response else { panic!("{refused:?}") };
    assert_eq!((refused.reason.as_str(), refused.code), ("LIMIT_REACHED", Code::ResourceExhausted.into()));
    assert_eq!(refused.retry_delay, Some(duration_to_wire(Duration::from_secs(1))));

    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let beat = v1::Heartbeat { lease: Some(kagzi_sdk::wire::IntoWire::into_wire(lease)), lease_length: None };
    ask(2, Ask::Heartbeat(v1::RecordHeartbeatRequest { heartbeats: vec![beat] }));
    let beaten = futures::StreamExt::next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(beaten.response, Some(Answer::Heartbeat(_))), "{beaten:?}");
    tokio::time::advance(Duration::from_secs(1)).await;
    ask(3, take());
    let taken = futures::StreamExt::next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(taken.response, Some(Answer::Runs(_))), "{taken:?}");
}

fn anyone() -> Origin {
    Origin::of(Caller::anyone(None), None)
}
