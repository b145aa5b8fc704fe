//! Tenants beside each other.

use super::*;

/// What became of the calls of a tenant.
#[derive(Debug, Default)]
struct Tally {
    answered: u32,
    refused: u32,
}

impl Tally {
    fn count<T>(&mut self, answer: Result<T, Status>) {
        match answer {
            Ok(_) => self.answered += 1,
            Err(refused) => {
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                self.refused += 1;
            }
        }
    }
}

fn of_tenant<T>(name: &str, mut request: Request<T>) -> Request<T> {
    request.extensions_mut().insert(caller(name));
    request
}

/// A tenant, and what each of its callers does until the end: it starts a run or not, looks at its queue,
/// polls, and pauses.
#[derive(Clone, Copy)]
struct Tenant {
    name: &'static str,
    starts: bool,
    /// How long its polls wait for work.
    waits: Duration,
    pause: Duration,
    end: tokio::time::Instant,
}

async fn call_again_and_again(services: Services, tenant: Tenant) -> Tally {
    let Tenant { name, starts, waits, pause, end } = tenant;
    let mut tally = Tally::default();
    while tokio::time::Instant::now() < end {
        if starts {
            let mut start = a_start();
            start.get_mut().namespace = name.to_owned();
            tally.count(services.start_workflow(of_tenant(name, start)).await);
        }
        let mut look = depths();
        look.get_mut().namespace = name.to_owned();
        tally.count(services.get_queue_depths(of_tenant(name, look)).await);
        let mut poll = a_poll(waits);
        poll.get_mut().namespace = name.to_owned();
        tally.count(services.poll_activity(of_tenant(name, poll)).await);
        tokio::time::sleep(pause).await;
    }
    tally
}

#[tokio::test(start_paused = true)]
async fn a_noisy_tenant_is_refused_and_a_quiet_one_beside_it_is_not() {
    const SECONDS: u32 = 3;
    let rate = RateLimit { per_second: 100, burst: 100 };
    // By its rate alone; by the places of those that wait alone, where it polls an empty queue.
    let by_rate = LoadLimits { rate_per_namespace: Some(rate), ..LoadLimits::default() };
    let by_places = LoadLimits { max_waits: 8, ..LoadLimits::default() };
    for load in [by_rate, by_places] {
        let limited = load.rate_per_namespace.is_some();
        let services = services_of(&of_tenants(load));
        let end = tokio::time::Instant::now() + Duration::from_secs(SECONDS.into());
        let run = |name, starts, waits, pause| {
            let tenant = Tenant { name, starts, waits, pause: Duration::from_millis(pause), end };
            tokio::spawn(call_again_and_again(services.clone(), tenant))
        };
        let patience = Duration::from_secs(1);
        // A poll that waits would wait for its turn, too.
        let noisy_patience = if limited { Duration::ZERO } else { patience };
        let noisy: Vec<_> = (0..32).map(|_| run("noisy", limited, noisy_patience, 5)).collect();
        let quiet = run("quiet", true, patience, 100).await.unwrap();
        assert_eq!(quiet.refused, 0, "{quiet:?}");
        assert_eq!(quiet.answered, SECONDS * 10 * 3, "{quiet:?}");
        let mut all = Tally::default();
        for one in noisy {
            let one = one.await.unwrap();
            all.answered += one.answered;
            all.refused += one.refused;
        }
        assert!(all.refused > 1000, "{all:?}");
        assert_counted(
            &services,
            if limited { "rate_per_namespace" } else { "principal_share" },
            all.refused,
        );
        if limited {
            let most = rate.burst + rate.per_second * (SECONDS + 2);
            assert!((most / 2..=most).contains(&all.answered), "{all:?}");
        }
    }
}
