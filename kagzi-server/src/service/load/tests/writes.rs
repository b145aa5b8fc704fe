//! The writes of workers: who waits for them.

use super::*;

#[tokio::test]
async fn claims_wait_while_many_writes_are_in_flight_and_writes_do_not() {
    let load = Load::of(&ServerConfig::default());
    let (anyone, default) = (Caller::anyone(None), namespace("default"));
    let about = || [&default].into_iter();
    let mut writes = Vec::new();
    for _ in 0..=1024 {
        writes.push(load.turn(Errand::Work, &anyone, about()).now_or_never().unwrap());
    }
    let polls = Errand::Claim(Patience::Waits);
    let mut claim = std::pin::pin!(load.admit(polls, &anyone, about()));
    assert!(claim.as_mut().now_or_never().is_none());
    writes.pop();
    assert!(claim.as_mut().now_or_never().is_none(), "still too many");
    writes.pop();
    claim.now_or_never().unwrap().unwrap();
}

#[tokio::test]
async fn who_writes_without_end_keeps_nobody_else_from_claiming() {
    // By its principal's share alone, and by its namespace's alone.
    for (principal_share, namespace_share, others) in [(0.5, 1.0, "noisy"), (1.0, 0.5, "quiet")] {
        let load =
            Load::of(&of_tenants(LoadLimits { principal_share, namespace_share, ..LoadLimits::default() }));
        let claims = |who: &'static str, about: &'static str| {
            let (who, about, load) = (caller(who), namespace(about), load.clone());
            async move {
                let claim = Errand::Claim(Patience::Waits);
                load.admit(claim, &who, [&about].into_iter()).await.map(drop).map_err(Refusal::into_status)
            }
        };
        let mut writes: Vec<_> = (0..5000).map(|_| write(&load, "a", "noisy", 1)).collect();
        claims("b", others).now_or_never().expect("it is not b who writes").unwrap();
        let mut own = std::pin::pin!(claims("a", "noisy"));
        assert!(own.as_mut().now_or_never().is_none(), "it waits for its own");
        writes.truncate(1023);
        own.now_or_never().unwrap().unwrap();
        // Two of them together are as many as there may be.
        let _more: Vec<_> = (0..512).map(|_| write(&load, "c", "default", 1)).collect();
        assert!(claims("b", "quiet").now_or_never().is_none());
        writes.truncate(511);
        claims("b", "quiet").now_or_never().unwrap().unwrap();
    }
}

#[tokio::test]
async fn writes_beyond_the_share_of_their_principal_wait_for_its_own_and_for_nobody_elses() {
    let limits = LoadLimits { max_writes_while_claiming: 8, ..LoadLimits::default() };
    for namespace_share in [0.5, 1.0] {
        let load = Load::of(&of_tenants(LoadLimits { namespace_share, ..limits.clone() }));
        // It does not help to spread them over namespaces.
        let mut held: Vec<_> = (0..4).map(|at| write(&load, "a", ["noisy", "quiet"][at % 2], 1)).collect();
        assert!(held.iter().all(|(_, done)| done.is_some()));
        let mut waits = write(&load, "a", "default", 1);
        assert!(waits.1.is_none());
        // Each lease of a heartbeat is a write.
        let beats = write(&load, "b", "noisy", 3);
        assert!(beats.1.is_some(), "it is not b who writes without end");
        let fourth = write(&load, "b", "noisy", 1);
        assert!(fourth.1.is_some());
        let mut fifth = write(&load, "b", "noisy", 1);
        assert!(fifth.1.is_none());
        drop(beats);
        assert!((&mut fifth.0).now_or_never().is_some());
        held.pop();
        assert!((&mut waits.0).now_or_never().is_some());
        // One that is larger than the share has its turn when it is alone, and one that is given up leaves nothing.
        drop(write(&load, "a", "noisy", 10_000));
        let all = write(&load, "c", "noisy", 10_000);
        assert!(all.1.is_some() && write(&load, "c", "noisy", 1).1.is_none());
        // Each is its share at most of those that keep others from claiming.
        assert!(load.0.writes.load(Ordering::Acquire) <= 8, "{load:?}");
        drop((held, waits, fifth, fourth, all));
        assert_eq!(load.0.writes.load(Ordering::Acquire), 0);
        let known = load.0.principals.read().unwrap();
        let left = known.values().chain(load.0.namespaces.values());
        assert!(left.map(|account| account.writes.load(Ordering::Acquire)).all(|writes| writes == 0));
    }
}
