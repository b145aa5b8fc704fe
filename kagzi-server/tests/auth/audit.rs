//! What operators do is on record, whatever the log level.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use kagzi_proto::v1;
use serde_json::Value;
use tonic::transport::Channel;

use crate::support::*;

/// A server in a process of its own.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn new(files: &Files, args: &[&str]) -> Self {
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

fn lines(files: &Files, name: &str) -> Vec<Value> {
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
    let expected = [
        ("app", "RequeueWorkflow", run, "PERMISSION_DENIED"),
        ("op", "RequeueWorkflow", run, "WRONG_STATE"),
        ("op", "CancelWorkflow", run, "OK"),
        ("app", "PauseQueue", queue, "PERMISSION_DENIED"),
        ("op", "PauseQueue", queue, "OK"),
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
            let reason = (method == "PauseQueue").then_some("mail is down");
            assert_eq!(line["reason"].as_str(), reason, "{line}");
            assert_eq!(line["credential"].as_str(), Some("token"));
            assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
            assert_eq!(line["namespace"].as_str(), target.map(|_| "default"), "{line}");
        }
    }
    assert!(lines(&files, "log").iter().all(|line| line["target"] == "kagzi::audit"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
