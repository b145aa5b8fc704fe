//! What operators do is on record, whatever the log level.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use kagzi_proto::v1;
use kagzi_server::{LoadLimits, RateLimit, ServerConfig};
use serde_json::Value;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::support::*;

/// A server in a process of its own.
pub struct Served {
    child: Child,
    address: String,
}

impl Served {
    pub fn new(files: &Files, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagzi"));
        command.args(["serve", "--store", "memory:", "--listen", "127.0.0.1:0"]).args(args);
        let log = std::fs::File::create(files.path("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self { child, address }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub fn lines(files: &Files, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(files.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[tokio::test]
async fn cancellations_requeues_pauses_and_admin_calls_are_on_record_with_the_log_off() {
    let files = Files::new();
    let op = known("op", &["role = 'operator'\nnamespaces = ['default']"]);
    let app = known("app", &["role = 'client'\nnamespaces = ['default']"]);
    let access = files.write("access.toml", format!("{}{}", op.entry, app.entry));
    let record = files.path("audit.jsonl");
    let served = Served::new(
        &files,
        &[
            "--access-file",
            access.to_str().unwrap(),
            "--audit-log",
            record.to_str().unwrap(),
            "--log-level",
            "off",
            "--log-format",
            "json",
        ],
    );
    let channel =
        Channel::from_shared(format!("http://{}", served.address)).unwrap().connect().await.unwrap();
    let by = |known: &Known| Caller::over(&channel, Some(format!("Bearer {}", known.token)));
    let (mut op, mut app) = (by(&op), by(&app));
    let run_id = app.workflows.start_workflow(start("default", "q", "t")).await.unwrap().into_inner().run_id;
    let namespace = || "default".to_owned();
    let requeue =
        v1::RequeueWorkflowRequest { namespace: namespace(), run_id: run_id.clone(), ..Default::default() };
    app.workflows.requeue_workflow(requeue.clone()).await.unwrap_err();
    op.workflows.requeue_workflow(requeue).await.unwrap_err();
    let cancel = v1::CancelWorkflowRequest {
        namespace: namespace(),
        run_id: run_id.clone(),
        reason: "no longer needed".to_owned(),
        ..Default::default()
    };
    op.workflows.cancel_workflow(cancel).await.unwrap();
    let pause = v1::PauseQueueRequest {
        namespace: namespace(),
        queue: "q".to_owned(),
        reason: "mail is down".to_owned(),
        ..Default::default()
    };
    app.workflows.pause_queue(pause.clone()).await.unwrap_err();
    op.workflows.pause_queue(pause).await.unwrap();
    let resume =
        v1::ResumeQueueRequest { namespace: namespace(), queue: "q".to_owned(), ..Default::default() };
    op.workflows.resume_queue(resume).await.unwrap();
    op.admin.get_server_info(v1::GetServerInfoRequest {}).await.unwrap();
    op.admin.delete_finished(v1::DeleteFinishedRequest::default()).await.unwrap_err();

    let (run, queue) = (Some(("run_id", run_id.as_str())), Some(("queue", "q")));
    // What is denied is not announced, nor what changes nothing.
    let expected = [
        ("app", "RequeueWorkflow", run, "PERMISSION_DENIED"),
        ("op", "RequeueWorkflow", run, "BEGINS"),
        ("op", "RequeueWorkflow", run, "WRONG_STATE"),
        ("op", "CancelWorkflow", run, "BEGINS"),
        ("op", "CancelWorkflow", run, "OK"),
        ("app", "PauseQueue", queue, "PERMISSION_DENIED"),
        ("op", "PauseQueue", queue, "BEGINS"),
        ("op", "PauseQueue", queue, "OK"),
        ("op", "ResumeQueue", queue, "BEGINS"),
        ("op", "ResumeQueue", queue, "OK"),
        ("op", "GetServerInfo", None, "OK"),
        ("op", "DeleteFinished", None, "PERMISSION_DENIED"),
    ];
    for name in ["audit.jsonl", "log"] {
        let lines = lines(&files, name);
        assert_eq!(lines.len(), expected.len(), "{name}: {lines:?}");
        for (line, (principal, method, target, outcome)) in lines.iter().zip(expected) {
            let said = (line["principal"].as_str(), line["method"].as_str(), line["outcome"].as_str());
            assert_eq!(said, (Some(principal), Some(method), Some(outcome)), "{name}: {line}");
            for name in ["run_id", "queue"] {
                let expected = target.filter(|(kind, _)| *kind == name).map(|(_, value)| value);
                assert_eq!(line[name].as_str(), expected, "{line}");
            }
            let reason = match method {
                "PauseQueue" => Some("mail is down"),
                "CancelWorkflow" => Some("no longer needed"),
                _ => None,
            };
            assert_eq!(line["reason"].as_str(), reason, "{line}");
            assert!(line["states"].is_null() && line["before"].is_null(), "{line}");
            assert_eq!(line["credential"].as_str(), Some("token"));
            assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
            assert_eq!(line["namespace"].as_str(), target.map(|_| "default"), "{line}");
        }
        for pair in lines.windows(2) {
            let announced = pair[0]["outcome"] == "BEGINS";
            assert_eq!(pair[0]["action"] == pair[1]["action"], announced, "{name}: {pair:?}");
        }
    }
    assert!(lines(&files, "log").iter().all(|line| line["target"] == "kagzi::audit"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

pub fn pause(queue: &str) -> v1::PauseQueueRequest {
    v1::PauseQueueRequest { namespace: "default".to_owned(), queue: queue.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn whoever_asks_for_what_they_may_not_do_again_and_again_does_not_fill_the_record() {
    let files = Files::new();
    let op = known("op", &["role = 'operator'\nnamespaces = ['default']"]);
    let app = known("app", &["role = 'client'\nnamespaces = ['default']"]);
    let record = files.path("audit.jsonl");
    let rate_auth_failures = RateLimit { per_second: 1, burst: 3 };
    let server = serve(ServerConfig {
        access_file: Some(files.write("access.toml", format!("{}{}", op.entry, app.entry))),
        audit_log: Some(record),
        load: LoadLimits { rate_auth_failures, ..LoadLimits::default() },
        ..config()
    })
    .await;
    let mut by_app = Caller::with_token(&server, &app.token).await;
    let mut denied = 0;
    for _ in 0..1000 {
        match code(by_app.workflows.pause_queue(pause("q")).await) {
            Code::PermissionDenied => denied += 1,
            refused => assert_eq!(refused, Code::ResourceExhausted),
        }
    }
    assert!((3..500).contains(&denied), "{denied}");
    assert_eq!(lines(&files, "audit.jsonl").len(), denied);
    // Whoever may do it does, and what the others may do they go on doing.
    let mut by_op = Caller::with_token(&server, &op.token).await;
    by_op.workflows.pause_queue(pause("q")).await.unwrap();
    by_app.workflows.start_workflow(start("default", "q", "t")).await.unwrap();
    let lines = lines(&files, "audit.jsonl");
    let by_op: Vec<&Value> = lines.iter().filter(|line| line["principal"] == "op").collect();
    assert_eq!(by_op.len(), 2, "{lines:?}");
}

#[tokio::test]
async fn whoever_does_again_and_again_what_goes_on_record_does_not_fill_it_and_operators_act() {
    let files = Files::new();
    let op = known("op", &["role = 'operator'\nnamespaces = ['default']"]);
    let grants =
        ["role = 'client'\nnamespaces = ['default']", "role = 'operator'\nnamespaces = ['elsewhere']"];
    let app = known("app", &grants);
    let rate_on_record = RateLimit { per_second: 1, burst: 4 };
    let server = serve(ServerConfig {
        access_file: Some(files.write("access.toml", format!("{}{}", op.entry, app.entry))),
        audit_log: Some(files.path("audit.jsonl")),
        load: LoadLimits { rate_on_record, ..LoadLimits::default() },
        ..config()
    })
    .await;
    let (mut by_app, mut by_op) =
        (Caller::with_token(&server, &app.token).await, Caller::with_token(&server, &op.token).await);
    let run_id = by_app.workflows.start_workflow(start("default", "q", "t")).await.unwrap();
    let run_id = run_id.into_inner().run_id;
    let cancel = |run_id: &str| v1::CancelWorkflowRequest {
        namespace: "default".to_owned(),
        run_id: run_id.to_owned(),
        ..Default::default()
    };
    let mut expected = 0;
    for turn in 0..1200 {
        // A run that has ended after the first time, one that is not there, and a request that says nothing.
        let answer = match turn % 3 {
            0 => by_app.workflows.cancel_workflow(cancel(&run_id)).await.map(drop),
            1 => by_app
                .workflows
                .cancel_workflow(cancel("018f0000-0000-7000-8000-000000000000"))
                .await
                .map(drop),
            _ => by_app.workflows.cancel_workflow(cancel("")).await.map(drop),
        };
        match answer {
            Err(refused) if refused.code() == Code::ResourceExhausted => {
                assert_eq!(refused.get_details_error_info().unwrap().metadata["limit"], "rate_on_record");
                assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
            }
            _ => expected += 1,
        }
    }
    assert!((4..600).contains(&expected), "{expected}");
    assert_eq!(code(by_app.ask().await), Code::ResourceExhausted, "it goes on record, too");
    let actions = |name: &str| -> std::collections::HashSet<String> {
        let lines = lines(&files, "audit.jsonl");
        let of = lines.iter().filter(|line| line["principal"] == name);
        of.map(|line| line["action"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(actions("app").len(), expected);
    // What is on no record goes on, and whoever oversees the namespace is not held up.
    by_app.workflows.start_workflow(start("default", "q", "t")).await.unwrap();
    for _ in 0..20 {
        by_op.workflows.cancel_workflow(cancel(&run_id)).await.unwrap();
    }
    assert_eq!(actions("op").len(), 20);
}

/// Makes a file that no byte can be added to, as on a full disk: one that is as long as its file system lets it be, most of
/// it a hole.
#[cfg(target_os = "linux")]
fn fill(path: &std::path::Path) {
    let file = std::fs::File::create(path).unwrap();
    let mut length = 0;
    for bit in (0..63).rev() {
        let longer = length | 1 << bit;
        if file.set_len(longer).is_ok() {
            length = longer;
        }
    }
    let mut end = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    std::io::Write::write(&mut end, b"x").unwrap_err();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_cannot_be_put_on_record_is_not_done_and_the_rest_goes_on() {
    let (files, op) = (Files::new(), known("op", &["role = 'admin'\nnamespaces = ['default']"]));
    let record = files.path("audit.jsonl");
    fill(&record);
    let server = serve(ServerConfig {
        access_file: Some(files.write("access.toml", &op.entry)),
        audit_log: Some(record.clone()),
        http_listen: Some("127.0.0.1:0".to_owned()),
        ..config()
    })
    .await;
    let mut op = Caller::with_token(&server, &op.token).await;
    let run_id = op.workflows.start_workflow(start("default", "q", "t")).await.unwrap().into_inner().run_id;
    let namespace = || "default".to_owned();
    let cancel =
        v1::CancelWorkflowRequest { namespace: namespace(), run_id: run_id.clone(), ..Default::default() };
    let requeue =
        v1::RequeueWorkflowRequest { namespace: namespace(), run_id: run_id.clone(), ..Default::default() };
    let resume =
        v1::ResumeQueueRequest { namespace: namespace(), queue: "q".to_owned(), ..Default::default() };
    let before = Some(kagzi_proto::Timestamp { seconds: 1, nanos: 0 });
    let delete = v1::DeleteFinishedRequest { namespace: namespace(), before, ..Default::default() };
    let refusals = [
        op.workflows.pause_queue(pause("q")).await.map(drop),
        op.workflows.resume_queue(resume).await.map(drop),
        op.workflows.cancel_workflow(cancel.clone()).await.map(drop),
        op.workflows.requeue_workflow(requeue).await.map(drop),
        op.admin.delete_finished(delete).await.map(drop),
    ];
    for refused in refusals {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("audit log"), "{refused:?}");
        assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
    }
    op.admin.get_server_info(v1::GetServerInfoRequest {}).await.unwrap();
    let get = v1::GetWorkflowRequest { namespace: namespace(), run_id, ..Default::default() };
    let run = op.workflows.get_workflow(get).await.unwrap().into_inner().record.unwrap().run.unwrap();
    assert_eq!(run.state(), v1::RunState::Pending, "it is not cancelled");
    let depths = v1::GetQueueDepthsRequest { namespace: namespace() };
    let queues = op.workflows.get_queue_depths(depths).await.unwrap().into_inner().queues;
    assert!(queues[0].pause.is_none(), "{queues:?}");
    let page = async || kagzi_testkit::http_get(server.http_addr().unwrap(), "/metrics").await.unwrap();
    let unusable = |page: &str| page.contains("kagzi_file_unusable{file=\"audit_log\"} 1\n");
    let before = page().await;
    assert!(unusable(&before) && !before.contains("kagzi_audit_failures_total 0\n"), "{before}");

    std::fs::remove_file(&record).unwrap();
    server.reload().now();
    soon(async { while op.workflows.cancel_workflow(cancel.clone()).await.is_err() {} }).await;
    let lines = lines(&files, "audit.jsonl");
    assert_eq!(lines[lines.len() - 2]["outcome"], "BEGINS", "{lines:?}");
    assert_eq!(lines[lines.len() - 1]["outcome"], "OK", "{lines:?}");
    assert!(!unusable(&page().await));
}

#[tokio::test]
async fn a_removal_is_on_record_with_what_it_reaches_and_a_long_reason_is_cut() {
    let (files, op) = (Files::new(), known("op", &["role = 'admin'\nnamespaces = ['default']"]));
    let audit_log = Some(files.path("audit.jsonl"));
    let access_file = Some(files.write("access.toml", &op.entry));
    let server = serve(ServerConfig { access_file, audit_log, ..config() }).await;
    let mut op = Caller::with_token(&server, &op.token).await;
    let namespace = || "default".to_owned();
    let before = Some(kagzi_proto::Timestamp { seconds: 86_400, nanos: 0 });
    for states in [vec![v1::RunState::Failed.into(), v1::RunState::Cancelled.into()], Vec::new()] {
        let delete = v1::DeleteFinishedRequest { namespace: namespace(), states, before, limit: 7 };
        op.admin.delete_finished(delete).await.unwrap();
    }
    let run_id = op.workflows.start_workflow(start("default", "q", "t")).await.unwrap().into_inner().run_id;
    let reason = "x".repeat(60_000);
    let cancel = v1::CancelWorkflowRequest { namespace: namespace(), run_id, reason, ..Default::default() };
    op.workflows.cancel_workflow(cancel).await.unwrap();
    server.shutdown().await.unwrap();

    let lines = lines(&files, "audit.jsonl");
    let reached = |line: &Value| {
        (
            line["states"].as_str().map(str::to_owned),
            line["before"].as_str().map(str::to_owned),
            line["limit"].as_u64(),
        )
    };
    let removal = |states: &str| (Some(states.to_owned()), Some("1970-01-02T00:00:00Z".to_owned()), Some(7));
    let (some, all) = (removal("FAILED,CANCELLED"), removal("COMPLETED,FAILED,CANCELLED"));
    let told: Vec<_> = lines.iter().map(reached).collect();
    let none = (None, None, None);
    assert_eq!(told, [some.clone(), some, all.clone(), all, none.clone(), none], "{lines:?}");
    for line in &lines[4..] {
        let reason = line["reason"].as_str().unwrap();
        assert!(reason.starts_with("xxx") && reason.ends_with("x... (60000 bytes)"), "{reason}");
        assert!(reason.len() < 1100, "{}", reason.len());
    }
}

/// As those who rotate logs do: the file is moved away, and the server told.
#[cfg(unix)]
#[tokio::test]
async fn by_sighup_a_server_opens_its_audit_log_anew_and_reads_its_files_again() {
    let files = Files::new();
    let op = known("op", &["role = 'operator'\nnamespaces = ['default']"]);
    let late = known("late", &["role = 'operator'\nnamespaces = ['default']"]);
    let access = files.write("access.toml", &op.entry);
    let record = files.path("audit.jsonl");
    let served = Served::new(
        &files,
        &[
            "--access-file",
            access.to_str().unwrap(),
            "--audit-log",
            record.to_str().unwrap(),
            "--auth-reload-interval",
            "1h",
        ],
    );
    let channel =
        Channel::from_shared(format!("http://{}", served.address)).unwrap().connect().await.unwrap();
    let by = |known: &Known| Caller::over(&channel, Some(format!("Bearer {}", known.token)));
    let (mut by_op, mut by_late) = (by(&op), by(&late));
    by_op.workflows.pause_queue(pause("before")).await.unwrap();
    assert_eq!(code(by_late.workflows.pause_queue(pause("before")).await), Code::Unauthenticated);

    std::fs::rename(&record, files.path("audit.jsonl.1")).unwrap();
    files.write("access.toml", format!("{}{}", op.entry, late.entry));
    let told = Command::new("kill").args(["-HUP", &served.child.id().to_string()]).status().unwrap();
    assert!(told.success());
    soon(async { while code(by_late.workflows.pause_queue(pause("after")).await) != Code::Ok {} }).await;
    soon(async {
        while !record.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    by_op.workflows.pause_queue(pause("at last")).await.unwrap();
    let queues = |name: &str| -> Vec<String> {
        lines(&files, name).iter().map(|line| line["queue"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(queues("audit.jsonl.1")[..2], ["before", "before"]);
    assert_eq!(queues("audit.jsonl").iter().filter(|queue| *queue == "at last").count(), 2);
    // Whatever came between is in one of the two, and whole.
    let all = [queues("audit.jsonl.1"), queues("audit.jsonl")].concat();
    assert_eq!(all.iter().filter(|queue| *queue == "after").count(), 2, "{all:?}");
}
