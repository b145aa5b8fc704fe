//! Which saboteurs one case alone catches: what that case is there for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use kagzi_conformance::{Filter, Settings, all_cases};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::judge::{AT_ONE_TIME, caught_by};
use crate::list::{self, RANDOM, Saboteur};
use crate::reasons::{self, Table};
use crate::stores::postgres::Database;

/// Runs the chore over the saboteurs whose names contain a filter; those of others stay as they stand in
/// the table. Whether every saboteur was caught and the table was written.
pub async fn run(settings: Settings, filters: &[String]) -> bool {
    let started = Instant::now();
    let database = Database::default();
    let wanted = |one: &Saboteur| filters.is_empty() || filters.iter().any(|part| one.name.contains(part));
    let saboteurs: Vec<Saboteur> = list::all(&database).into_iter().filter(wanted).collect();
    let turns = Arc::new(Semaphore::new(AT_ONE_TIME));
    let mut playing = JoinSet::new();
    for one in saboteurs {
        let turns = Arc::clone(&turns);
        playing.spawn(async move {
            // The semaphore is never closed; if it were, the store would only be judged earlier.
            let _turn = turns.acquire_owned().await.ok();
            let caught = first_two(&one, settings).await;
            (one, caught)
        });
    }
    let mut judged = Vec::new();
    let mut away = 0;
    while let Some(joined) = playing.join_next().await {
        // One whose judge died is not caught.
        let (one, caught) = joined.map_or((None, Vec::new()), |(one, caught)| (Some(one), caught));
        away += u32::from(caught.is_empty());
        let Some(one) = one else { continue };
        println!("{:<12} {:<62} {}", one.kind, one.name, told(&caught));
        judged.push((one.key(), caught));
    }
    println!("\nin {} s", started.elapsed().as_secs());
    if away > 0 {
        println!("{away} saboteurs got away");
        return false;
    }
    match note(&judged).await {
        Ok(count) => println!("{count} of {} saboteurs are caught by one case alone", judged.len()),
        Err(error) => println!("{error}"),
    }
    reasons::run(Table::Checked).await
}

fn told(caught: &[String]) -> String {
    match caught {
        [] => "GOT AWAY".to_owned(),
        [only] => format!("{only} alone"),
        [first, second, ..] => format!("{first}, {second}"),
    }
}

/// Puts what was found of some saboteurs into the table; how many one case alone caught.
async fn note(judged: &[(String, Vec<String>)]) -> Result<usize, String> {
    let mut reasons = reasons::renewed(&reasons::read().unwrap_or_default(), &reasons::kept().await?);
    let mut count = 0;
    for (key, caught) in judged {
        for reason in reasons.values_mut() {
            reason.alone.remove(key);
        }
        if let [only] = &caught[..]
            && let Some(reason) = reasons.get_mut(only)
        {
            reason.alone.insert(key.clone());
            count += 1;
        }
    }
    reasons::write(&reasons)?;
    Ok(count)
}

/// Cases that catch a saboteur: those meant for it, or, if there is only one, it and the first other.
async fn first_two(one: &Saboteur, settings: Settings) -> Vec<String> {
    let meant = one.filter();
    let fixture = || Arc::clone(&one.fixture);
    let mut caught = caught_by(one, &kagzi_conformance::run(fixture(), &meant, settings, |_| {}).await);
    let [only] = &caught[..] else { return caught };
    let own = only.split("::").next().unwrap_or_default().to_owned();
    let groups: BTreeSet<&str> = all_cases().iter().map(|case| case.group).collect();
    // Whatever else catches it most likely has the same topic.
    let mut groups: Vec<&str> = groups.into_iter().collect();
    groups.sort_by_key(|group| *group != own);
    for group in groups {
        let except = RANDOM.iter().map(ToString::to_string).chain(meant.containing.clone()).collect();
        let rest = Filter { groups: vec![group.to_owned()], except, ..Filter::default() };
        let others = caught_by(one, &kagzi_conformance::run(fixture(), &rest, settings, |_| {}).await);
        if !others.is_empty() {
            caught.extend(others);
            break;
        }
    }
    caught
}
