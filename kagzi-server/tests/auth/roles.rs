//! Which role may make which call where: the whole table, and that denials tell nothing.

use kagzi_core::Namespace;
use kagzi_proto::v1::stream_work_request::Request as Asked;
use kagzi_proto::v1::stream_work_response::Response as Answered;
use kagzi_proto::{FILE_DESCRIPTOR_SET, v1};
use kagzi_server::{LoadLimits, RateLimit, ServerConfig, ServerHandle};
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::every_call::{Place, call};
use crate::support::*;

const ROLES: [&str; 5] = ["client", "worker", "operator", "admin", "none"];

/// What being bound to a queue and a type means for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    /// It is about the server, not about runs.
    DoNotMatter,
    /// It reaches what lies within.
    Within,
    /// It is answered for what lies within.
    CutTheAnswer,
    /// It reaches the whole namespace, so it is denied.
    Deny,
}
use Bounds::{CutTheAnswer, Deny, DoNotMatter, Within};

/// The table. A call without a row fails the test.
const TABLE: [(&str, &[&str], Bounds); 25] = [
    ("StartWorkflow", &["client", "admin"], Within),
    ("StartWorkflows", &["client", "admin"], Within),
    ("GetWorkflow", &["client", "operator", "admin"], Within),
    ("ListWorkflows", &["client", "operator", "admin"], Within),
    ("CountWorkflows", &["client", "operator", "admin"], Within),
    ("CancelWorkflow", &["client", "operator", "admin"], Within),
    ("RequeueWorkflow", &["operator", "admin"], Within),
    ("ListStepAttempts", &["client", "worker", "operator", "admin"], Within),
    ("GetQueueDepths", &["client", "operator", "admin"], CutTheAnswer),
    // Whatever the types of the runs in it.
    ("PauseQueue", &["operator", "admin"], Deny),
    ("ResumeQueue", &["operator", "admin"], Deny),
    ("PollActivity", &["worker", "admin"], Within),
    ("RecordHeartbeat", &["worker", "admin"], Within),
    ("BeginStep", &["worker", "admin"], Within),
    ("CompleteStep", &["worker", "admin"], Within),
    ("FailStep", &["worker", "admin"], Within),
    ("ScheduleSleep", &["worker", "admin"], Within),
    ("CompleteWorkflow", &["worker", "admin"], Within),
    ("FailWorkflow", &["worker", "admin"], Within),
    ("ReleaseWorkflow", &["worker", "admin"], Within),
    ("StreamWork", &["worker", "admin"], Within),
    ("StreamWorkflows", &["client", "operator", "admin"], DoNotMatter),
    ("GetServerInfo", &["client", "worker", "operator", "admin"], DoNotMatter),
    ("DeleteFinished", &["admin"], Deny),
    // The messages of `StreamWork` that are no calls of their own.
    ("TakeRuns", &["worker", "admin"], Within),
];

/// A server over two namespaces, and everybody of the table.
struct World {
    server: ServerHandle,
    channel: Channel,
    people: Vec<(String, String)>,
    root: Caller,
    files: Files,
}

impl World {
    async fn new() -> Self {
        let mut people = vec![known("root", &["role = 'admin'\nnamespaces = ['*']"])];
        let mut names = vec!["root".to_owned()];
        for role in ROLES {
            for (suffix, bounds) in [("", ""), ("-bound", "\nqueues = ['q']\nworkflow_types = ['t*']")] {
                let name = format!("{role}{suffix}");
                let grant = format!("role = '{role}'\nnamespaces = ['ours']{bounds}");
                let grants: &[&str] = if role == "none" { &[] } else { &[&grant] };
                people.push(known(&name, grants));
                names.push(name);
            }
        }
        let files = Files::new();
        let access: Vec<&str> = people.iter().map(|known| known.entry.as_str()).collect();
        let access = files.write("access.toml", access.concat());
        let namespaces = ["ours", "theirs"].map(|name| Namespace::new(name).unwrap()).to_vec();
        // The whole table is denied at once.
        let rate_auth_failures = RateLimit { per_second: 1_000_000, burst: 1_000_000 };
        let load = LoadLimits { rate_auth_failures, ..LoadLimits::default() };
        let server = serve(ServerConfig { namespaces, access_file: Some(access), load, ..config() }).await;
        let channel = channel(&server).await;
        let root = Caller::over(&channel, Some(format!("Bearer {}", people[0].token)));
        let people = names.into_iter().zip(people.into_iter().map(|known| known.token)).collect();
        Self { server, channel, people, root, files }
    }

    fn caller(&self, name: &str) -> Caller {
        let token = &self.people.iter().find(|(known, _)| known == name).unwrap().1;
        Caller::over(&self.channel, Some(format!("Bearer {token}")))
    }

