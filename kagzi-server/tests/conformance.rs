//! `kagzi conformance`, the real binary over every built-in store.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kagzi_store_postgres::{PostgresOptions, PostgresStore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn kagzi(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    command.arg("conformance").args(args);
    command
}

fn judge(args: &[&str]) -> Output {
    kagzi(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The report, after its form was checked: a verdict for each case, and totals that add up.
fn report(ended: &Output) -> Value {
    let report: Value = serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&ended.stderr)));
    let cases = report["cases"].as_array().unwrap();
    for verdict in ["passed", "failed", "not_applicable"] {
        let count = cases.iter().filter(|case| case["verdict"] == verdict).count();
        assert_eq!(report[verdict], count, "{verdict}");
    }
    for case in cases {
        assert!(case["group"].is_string() && case["name"].is_string() && case["invariant"].is_array());
    }
    report
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn sqlite_is_judged_beside_the_path_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("mine.db").display());
    let ended = judge(&["--store", &url, "--group", "durability", "--json"]);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let report = report(&ended);
    assert_eq!((&report["failed"], &report["not_applicable"]), (&0.into(), &0.into()));
    assert!(report["passed"].as_u64().unwrap() > 10);
    assert_eq!(entries(directory.path()), 0);
}

#[test]
fn what_a_store_cannot_do_is_not_applicable_and_never_passed() {
    let ended = judge(&["--store", "memory:", "durability::start_is_there", "an_empty_queue", "--json"]);
    assert_eq!(ended.status.code(), Some(0), "one case passed: {}", text(&ended.stderr));
    let report = report(&ended);
    assert_eq!((&report["passed"], &report["not_applicable"]), (&1.into(), &1.into()));
    assert_eq!(report["cases"][1]["detail"], "needs reopening");
}

#[test]
fn a_store_of_which_nothing_was_asked_has_not_passed() {
    let ended = judge(&["--store", "memory:", "durability::start_is_there", "--json"]);
    let told = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{told}");
    assert!(told.contains("nothing was proved") && told.contains("none of the 1 chosen cases"), "{told}");
    let report = report(&ended);
    assert_eq!((&report["passed"], &report["not_applicable"]), (&0.into(), &1.into()));
}

#[test]
fn a_variable_that_makes_no_sense_is_told_once_and_no_case_is_played() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", directory.path().join("mine.db").display());
    for (variable, value) in [("KAGZI_CONFORMANCE_SEED", "dice"), ("KAGZI_CONFORMANCE_MODEL_OPERATIONS", "0")]
    {
        let ended = kagzi(&["--store", &sqlite, "--json"]).env(variable, value).output().unwrap();
        let told = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{told}");
        assert_eq!(told.matches(variable).count(), 1, "{told}");
        assert!(told.contains("expected a whole number") && told.contains(value), "{told}");
        assert!(ended.stdout.is_empty());
    }
    assert_eq!(entries(directory.path()), 0);
}

#[test]
fn people_get_a_table_and_markdown_is_markdown() {
    let ended = judge(&["--store", "memory:", "--group", "wake_up", "--group", "reap", "--except", "poison"]);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let table = text(&ended.stdout);
    assert!(
        table.contains("NOT APPLICABLE") && table.contains("wake_up") && table.contains("reap"),
        "{table}"
    );
    let ended = judge(&["--store", "memory:", "--group", "wake_up", "--markdown"]);
    assert!(text(&ended.stdout).starts_with("# Conformance of memory:\n\n| group |"));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", directory.path().join("mine.db").display());
    let wrong = [
        (vec!["--store", &sqlite, "--group", "nonsense"], "there is no group", 2),
        (vec!["--store", &sqlite, "no_such_case"], "no case's name contains \"no_such_case\"", 2),
        (vec!["--store", &sqlite, "claim::", "no_such_case"], "no case's name contains", 2),
        (vec!["--store", &sqlite, "claim::", "--group", "lease"], "no case is left", 2),
        (vec!["--store", &sqlite, "--group", "lease", "--except", "lease"], "no case is left", 2),
        (vec!["--store", "mysql://u:secret@h/d"], "postgres://", 2),
        (vec!["--store", "postgres://u@h/d?schema=production"], "schema", 2),
        (vec!["--store", "sqlite:///no/such/directory/kagzi.db"], "/no/such/directory", 2),
        (vec!["--store", "postgres://u:secret@127.0.0.1:1/d"], "127.0.0.1:1", 4),
    ];
    for (args, expected, code) in wrong {
        let ended = judge(&args);
        let told = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains(expected) && !told.contains("secret"), "{args:?}: {told}");
    }
    assert_eq!(entries(directory.path()), 0);
}

/// Whether a schema of this command is left in the database.
async fn schemas_left(url: &str) -> bool {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname LIKE 'kagzi_conformance%')")
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_judged_in_schemas_of_its_own_and_none_is_left() {
    let server = kagzi_testkit::postgres().await.unwrap();
    let database = server.fresh_database().await.unwrap();
    let url = database.url();
    let mine = PostgresStore::connect(PostgresOptions::new(&url)).await.unwrap();
    let judged = url.clone();
    let ended =
        tokio::task::spawn_blocking(move || judge(&["--store", &judged, "--group", "batching", "--json"]));
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    assert_eq!(report(&ended)["not_applicable"], 0);
    assert!(!schemas_left(&url).await);
    kagzi_core::Store::now(&mine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_removes_what_was_made() {
    let server = kagzi_testkit::postgres().await.unwrap();
    let database = server.fresh_database().await.unwrap();
    let url = database.url();
    let judged = url.clone();
    let code = tokio::task::spawn_blocking(move || {
        let mut command = kagzi(&["--store", &judged, "--verbose"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // The first line is about the first case that ended: many more are to come.
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("passed"), "{line}");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(130));
    assert!(!schemas_left(&url).await);
}
