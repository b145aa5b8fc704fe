//! `kagzi doctor`: what a store stands on, and what to do where it does not stand well.

use std::time::{Duration, Instant};

use kagzi_core::{Clock as _, Finding, SchemaPolicy, Store, StoreError, SystemClock, Timestamp, Verdict};
use kagzi_server::{ServerConfig, ServerError, open_store, without_password};
use serde::Serialize;

use super::error::{CliError, Exit};
use super::host::server_failed;
use super::output::{Output, one_line};
use super::store::{StoreArgs, StoreSource};

/// Leases and sleeps go by the store's clock; people read logs by this machine's.
const SKEW_TOLD: Duration = Duration::from_secs(1);

/// How long opening a store may take before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Serialize)]
struct DoctorView {
    store: String,
    store_source: StoreSource,
    verdict: &'static str,
    checks: Vec<CheckView>,
}

#[derive(Serialize)]
struct CheckView {
    check: &'static str,
    verdict: &'static str,
    found: String,
    remedy: Option<String>,
}

/// Examines a store, and ends with 1 if anything has failed.
pub async fn doctor(args: StoreArgs, output: Output) -> Result<Exit, CliError> {
    let told = args.into_told("could not examine the store")?;
    let mut findings = vec![Finding::ok("store", told.shown())];
    // Whoever examines changes nothing.
    let config = ServerConfig { schema: SchemaPolicy::Require, ..told.config };
    findings.extend(examine(&config).await?);
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    let view = DoctorView {
        store: without_password(&config.store),
        store_source: told.source,
        verdict: worst.as_str(),
        checks: findings.into_iter().map(CheckView::from).collect(),
    };
    output.show(&view, |view| view.checks.iter().map(CheckView::line).collect::<Vec<_>>().join("\n"))?;
    Ok(if worst == Verdict::Fail { Exit::Failed } else { Exit::Ok })
}

async fn examine(config: &ServerConfig) -> Result<Vec<Finding>, CliError> {
    let opening = tokio::time::timeout(PATIENCE, open_store(config)).await;
    let store = match opening {
        Ok(Ok(store)) => store,
        Ok(Err(ServerError::OpenStore { source, .. })) => return Ok(vec![why_closed(&source)]),
        Ok(Err(error)) => return Err(server_failed("could not examine the store", &error)),
        Err(_) => {
            let found = format!("no answer within {} s", PATIENCE.as_secs());
            return Ok(vec![Finding::fail("reach", found, OUT_OF_REACH)]);
        }
    };
    let mut findings = vec![Finding::ok("reach", format!("opened {}", store.backend()))];
    findings.push(clock(store.as_ref()).await.unwrap_or_else(|error| broke_down("clock", &error)));
    match store.examine().await {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(broke_down("examination", &error)),
    }
    if let Err(error) = store.close().await {
        findings.push(broke_down("close", &error));
    }
    Ok(findings)
}

const OUT_OF_REACH: &str = "check the URL, the network and that the database runs; `--store` says which";

/// A store that does not open is a finding too.
fn why_closed(error: &StoreError) -> Finding {
    match error {
        StoreError::SchemaMismatch { found, supported, remedy } => {
            Finding::fail("schema", format!("version {found}, this program knows {supported}"), *remedy)
        }
        StoreError::InvalidArgument { field, expected, got } if field == "server_version" => {
            Finding::fail("version", got, format!("expected {expected}"))
        }
        StoreError::InvalidArgument { field, expected, got } => {
            Finding::fail("reach", format!("{field}: {got}"), format!("expected {expected}"))
        }
        error => Finding::fail("reach", error.to_string(), OUT_OF_REACH),
    }
}

fn broke_down(check: &'static str, error: &StoreError) -> Finding {
    Finding::fail(check, error.to_string(), "try again; if it stays so, look into the log of the database")
}

async fn clock(store: &dyn Store) -> Result<Finding, StoreError> {
    let asked = Instant::now();
    let theirs = store.now().await?;
    let (ours, took) = (SystemClock.now(), asked.elapsed());
    Ok(judge_clock(ours, theirs, took))
}

/// The store read its clock at some moment of the round trip, so what that took explains as much.
fn judge_clock(ours: Timestamp, theirs: Timestamp, took: Duration) -> Finding {
    let apart = Duration::from_micros(ours.as_micros().abs_diff(theirs.as_micros())).saturating_sub(took);
    let found = format!("this machine and the store are {} ms apart", apart.as_millis());
    if apart < SKEW_TOLD {
        Finding::ok("clock", found)
    } else {
        let remedy = "synchronise both by NTP: nothing is unsafe, but start times that people give, and times in \
                      logs, are off by as much";
        Finding::warn("clock", found, remedy)
    }
}

impl From<Finding> for CheckView {
    fn from(finding: Finding) -> Self {
        let Finding { check, verdict, found, remedy } = finding;
        Self { check, verdict: verdict.as_str(), found, remedy }
    }
}

impl CheckView {
    fn line(&self) -> String {
        let line = format!("{:<4}  {:<12}  {}", self.verdict, self.check, self.found);
        one_line(&match &self.remedy {
            Some(remedy) => format!("{line}; to do: {remedy}"),
            None => line,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_apart_by_more_than_the_question_took_are_told() {
        let at = |micros| Timestamp::from_micros(micros).unwrap();
        let judge = |theirs, took| judge_clock(at(10_000_000), at(theirs), took).verdict;
        assert_eq!(judge(10_999_999, Duration::ZERO), Verdict::Ok);
        assert_eq!(judge(11_000_000, Duration::ZERO), Verdict::Warn);
        assert_eq!(judge(8_000_000, Duration::from_secs(1)), Verdict::Warn);
        assert_eq!(judge(8_000_000, Duration::from_millis(1001)), Verdict::Ok);
    }

    #[test]
    fn a_server_that_is_too_old_is_a_finding_about_its_version() {
        let error = StoreError::InvalidArgument {
            field: "server_version".to_owned(),
            expected: "Postgres 14 or newer".to_owned(),
            got: "13.14".to_owned(),
        };
        let found = why_closed(&error);
        assert_eq!((found.check, found.verdict, found.found.as_str()), ("version", Verdict::Fail, "13.14"));
    }
}