    /// A run that is there, in that place.
    async fn place(&mut self, namespace: &str, queue: &str, workflow_type: &str) -> Place {
        let started = self.root.workflows.start_workflow(start(namespace, queue, workflow_type)).await;
        let run_id = started.unwrap().into_inner().run_id;
        let [namespace, queue, workflow_type] = [namespace, queue, workflow_type].map(str::to_owned);
        Place { namespace, queue, workflow_type, run_id }
    }
}

/// Whether a call got through: it may still fail, for what it says.
fn allowed(answer: &Result<(), Status>) -> bool {
    match answer.as_ref().map_err(Status::code) {
        Ok(()) | Err(Code::FailedPrecondition | Code::NotFound) => true,
        Err(Code::PermissionDenied) => false,
        Err(code) => panic!("neither allowed nor denied, {code:?}: {answer:?}"),
    }
}

/// The calls of the protocol, all of which must have a row.
fn calls() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    services.flat_map(|service| &service.method).map(|method| method.name().to_owned()).collect()
}

fn row(method: &str) -> (&'static [&'static str], Bounds) {
    let row = TABLE.iter().find(|(name, _, _)| *name == method);
    let Some((_, roles, bounds)) = row else { panic!("{method} has no row in the table of roles") };
    (roles, *bounds)
}

#[tokio::test]
async fn every_role_reaches_its_own_calls_in_its_own_namespace_and_no_others() {
    let mut world = World::new().await;
    let ours = world.place("ours", "q", "t").await;
    let theirs = world.place("theirs", "q", "t").await;
    let nowhere = Place { namespace: "nowhere".to_owned(), ..ours.clone() };
    for method in calls() {
        let (roles, bounds) = row(&method);
        for role in ROLES {
            let mut caller = world.caller(role);
            for (at, right) in [(&ours, true), (&theirs, false), (&nowhere, false)] {
                let expected = roles.contains(&role) && (right || bounds == DoNotMatter);
                let answer = call(&method, &mut caller, at).await;
                assert_eq!(allowed(&answer), expected, "{method} by {role} in {}: {answer:?}", at.namespace);
            }
        }
    }
    let mut stranger = Caller::over(&world.channel, None);
    for method in calls() {
        let answer = call(&method, &mut stranger, &ours).await;
        assert_eq!(code(answer), Code::Unauthenticated, "{method}");
    }
    world.server.shutdown().await.unwrap();
}

#[tokio::test]
async fn who_is_bound_to_queues_and_types_reaches_those_alone() {
    let mut world = World::new().await;
    let within = world.place("ours", "q", "t").await;
    let outside = [
        world.place("ours", "p", "t").await,
        world.place("ours", "q", "u").await,
        world.place("theirs", "q", "t").await,
    ];
    let everything = Place { queue: String::new(), workflow_type: String::new(), ..outside[0].clone() };
    for method in calls() {
        let (roles, bounds) = row(&method);
        for role in ROLES {
            let mut caller = world.caller(&format!("{role}-bound"));
            let may = roles.contains(&role);
            let answer = call(&method, &mut caller, &within).await;
            assert_eq!(allowed(&answer), may && bounds != Deny, "{method} by {role} within: {answer:?}");
            for at in &outside {
                let in_part = bounds == CutTheAnswer && at.namespace == "ours";
                let expected = may && (bounds == DoNotMatter || in_part);
                let answer = call(&method, &mut caller, at).await;
                assert_eq!(allowed(&answer), expected, "{method} by {role} at {at:?}: {answer:?}");
            }
            if ["ListWorkflows", "CountWorkflows"].contains(&method.as_str()) {
                let answer = call(&method, &mut caller, &everything).await;
                assert!(!allowed(&answer), "{method} by {role} of everything");
            }
        }
    }
}

