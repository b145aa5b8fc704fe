//! Claims over many queues are made in turn.

use super::*;
use crate::auth::Caller;
use crate::service::load::Errand;

#[tokio::test(start_paused = true)]
async fn wide_claims_wait_for_a_turn_of_their_principal_and_narrow_ones_for_none() {
    // A store that scans four times at once, without asking for it; two of them for one principal.
    let services = services_of(&ServerConfig {
        store: "postgres://somebody@somewhere/store".to_owned(),
        access_file: Some("access.toml".into()),
        ..ServerConfig::default()
    });
    let poll = async |who: &str, queues: u32, types: u32| {
        let names = |count: u32| (0..count).map(|number| format!("name-{number}")).collect();
        let mut request = poll(1, Duration::ZERO);
        request.get_mut().queues = names(queues);
        request.get_mut().workflow_types = names(types);
        request.extensions_mut().insert(Caller::named(who));
        services.poll_activity(request).await.map(|answer| answer.into_inner().runs.len())
    };
    let (noisy, namespace) = (Caller::named("noisy"), namespace());
    let scan = || services.0.load.scan(Errand::Scan, &noisy, std::iter::once(&namespace));
    let held = [scan().await.unwrap(), scan().await.unwrap()];
    for (queues, types) in [(101, 0), (34, 3)] {
        let before = Instant::now();
        let refused = poll("noisy", queues, types).await.unwrap_err();
        assert_eq!((refused.code(), before.elapsed()), (Code::ResourceExhausted, Duration::from_secs(1)));
        assert!(refused.message().contains("principal_share"), "{refused:?}");
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
        assert_eq!(poll("quiet", queues, types).await.unwrap(), 0);
    }
    for (queues, types) in [(100, 0), (33, 3), (1, 1)] {
        assert_eq!(poll("noisy", queues, types).await.unwrap(), 0);
    }
    drop(held);
    assert_eq!(poll("noisy", 1000, 1000).await.unwrap(), 0);
}
