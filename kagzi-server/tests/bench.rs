//! `kagzi bench`, the real binary on both databases.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kagzi_core::{Namespace, RunFilter, SharedStore};
use kagzi_server::{ServerConfig, open_store};
use rcgen::CertifiedKey;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

fn command(temporary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
    command.arg("bench").args(args).env("TMPDIR", temporary);
    command
}

fn left_in(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn open(url: &str) -> SharedStore {
    open_store(&ServerConfig { store: url.to_owned(), ..ServerConfig::default() }).await.unwrap()
}

const SMALL: &[&str] = &["--workflows", "40", "--in-flight", "8", "--rounds", "2", "--alone", "3", "--json"];

#[test]
fn without_a_store_it_benches_a_fresh_sqlite_file_and_leaves_nothing() {
    for mode in ["grpc", "embedded"] {
        let temporary = TempDir::new().unwrap();
        let output = command(temporary.path(), &[SMALL, &["--mode", mode]].concat()).output().unwrap();
        let report = report(&output);
        assert_eq!((&report["store"], &report["mode"]), (&"sqlite".into(), &mode.into()));
        assert_eq!((&report["in_flight"], &report["workflows"]), (&8.into(), &40.into()));
        assert_eq!(report["rounds"].as_array().unwrap().len(), 2);
        assert_eq!(report["alone"]["workflows"], 3);
        let number = |field: &str| report[field].as_f64().unwrap();
        assert!(number("workflows_per_second") > 0.0);
        assert!((number("steps_per_second") / number("workflows_per_second") - 5.0).abs() < 1e-6);
        assert!(number("p50_ms") <= number("p99_ms") && number("p99_ms") <= number("max_ms"));
        assert_eq!(left_in(temporary.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_server_with_tls_and_tokens_is_benched_as_one_without() {
    let temporary = TempDir::new().unwrap();
    let keys = TempDir::new().unwrap();
    let at = |name: &str| keys.path().join(name);
    // Its own authority.
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(at("server.pem"), cert.pem()).unwrap();
    std::fs::write(at("server.key"), signing_key.serialize_pem()).unwrap();
    let made =
        Command::new(env!("CARGO_BIN_EXE_kagzi")).args(["token", "new", "--to"]).arg(at("token")).output();
    let line = String::from_utf8(made.unwrap().stdout).unwrap();
    let digest = line.split('"').find(|part| part.starts_with("sha256:")).unwrap().to_owned();
    let principal = format!(
        "[[principal]]\nname = \"bench\"\ntokens = [\"{digest}\"]\n\n[[principal.grant]]\nrole = \"admin\"\nnamespaces = [\"*\"]\n"
    );
    std::fs::write(at("access.toml"), principal).unwrap();
    let files = [("access_file", "access.toml"), ("tls_cert", "server.pem"), ("tls_key", "server.key")];
    let settings = files.map(|(key, file)| format!("{key} = {:?}\n", at(file)));
    std::fs::write(at("kagzi.toml"), settings.concat()).unwrap();
    let bench = |shown: &[&str]| {
        let mut command = command(temporary.path(), SMALL);
        command.arg("--config").arg(at("kagzi.toml")).arg("--tls-ca").arg(at("server.pem"));
        shown.iter().fold(&mut command, |command, arg| command.arg(arg)).output().unwrap()
    };
    let token = at("token");
    let seen = report(&bench(&["--token-file", token.to_str().unwrap()]));
    assert_eq!(seen["workflows"], 40);
    let refused = bench(&[]);
    assert!(!refused.status.success(), "whoever shows nothing is not let in");
    assert_eq!(left_in(temporary.path()), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_store_is_left_without_a_run_of_the_bench() {
    let cluster = kagzi_testkit::postgres().await.unwrap();
    let database = cluster.fresh_database().await.unwrap();
    let directory = TempDir::new().unwrap();
    let sqlite = format!("sqlite://{}", directory.path().join("own.db").display());
    for (url, kind) in [(database.url(), "postgres"), (sqlite, "sqlite")] {
        for mode in ["grpc", "embedded"] {
            let mut command =
                command(directory.path(), &[SMALL, &["--mode", mode, "--store", &url]].concat());
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            let report = report(&output);
            assert_eq!(report["store"], kind);
            let namespace = Namespace::new(report["namespace"].as_str().unwrap()).unwrap();
            let store = open(&url).await;
            assert_eq!(store.count_runs(&namespace, &RunFilter::default()).await.unwrap(), 0);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_with_its_processes_and_its_runs() {
    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().join("own.db").display());
    let endless = ["--workflows", "100000000", "--in-flight", "8", "--store", &url];
    let mut bench = command(directory.path(), &endless).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stderr.take().unwrap()).lines();
    // It says what it is about to do once everything is up.
    let first = lines.next().unwrap().unwrap();
    let namespace = Namespace::new(first.split_whitespace().last().unwrap()).unwrap();
    let store = open(&url).await;
    let runs = async || store.count_runs(&namespace, &RunFilter::default()).await.unwrap();
    while runs().await == 0 {
        tokio::task::yield_now().await;
    }
    kill_process(Pid::from_child(&bench), Signal::INT).unwrap();
    // Its parts share its standard error: that ends when all of them have.
    let (rest, status) = tokio::task::spawn_blocking(move || {
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        (rest, bench.wait().unwrap())
    })
    .await
    .unwrap();
    assert_eq!(status.code(), Some(130), "{rest:?}");
    assert_eq!(runs().await, 0);
    store.close().await.unwrap();
}

#[test]
fn what_cannot_be_benched_is_refused_with_the_exit_code_of_the_reason() {
    let temporary = TempDir::new().unwrap();
    let cases = [
        (["--store", "mysql://h/db"], 2, "sqlite://path"),
        (["--store", "postgres://u:secret@127.0.0.1:1/db"], 4, "postgres://u:***@127.0.0.1:1/db"),
        (["--workflows", "0"], 2, "1..=100000000"),
    ];
    for mode in ["grpc", "embedded"] {
        for (args, code, said) in &cases {
            let output =
                command(temporary.path(), &[args.as_slice(), &["--mode", mode]].concat()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(*code), "{text}");
            assert!(text.contains(said) && !text.contains("secret"), "{text}");
        }
    }
}