#[tokio::test]
async fn a_denial_is_the_same_whether_or_not_the_thing_is_there() {
    let mut world = World::new().await;
    let ours = world.place("ours", "q", "t").await;
    let hidden = [world.place("ours", "p", "t").await, world.place("theirs", "q", "t").await];
    for method in calls() {
        let (roles, bounds) = row(&method);
        if bounds != Within {
            continue;
        }
        for role in roles {
            let mut caller = world.caller(&format!("{role}-bound"));
            for there in &hidden {
                let nobody = ours.run_id.replace(&ours.run_id[..4], "0000");
                let not_there = Place { run_id: nobody, ..there.clone() };
                let unserved = Place { namespace: "nowhere".to_owned(), ..not_there.clone() };
                let of_there = call(&method, &mut caller, there).await.unwrap_err();
                for at in [&not_there, &unserved] {
                    let other = call(&method, &mut caller, at).await.unwrap_err();
                    // The verdict on one lease has its own form of the same.
                    let told = |status: &Status| {
                        let details = status.get_error_details();
                        let info = details.error_info().filter(|_| method != "RecordHeartbeat").cloned();
                        let info = info.map(|info| (info.reason, info.metadata));
                        (status.code(), status.message().to_owned(), details.bad_request().is_some(), info)
                    };
                    assert_eq!(told(&other), told(&of_there), "{method} by {role} at {at:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_stream_checks_each_request_as_its_call_does() {
    let mut world = World::new().await;
    let within = world.place("ours", "q", "t").await;
    let outside = [world.place("ours", "p", "t").await, world.place("theirs", "q", "t").await];
    let mut worker = world.caller("worker-bound");
    for at in &outside {
        let first =
            v1::StreamWorkRequest { id: 0, trace_context: None, request: Some(Asked::Open(at.open())) };
        let opened = worker.workers.stream_work(tokio_stream::iter([first])).await;
        assert_eq!(code(opened), Code::PermissionDenied, "{at:?}");
    }
    let (requests, incoming) = tokio::sync::mpsc::channel(8);
    let send = |id, request| {
        let requests = requests.clone();
        async move {
            requests
                .send(v1::StreamWorkRequest { id, trace_context: None, request: Some(request) })
                .await
                .unwrap();
        }
    };
    send(0, Asked::Open(within.open())).await;
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let mut answers = worker.workers.stream_work(incoming).await.unwrap().into_inner();
    let mut heard = async |id, request| {
        send(id, request).await;
        soon(answers.message()).await.unwrap().unwrap().response.unwrap()
    };
    let refused = |answer: Answered| match answer {
        Answered::Refused(item) => Some(item.reason),
        Answered::Heartbeat(beat) => match beat.verdicts[0].verdict.clone() {
            Some(v1::heartbeat_verdict::Verdict::Refused(item)) => Some(item.reason),
            _ => None,
        },
        _ => None,
    };
    let mut id = 0;
    for (method, asked) in within.on_a_stream() {
        id += 1;
        let reason = refused(heard(id, asked).await);
        assert_ne!(reason.as_deref(), Some("PERMISSION_DENIED"), "{method}");
    }
    for at in &outside {
        for (method, asked) in at.on_a_stream() {
            id += 1;
            assert_eq!(refused(heard(id, asked).await).as_deref(), Some("PERMISSION_DENIED"), "{method}");
        }
    }
    let take = Asked::Take(v1::TakeRuns { limit: 5, ..Default::default() });
    let Answered::Runs(runs) = heard(1000, take).await else { panic!() };
    let queues: Vec<String> = runs.runs.into_iter().map(|run| run.run.unwrap().queue).collect();
    assert_eq!(queues, ["q"]);
}

#[tokio::test]
async fn a_clients_stream_checks_each_request_as_its_call_does() {
    let mut world = World::new().await;
    let places = [
        world.place("ours", "q", "t").await,
        world.place("ours", "p", "t").await,
        world.place("ours", "q", "u").await,
        world.place("theirs", "q", "t").await,
    ];
    for name in ["client", "client-bound", "operator", "operator-bound", "admin", "admin-bound"] {
        let mut caller = world.caller(name);
        for at in &places {
            for (method, asked) in at.on_a_clients_stream() {
                let by_call = call(method, &mut caller, at).await;
                let request = v1::StreamWorkflowsRequest { id: 7, trace_context: None, request: Some(asked) };
                let answers = caller.workflows.stream_workflows(tokio_stream::iter([request])).await;
                let answer = soon(answers.unwrap().into_inner().message()).await.unwrap().unwrap();
                let denied = match answer.response.unwrap() {
                    v1::stream_workflows_response::Response::Refused(item) => {
                        item.reason == "PERMISSION_DENIED"
                    }
                    _ => false,
                };
                assert_eq!((answer.id, denied), (7, !allowed(&by_call)), "{method} by {name} at {at:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_claim_that_is_sent_again_by_another_worker_shows_nothing_beyond_its_bounds() {
    let mut world = World::new().await;
    world.place("ours", "p", "t").await;
    let operation_id = "6f0d5d0e-5d7e-4b53-8d3e-0123456789ab".to_owned();
    let poll = |queue: &str| v1::PollActivityRequest {
        namespace: "ours".to_owned(),
        queues: vec![queue.to_owned()],
        workflow_types: vec!["t".to_owned()],
        worker_id: "w".to_owned(),
        operation_id: operation_id.clone(),
        ..Default::default()
    };
    let (mut worker, mut bound) = (world.caller("worker"), world.caller("worker-bound"));
    let claimed = worker.workers.poll_activity(poll("p")).await.unwrap().into_inner().runs.remove(0);
    // The id and the name of the other worker are all that it takes to ask again.
    assert!(bound.workers.poll_activity(poll("q")).await.unwrap().into_inner().runs.is_empty());
    let open = Asked::Open(v1::OpenWork {
        namespace: "ours".to_owned(),
        queues: vec!["q".to_owned()],
        workflow_types: vec!["t".to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    });
    let take = Asked::Take(v1::TakeRuns { limit: 5, operation_id, ..Default::default() });
    let asked =
        [open, take].map(|asked| v1::StreamWorkRequest { id: 1, trace_context: None, request: Some(asked) });
    let mut answers = bound.workers.stream_work(tokio_stream::iter(asked)).await.unwrap().into_inner();
    let answer = soon(answers.message()).await.unwrap().unwrap().response.unwrap();
    let Answered::Runs(runs) = answer else { panic!("{answer:?}") };
    assert!(runs.runs.is_empty());
    // Whoever holds the run goes on with it: it was not given back.
    let complete = v1::CompleteWorkflowRequest { lease: claimed.lease.unwrap().lease, ..Default::default() };
    worker.workers.complete_workflow(complete).await.unwrap();
}

#[tokio::test]
async fn one_lease_that_is_denied_costs_a_heartbeat_none_of_the_others() {
    let mut world = World::new().await;
    let (within, outside) = (world.place("ours", "q", "t").await, world.place("ours", "p", "t").await);
    let poll = v1::PollActivityRequest {
        namespace: "ours".to_owned(),
        queues: vec!["q".to_owned()],
        workflow_types: vec!["t".to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    };
    let mut worker = world.caller("worker-bound");
    let claimed = worker.workers.poll_activity(poll).await.unwrap().into_inner().runs.remove(0);
    let own = claimed.lease.unwrap().lease.unwrap();
    assert_eq!(own.run_id, within.run_id);
    let foreign = v1::Lease { run_id: outside.run_id.clone(), ..own.clone() };
    let heartbeats = [&foreign, &own, &foreign]
        .map(|lease| v1::Heartbeat { lease: Some(lease.clone()), lease_length: None })
        .to_vec();
    let beat = v1::RecordHeartbeatRequest { heartbeats };
    let verdicts = worker.workers.record_heartbeat(beat).await.unwrap().into_inner().verdicts;
    let granted: Vec<bool> = verdicts
        .iter()
        .map(|verdict| matches!(verdict.verdict, Some(v1::heartbeat_verdict::Verdict::Granted(_))))
        .collect();
    assert_eq!(granted, [false, true, false]);
}

#[tokio::test]
async fn who_is_bound_to_some_queues_sees_and_pauses_those_alone() {
    let mut world = World::new().await;
    for queue in ["q", "p"] {
        world.place("ours", queue, "t").await;
    }
    let looker = known("looker", &["role = 'operator'\nnamespaces = ['ours']\nqueues = ['p*']"]);
    let root = world.people[0].1.clone();
    let access = std::fs::read_to_string(world.files.path("access.toml")).unwrap();
    world.files.write("access.toml", format!("{access}{}", looker.entry));
    let mut caller = Caller::over(&world.channel, Some(format!("Bearer {}", looker.token)));
    let depths = v1::GetQueueDepthsRequest { namespace: "ours".to_owned() };
    let seen = soon(async {
        loop {
            if let Ok(seen) = caller.workflows.get_queue_depths(depths.clone()).await {
                break seen.into_inner().queues;
            }
        }
    })
    .await;
    let names = |queues: Vec<v1::QueueDepth>| queues.into_iter().map(|q| q.queue).collect::<Vec<_>>();
    assert_eq!(names(seen), ["p"]);
    for (queue, expected) in [("p", Ok(())), ("q", Err(Code::PermissionDenied))] {
        let (namespace, queue) = ("ours".to_owned(), queue.to_owned());
        let pause = v1::PauseQueueRequest {
            namespace: namespace.clone(),
            queue: queue.clone(),
            ..Default::default()
        };
        let resume = v1::ResumeQueueRequest { namespace, queue, ..Default::default() };
        let paused = caller.workflows.pause_queue(pause).await.map(drop);
        let resumed = caller.workflows.resume_queue(resume).await.map(drop);
        let answers = [paused, resumed].map(|answer| answer.map_err(|status| status.code()));
        assert_eq!(answers, [expected, expected]);
    }
    let mut root = Caller::over(&world.channel, Some(format!("Bearer {root}")));
    assert_eq!(names(root.workflows.get_queue_depths(depths).await.unwrap().into_inner().queues), ["p", "q"]);
}
