//! `kagzi demo`, the real binary on real files.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kagzi_core::{DeleteFinished, Timestamp};
use kagzi_server::{ServerConfig, open_store};
use serde_json::Value;
use tempfile::TempDir;

const STEPS_PER_FILE: u64 = 5;

/// A directory to back up, and another one for temporary files, so that tests see what is left there.
struct Scene {
    directory: TempDir,
    temporary: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), temporary: TempDir::new().unwrap() }
    }

    fn file(&self, name: impl AsRef<OsStr>, content: impl AsRef<[u8]>) {
        let path = self.directory.path().join(name.as_ref());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        command.arg("demo").arg(self.directory.path()).args(args).env("TMPDIR", self.temporary.path());
        command
    }

    fn demo(&self, args: &[&str]) -> Ended {
        Ended(self.command(&[&["--json"], args].concat()).output().unwrap())
    }

    /// Asks `sha256sum` what it thinks of the manifest.
    fn check(&self, manifest: &Path) {
        let output = Command::new("sha256sum")
            .args(["--check", "--strict"])
            .arg(manifest)
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn left_in_temporary(&self) -> Vec<PathBuf> {
        fs::read_dir(self.temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// A demo that ended.
struct Ended(Output);

impl Ended {
    fn exit_code(&self) -> Option<i32> {
        self.0.status.code()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// The one object on the standard output.
    fn summary(&self) -> Summary {
        match serde_json::from_slice(&self.0.stdout) {
            Ok(summary) => Summary(summary),
            Err(error) => panic!("{error}: {:?}\n{}", String::from_utf8_lossy(&self.0.stdout), self.stderr()),
        }
    }
}

struct Summary(Value);

impl Summary {
    fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    fn manifest(&self) -> PathBuf {
        PathBuf::from(self.0["manifest"].as_str().unwrap())
    }

    fn paths(&self) -> Vec<&str> {
        let letters = self.0["not_backed_up"].as_array().unwrap();
        letters.iter().map(|letter| letter["path"].as_str().unwrap()).collect()
    }

    fn codes(&self) -> Vec<&str> {
        let letters = self.0["not_backed_up"].as_array().unwrap();
        letters.iter().map(|letter| letter["code"].as_str().unwrap()).collect()
    }

    /// What every demo that killed a worker must show.
    fn assert_survived_a_crash(&self) {
        assert_eq!(self.number("workers_killed"), 1, "{}", self.0);
        assert!(self.number("attempts_abandoned") >= 1, "{}", self.0);
        assert_eq!(self.number("attempts_reexecuted"), self.number("attempts_abandoned"), "{}", self.0);
        assert_eq!(self.number("steps_completed_twice"), 0, "{}", self.0);
    }
}

fn files_of_every_kind(scene: &Scene) {
    for number in 0..60_u32 {
        scene.file(format!("dir{}/file{number}.txt", number % 7), format!("content {number} ").repeat(500));
    }
    scene.file("empty", "");
    scene.file("twin-1", "the same content");
    scene.file("twin-2", "the same content");
    for name in [&b"new\nline"[..], b"back\\slash", b"-", b" space ", b"\xff\xfe", "\u{1f980}".as_bytes()] {
        scene.file(OsStr::from_bytes(name), name);
    }
    scene.file("large", vec![7; 8 << 20]);
    symlink("large", scene.directory.path().join("link")).unwrap();
}

#[test]
fn every_file_is_backed_up_although_the_worker_is_killed_half_way() {
    let scene = Scene::new();
    files_of_every_kind(&scene);
    symlink("nowhere", scene.directory.path().join("broken")).unwrap();
    let ended = scene.demo(&[]);
    assert_eq!(ended.exit_code(), Some(0), "{}", ended.stderr());
    let summary = ended.summary();
    summary.assert_survived_a_crash();
    scene.check(&summary.manifest());
    assert_eq!(summary.number("files"), 72);
    assert_eq!(summary.number("runs_completed"), 71);
    assert_eq!(summary.number("dead_letters"), 1);
    assert_eq!(summary.codes(), ["not_found"]);
    assert_eq!(summary.number("steps_executed"), 71 * STEPS_PER_FILE);
    assert_eq!(fs::read(summary.manifest()).unwrap().split(|byte| *byte == b'\n').count() - 1, 71);
}

#[test]
fn one_file_is_enough_for_a_crash() {
    let scene = Scene::new();
    scene.file("only", "one");
    let ended = scene.demo(&[]);
    assert_eq!(ended.exit_code(), Some(0), "{}", ended.stderr());
    ended.summary().assert_survived_a_crash();
    scene.check(&ended.summary().manifest());
}

#[test]
fn nothing_but_files_that_cannot_be_read_is_reported_and_no_failure() {
    let scene = Scene::new();
    symlink("nowhere", scene.directory.path().join("broken")).unwrap();
    symlink("loop", scene.directory.path().join("loop")).unwrap();
    symlink(".", scene.directory.path().join("directory")).unwrap();
    let pipe = scene.directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let ended = scene.demo(&[]);
    assert_eq!(ended.exit_code(), Some(0), "{}", ended.stderr());
    let summary = ended.summary();
    assert_eq!(summary.codes(), ["not_found", "link_loop", "not_a_regular_file"]);
    assert_eq!(summary.paths(), ["broken", "loop", "pipe"]);
    assert_eq!(summary.number("workers_killed"), 1);
    assert!(summary.number("attempts_abandoned") >= 1);
    assert_eq!(summary.0["directories_skipped"].as_array().unwrap().len(), 1);
}

#[test]
fn an_empty_directory_is_finished_at_once() {
    let scene = Scene::new();
    let ended = scene.demo(&[]);
    assert_eq!(ended.exit_code(), Some(0), "{}", ended.stderr());
    assert_eq!(ended.summary().number("files"), 0);
    assert_eq!(ended.summary().number("workers_killed"), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_never_stands_still_is_given_up_and_said_so() {
    let scene = Scene::new();
    scene.file("quiet", "still");
    // Its content differs at every reading, and its size is never what was read.
    symlink("/proc/uptime", scene.directory.path().join("restless")).unwrap();
    let ended = scene.demo(&[]);
    assert_eq!(ended.exit_code(), Some(1), "{}", ended.stderr());
    assert_eq!(ended.summary().codes(), ["changed"]);
    assert_eq!(ended.summary().number("runs_completed"), 1);
    scene.check(&ended.summary().manifest());
}

#[test]
fn what_is_no_directory_is_refused_as_wrong_usage() {
    let scene = Scene::new();
    scene.file("file", "x");
    for name in ["file", "absent"] {
        let path = scene.directory.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_kagzi")).arg("demo").arg(path).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(name));
    }
}

#[test]
fn one_file_is_one_file_in_words() {
    let scene = Scene::new();
    scene.file("only", "one");
    let ended = Ended(scene.command(&[]).output().unwrap());
    let said = format!("{}{}", ended.stdout(), ended.stderr());
    assert!(said.contains("1 file in ") && said.contains("1 of 1 file,"), "{said}");
    assert!(!said.contains("1 files"), "{said}");
}

#[test]
fn temporary_files_go_where_there_is_a_place_for_them_or_nowhere() {
    let scene = Scene::new();
    let absent = scene.temporary.path().join("absent");
    let ended = Ended(scene.command(&[]).env("TMPDIR", &absent).output().unwrap());
    assert_eq!(ended.exit_code(), Some(1), "{}", ended.stderr());
    assert!(ended.stderr().contains("absent") && ended.stderr().contains("TMPDIR"), "{}", ended.stderr());
    assert!(!absent.exists());
}

/// The limit on the size of files does to the database what a full disk does.
#[test]
fn a_demo_that_cannot_write_says_so_gives_up_and_leaves_nothing() {
    let scene = Scene::new();
    for number in 0..500_u32 {
        scene.file(format!("{number}"), "x");
    }
    let ended = Command::new("bash")
        .args(["-c", "trap '' XFSZ; ulimit -f 600; exec \"$0\" demo \"$1\" --give-up-after 2s"])
        .args([OsStr::new(env!("CARGO_BIN_EXE_kagzi")), scene.directory.path().as_os_str()])
        .env("TMPDIR", scene.temporary.path())
        .output()
        .unwrap();
    let ended = Ended(ended);
    assert_eq!(ended.exit_code(), Some(4), "{}", ended.stderr());
    let said = ended.stderr();
    assert!(said.contains("a call fails and is tried again: "), "it says what it waits for: {said}");
    let (_, error) = said.split_once("error: the demo gave up").unwrap_or_else(|| panic!("{said}"));
    assert!(error.contains("SQLite") && error.contains("try: free some space"), "{error}");
    assert_eq!(scene.left_in_temporary(), Vec::<PathBuf>::new());
    let worker = said.lines().find_map(|line| line.strip_prefix("worker 1 started, process "));
    wait_until_gone(worker.unwrap().parse().unwrap());
}

#[test]
fn only_the_manifest_stays_unless_all_is_to_be_kept() {
    let scene = Scene::new();
    scene.file("file", "x");
    let manifest = scene.demo(&[]).summary().manifest();
    assert!(manifest.starts_with(scene.temporary.path().canonicalize().unwrap()));
    let left = fs::read_dir(manifest.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, [OsStr::new(".kagzi-demo"), OsStr::new("SHA256SUMS")]);

    let kept = scene.demo(&["--keep"]).summary().manifest();
    for name in ["kagzi.db", "objects", "records"] {
        assert!(kept.parent().unwrap().join(name).exists(), "{name}");
    }
    assert_eq!(fs::read_dir(scene.directory.path()).unwrap().count(), 1, "nothing is written into DIR");
}

/// Starts a demo that has work for a while, and waits until its first worker is there.
fn under_way(scene: &Scene, args: &[&str]) -> (Child, u32) {
    for number in 0..200_u32 {
        scene.file(format!("{number}"), vec![1; 200_000]);
    }
    let mut demo = scene.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = demo.stderr.as_mut().unwrap();
    let started =
        BufReader::new(stderr).lines().map(Result::unwrap).find(|line| line.starts_with("worker 1 started"));
    let pid = started.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    (demo, pid)
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn is_gone(pid: u32) -> bool {
    !Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

fn wait_until_gone(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_gone(pid) {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        std::thread::yield_now();
    }
}

#[test]
fn ctrl_c_takes_everything_down() {
    let scene = Scene::new();
    let (mut demo, worker) = under_way(&scene, &[]);
    signal("-INT", demo.id());
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    wait_until_gone(worker);
    assert_eq!(scene.left_in_temporary(), Vec::<PathBuf>::new());
}

#[test]
fn so_does_sigterm_with_an_exit_code_of_its_own() {
    let scene = Scene::new();
    let (mut demo, worker) = under_way(&scene, &[]);
    signal("-TERM", demo.id());
    assert_eq!(demo.wait().unwrap().code(), Some(143));
    wait_until_gone(worker);
    assert_eq!(scene.left_in_temporary(), Vec::<PathBuf>::new());
}

#[test]
fn a_worker_does_not_outlive_a_demo_that_is_killed() {
    let scene = Scene::new();
    let (mut demo, worker) = under_way(&scene, &[]);
    signal("-KILL", demo.id());
    demo.wait().unwrap();
    wait_until_gone(worker);
}

#[tokio::test]
async fn the_same_on_postgres_and_nothing_of_it_stays_in_the_database() {
    let database = kagzi_testkit::postgres().await.unwrap().fresh_database().await.unwrap();
    let scene = Scene::new();
    files_of_every_kind(&scene);
    let url = database.url();
    let ended = tokio::task::spawn_blocking(move || {
        let ended = scene.demo(&["--store", &url]);
        scene.check(&ended.summary().manifest());
        ended
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.exit_code(), Some(0), "{}", ended.stderr());
    ended.summary().assert_survived_a_crash();
    assert_eq!(ended.summary().number("runs_completed"), 71);

    assert_holds_nothing(database.url()).await;
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_in_a_database_either() {
    let database = kagzi_testkit::postgres().await.unwrap().fresh_database().await.unwrap();
    let url = database.url();
    let interrupted = tokio::task::spawn_blocking(move || {
        let scene = Scene::new();
        let (mut demo, _) = under_way(&scene, &["--store", &url]);
        signal("-INT", demo.id());
        demo.wait().unwrap().code()
    });
    assert_eq!(interrupted.await.unwrap(), Some(130));
    assert_holds_nothing(database.url()).await;
}

/// No finished run of any namespace, and none that time would still move.
async fn assert_holds_nothing(url: String) {
    let config = ServerConfig { store: url, ..ServerConfig::default() };
    let store = open_store(&config).await.unwrap();
    let everything =
        DeleteFinished { namespace: None, states: Vec::new(), before: Timestamp::MAX, limit: 1000 };
    assert_eq!(store.delete_finished(&everything).await.unwrap(), 0);
    assert_eq!(store.next_due().await.unwrap().due_at, None);
    store.close().await.unwrap();
}

#[test]
fn what_was_kept_can_be_looked_at_with_the_command_line() {
    let scene = Scene::new();
    scene.file("file", "x");
    symlink("nowhere", scene.directory.path().join("broken")).unwrap();
    let kept = scene.demo(&["--keep"]).summary().manifest();
    let database = kept.with_file_name("kagzi.db");
    let mut server = Command::new(env!("CARGO_BIN_EXE_kagzi"))
        .args(["dev", "--json", "--listen", "127.0.0.1:0", "--db"])
        .arg(database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout =
        serde_json::Deserializer::from_reader(server.stdout.as_mut().unwrap()).into_iter::<Value>();
    let url = stdout.next().unwrap().unwrap()["server"].as_str().unwrap().to_owned();
    let letters = Command::new(env!("CARGO_BIN_EXE_kagzi"))
        .args(["dead-letters", "--json", "--server", &url])
        .output()
        .unwrap();
    let letters: Value = serde_json::from_slice(&letters.stdout).unwrap();
    signal("-TERM", server.id());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert_eq!(letters["runs"].as_array().unwrap().len(), 1);
    assert!(letters["runs"][0]["failure"]["message"].as_str().unwrap().contains("broken"));
}
