//! The places of what is in flight or open: who finds one.

use super::*;

#[test]
fn streams_take_places_of_their_principal_alone_for_as_long_as_they_are_open() {
    let load = Load::of(&of_tenants(LoadLimits { max_streams: 6, ..LoadLimits::default() }));
    let open = |who| load.stream(&caller(who)).map_err(Refusal::into_status);
    let mut held: Vec<_> = (0..3).map(|_| open("a").unwrap()).collect();
    let refused = open("a").unwrap_err();
    assert_refused(&refused, "LIMIT_REACHED", Some("principal_share"));
    let others: Vec<_> = (0..3).map(|_| open("b").unwrap()).collect();
    assert_refused(&open("c").unwrap_err(), "OVERLOADED", None);
    held.pop();
    open("a").unwrap();
    drop(others);
    open("c").unwrap();
    // Where nobody is asked who they are, there is one principal, who may have all.
    let load = Load::of(&ServerConfig {
        load: LoadLimits { max_streams: 2, ..LoadLimits::default() },
        ..ServerConfig::default()
    });
    let anyone = Caller::anyone(None);
    let _held = (load.stream(&anyone).unwrap(), load.stream(&anyone).unwrap());
    assert_refused(&load.stream(&anyone).unwrap_err().into_status(), "OVERLOADED", None);
}

#[test]
fn more_starts_than_it_bears_are_refused_with_a_delay() {
    // Nobody is asked who they are, and there is one namespace: it takes all places.
    let load = Load::of(&ServerConfig::default());
    let anyone = |errand| admit(&load, errand, "anyone", "default");
    let mut starts: Vec<_> = (0..2048).map(|_| anyone(Errand::Start).unwrap()).collect();
    let refused = anyone(Errand::Start).unwrap_err();
    assert_refused(&refused, "OVERLOADED", None);
    assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    assert!(write(&load, "anyone", "default", 1).1.is_some());
    anyone(Errand::Other(Patience::AtOnce)).unwrap();
    starts.pop();
    anyone(Errand::Start).unwrap();
}

#[test]
fn one_principal_takes_its_share_of_each_kind_of_places_and_others_find_room() {
    let limits =
        LoadLimits { max_starts_in_flight: 8, max_reads_in_flight: 4, max_waits: 6, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(LoadLimits { namespace_share: 1.0, ..limits }));
    let kinds =
        [(Errand::Start, 4), (Errand::Other(Patience::AtOnce), 2), (Errand::Other(Patience::Waits), 3)];
    for (errand, share) in kinds {
        let held: Vec<_> = (0..share).map(|_| admit(&load, errand, "noisy", "default").unwrap()).collect();
        let refused = admit(&load, errand, "noisy", "default").unwrap_err();
        assert_refused(&refused, "LIMIT_REACHED", Some("principal_share"));
        // What finishes work is never refused, and opens no account.
        assert!(write(&load, "noisy", "default", 1).1.is_some());
        admit(&load, Errand::Open, "noisy", "default").unwrap();
        let others: Vec<_> = (0..share).map(|_| admit(&load, errand, "quiet", "default").unwrap()).collect();
        let refused = admit(&load, errand, "third", "default").unwrap_err();
        assert_refused(&refused, "OVERLOADED", None);
        drop((held, others));
        admit(&load, errand, "noisy", "default").unwrap();
    }
}

#[test]
fn a_namespace_takes_its_share_whoever_its_callers_are() {
    let limits = LoadLimits { max_waits: 4, namespace_share: 0.5, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(LoadLimits { principal_share: 1.0, ..limits }));
    let polls = Errand::Claim(Patience::Waits);
    let _held = (admit(&load, polls, "a", "noisy").unwrap(), admit(&load, polls, "b", "noisy").unwrap());
    let refused = admit(&load, polls, "c", "noisy").unwrap_err();
    assert_refused(&refused, "LIMIT_REACHED", Some("namespace_share"));
    admit(&load, polls, "c", "quiet").unwrap();
    // What was refused holds no place of its principal either.
    for _ in 0..10 {
        admit(&load, polls, "c", "noisy").unwrap_err();
    }
    admit(&load, polls, "c", "quiet").unwrap();
}

#[tokio::test(start_paused = true)]
async fn so_many_polls_wait_and_one_more_is_refused() {
    let load = LoadLimits { max_waits: 2, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let polls: Vec<_> = (0..2)
        .map(|_| {
            let polling = services.clone();
            tokio::spawn(async move { polling.poll_activity(a_poll(Duration::from_hours(1))).await })
        })
        .collect();
    while !anyone_polls(&services) {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    let refused = services.poll_activity(a_poll(Duration::from_hours(1))).await.unwrap_err();
    assert_refused(&refused, "OVERLOADED", None);
    assert_counted(&services, "overloaded", 1);
    // One that does not wait needs no place among them.
    services.poll_activity(a_poll(Duration::ZERO)).await.unwrap();
    for poll in polls {
        poll.abort();
        poll.await.unwrap_err();
    }
    let again = services.clone();
    let again = tokio::spawn(async move { again.poll_activity(a_poll(Duration::from_secs(1))).await });
    again.await.unwrap().unwrap();
}
