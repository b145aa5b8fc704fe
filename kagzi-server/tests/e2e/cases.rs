//! The cases. Each plays over a database of its own.

mod away;
mod clocks;
mod crash;
mod failover;
mod load;
mod network;
mod pause;
mod traces;
mod two_servers;

use std::future::Future;
use std::pin::Pin;

use kagzi_sdk::{AttemptState, Client, RunId};
use libtest_mimic::{Completion, Failed as TrialFailed};

use crate::disk::NoDisk;
use crate::world::{Database, Failed, World};

type Playing = Pin<Box<dyn Future<Output = Result<(), Failed>>>>;

/// A case.
pub struct Case {
    /// Its name, a sentence about the rule.
    pub name: &'static str,
    play: fn(World) -> Playing,
    only_on: Option<Database>,
}

/// All of them.
pub const ALL: &[Case] = &[
    Case {
        name: "a_killed_worker_costs_the_step_in_flight_and_nothing_else",
        play: |world| Box::pin(crash::worker(world)),
        only_on: None,
    },
    Case {
        name: "a_killed_server_loses_nothing_acknowledged_and_gets_finished_steps_delivered",
        play: |world| Box::pin(crash::server(world)),
        only_on: None,
    },
    Case {
        name: "a_terminated_server_drains_and_a_terminated_worker_gives_its_runs_back",
        play: |world| Box::pin(crash::terminated(world)),
        only_on: None,
    },
    Case {
        name: "every_late_write_of_a_paused_worker_is_refused_and_changes_nothing",
        play: |world| Box::pin(pause::worker(world)),
        only_on: None,
    },
    Case {
        name: "a_trace_leads_from_the_client_through_every_step_though_a_worker_is_killed",
        play: |world| Box::pin(traces::across_a_crash(world)),
        only_on: None,
    },
    Case {
        name: "without_a_collector_all_works_and_one_warning_says_what_to_do",
        play: |world| Box::pin(traces::without_a_collector(world)),
        only_on: Some(Database::Sqlite),
    },
    Case {
        name: "two_servers_and_four_workers_finish_5000_runs_though_half_of_them_are_killed",
        play: |world| Box::pin(two_servers::half_killed(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_postgres_killed_under_load_is_told_and_all_resumes_by_itself_once_it_is_back",
        play: |world| Box::pin(away::killed(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_postgres_stopped_twice_under_load_is_told_and_all_resumes_by_itself_once_it_is_back",
        play: |world| Box::pin(away::stopped(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_server_that_starts_before_its_postgres_is_alive_and_not_ready_and_serves_once_it_is_there",
        play: |world| Box::pin(away::not_there_yet(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_primary_killed_under_load_is_followed_to_its_synchronous_standby_and_nothing_acknowledged_is_lost",
        play: |world| Box::pin(failover::followed(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_start_is_not_acknowledged_before_it_is_on_the_synchronous_standby",
        play: |world| Box::pin(failover::cut_off(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_primary_whose_only_synchronous_standby_is_away_is_told_and_all_resumes_by_itself_once_it_is_back",
        play: |world| Box::pin(failover::standby_away(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "what_was_acknowledged_without_an_asynchronous_standby_is_not_found_after_its_promotion",
        play: |world| Box::pin(failover::asynchronous(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_file_locked_for_long_is_told_and_all_resumes_by_itself_once_it_is_free",
        play: |world| Box::pin(away::locked(world)),
        only_on: Some(Database::Sqlite),
    },
    Case {
        name: "a_full_disk_is_told_and_all_resumes_by_itself_once_there_is_room",
        play: |world| Box::pin(away::full(world)),
        only_on: Some(Database::Sqlite),
    },
    Case {
        name: "a_full_disk_of_postgres_is_told_as_long_as_it_is_full_and_all_resumes_by_itself_once_there_is_room",
        play: |world| Box::pin(away::full_postgres(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_postgres_that_turns_read_only_is_told_and_all_resumes_by_itself_once_it_takes_writes",
        play: |world| Box::pin(away::read_only(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "answers_to_workers_that_are_lost_on_the_way_cost_no_execution",
        play: |world| Box::pin(network::answers_to_workers_lost(world)),
        only_on: None,
    },
    Case {
        name: "links_to_workers_that_die_in_silence_are_given_up_and_what_they_swallowed_is_taken_again",
        play: |world| Box::pin(network::links_to_workers_half_open(world)),
        only_on: None,
    },
    Case {
        name: "a_slow_link_to_workers_costs_time_and_nothing_else",
        play: |world| Box::pin(network::link_to_workers_slow(world)),
        only_on: None,
    },
    Case {
        name: "answers_of_the_database_that_are_lost_after_the_commit_cost_no_execution",
        play: |world| Box::pin(network::answers_of_the_database_lost(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_database_that_goes_silent_and_is_heard_again_costs_no_execution",
        play: |world| Box::pin(network::database_silent(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_server_whose_database_is_silent_ends_when_it_is_told_to",
        play: |world| Box::pin(network::database_silent_at_the_end(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_slow_link_to_the_database_costs_time_and_nothing_else",
        play: |world| Box::pin(network::link_to_database_slow(world)),
        only_on: Some(Database::Postgres),
    },
    Case {
        name: "a_worker_whose_clock_is_an_hour_off_loses_no_lease_and_wakes_nobody_early",
        play: |world| Box::pin(clocks::worker(world)),
        only_on: None,
    },
    Case {
        name: "two_servers_whose_clocks_are_two_hours_apart_agree_by_the_time_of_the_database",
        play: |world| Box::pin(clocks::servers(world)),
        only_on: Some(Database::Postgres),
    },
];

impl Case {
    /// Whether the case makes sense on this database.
    pub fn runs_on(&self, database: Database) -> bool {
        self.only_on.is_none_or(|only| only == database)
    }

    /// Plays it, or says why it cannot be played on this machine.
    pub fn play(&self, database: Database) -> Result<Completion, TrialFailed> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let played = runtime.block_on(async {
            let world = World::new(database).await?;
            (self.play)(world).await
        });
        match played {
            Ok(()) => Ok(Completion::Completed),
            Err(error) if error.is::<NoDisk>() => Ok(Completion::ignored_with(error.to_string())),
            Err(error) => Err(error.to_string().into()),
        }
    }
}

/// What the attempts of some runs show.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Attempts that were abandoned.
    pub abandoned: usize,
    /// Steps with more than one completed attempt. Never any.
    pub completed_twice: usize,
    /// Steps that completed.
    pub completed: usize,
}

/// Reads every attempt of the runs.
pub async fn audit(client: &Client, runs: &[RunId]) -> Result<Audit, Failed> {
    let mut audit = Audit::default();
    for run_id in runs {
        let mut completed = std::collections::BTreeMap::new();
        for attempt in client.attempts(*run_id).await? {
            match attempt.state {
                AttemptState::Completed => *completed.entry(attempt.step_id).or_insert(0) += 1,
                AttemptState::Abandoned => audit.abandoned += 1,
                AttemptState::Running | AttemptState::Failed => {}
            }
        }
        audit.completed += completed.len();
        audit.completed_twice += completed.values().filter(|count| **count > 1).count();
    }
    Ok(audit)
}

/// An error unless the two are equal.
pub fn expect_eq<T: std::fmt::Debug + PartialEq>(what: &str, seen: &T, expected: &T) -> Result<(), Failed> {
    if seen == expected {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, saw {seen:?}").into())
}
