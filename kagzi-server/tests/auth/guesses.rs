//! Whoever shows what nobody knows again and again hears less and less; whoever is known is not kept out by it.

use std::time::Duration;

use kagzi_server::{LoadLimits, RateLimit, ServerConfig};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::*;

const ADMIN: &str = "role = \"admin\"\nnamespaces = [\"*\"]";

const FEW: RateLimit = RateLimit { per_second: 1, burst: 3 };

fn must_wait(status: &Status) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.metadata["limit"].as_str()),
        ("LIMIT_REACHED", "rate_auth_failures")
    );
    status.get_details_retry_info().unwrap().retry_delay.unwrap()
}

#[tokio::test]
async fn whoever_guesses_is_told_to_wait_and_those_beside_them_are_let_in() {
    let (files, ada) = (Files::new(), known("ada", &[ADMIN]));
    let access = files.write("access.toml", &ada.entry);
    let load = LoadLimits { rate_auth_failures: FEW, ..LoadLimits::default() };
    let http_listen = Some("127.0.0.1:0".to_owned());
    let server = serve(ServerConfig { access_file: Some(access), load, http_listen, ..config() }).await;
    let channel = channel(&server).await;
    let mut by_ada = Caller::over(&channel, Some(format!("Bearer {}", ada.token)));
    let mut guesser = Caller::over(&channel, Some(format!("Bearer {}x", ada.token)));
    let mut unknown = 0;
    // As many as there is room for; one more for each second that the machine takes.
    let refused = soon(async {
        loop {
            match guesser.ask().await.unwrap_err() {
                status if status.code() == Code::Unauthenticated => unknown += 1,
                status => break status,
            }
        }
    })
    .await;
    assert!(unknown >= FEW.burst, "{unknown}");
    let delay = must_wait(&refused);
    assert!(!delay.is_zero() && delay <= Duration::from_secs(1), "{delay:?}");
    assert!(!format!("{refused:?}").contains(&ada.token), "{refused:?}");
    // It is the address that has used up its limit, whatever is shown.
    let mut nobody = Caller::over(&channel, None);
    soon(async { while nobody.ask().await.unwrap_err().code() != Code::ResourceExhausted {} }).await;
    for _ in 0..100 {
        assert_eq!(code(by_ada.ask().await), Code::Ok);
    }
    let page = kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    let count = |reason: &str| {
        let series = format!("kagzi_refusals_total{{reason=\"{reason}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap_or_else(|| panic!("{series} in {page}")).parse::<u32>().unwrap()
    };
    assert!(count("rate_auth_failures") >= 2);
    assert!(count("unauthenticated") >= unknown);
    server.shutdown().await.unwrap();
}
