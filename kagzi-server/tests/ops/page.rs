//! The metrics page of a server that has something to show, and what expressions ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kagzi_proto::v1;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_server::{Server, ServerConfig};
use kagzi_testkit::http_get;
use tonic::transport::Channel;

/// Labels that Prometheus adds by itself.
const ADDED: [&str; 2] = ["instance", "job"];

/// Names that are no metrics of ours.
const FOREIGN: [&str; 1] = ["up"];

/// Labels whose values are the server's own, and known before anything happens.
const FIXED: [&str; 6] = ["reason", "outcome", "repair", "state", "file", "le"];

/// The labels of each series name that is shown, with their values.
pub struct Page(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Page {
    /// A server over SQLite that has started, claimed and looked at its queues.
    pub async fn of_a_server_at_work() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = ServerConfig {
            listen: "127.0.0.1:0".to_owned(),
            http_listen: Some("127.0.0.1:0".to_owned()),
            metrics_interval: Duration::from_millis(5),
            store: format!("sqlite://{}", directory.path().join("kagzi.db").display()),
            ..ServerConfig::default()
        };
        let server = Server::bind(config).await.unwrap().spawn();
        let http = server.http_addr().unwrap();
        let channel = Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
        let mut workflows = WorkflowServiceClient::new(channel.clone());
        let mut workers = WorkerServiceClient::new(channel);
        let start = v1::StartWorkflowRequest {
            namespace: "default".to_owned(),
            queue: "q".to_owned(),
            workflow_type: "t".to_owned(),
            ..v1::StartWorkflowRequest::default()
        };
        workflows.start_workflow(start).await.unwrap();
        let poll = v1::PollActivityRequest {
            namespace: "default".to_owned(),
            queues: vec!["q".to_owned()],
            worker_id: "w".to_owned(),
            ..v1::PollActivityRequest::default()
        };
        assert_eq!(workers.poll_activity(poll).await.unwrap().into_inner().runs.len(), 1);
        // The look at the queues goes on by itself.
        let text = loop {
            let text = http_get(http, "/metrics").await.unwrap();
            if text.contains("kagzi_queue_runs{") {
                break text;
            }
        };
        server.shutdown().await.unwrap();
        Self::read(&text)
    }

    fn read(text: &str) -> Self {
        let mut shown: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("kagzi_")) {
            let series = line.rsplit_once(' ').unwrap().0;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let shown = shown.entry(name.to_owned()).or_default();
            for (label, value) in labels_of(labels) {
                shown.entry(label).or_default().insert(value);
            }
        }
        Self(shown)
    }

    /// Fails unless every metric of an expression is shown, with the labels that it is picked by.
    pub fn must_show(&self, whose: &str, expression: &str) {
        let asked = asked(expression);
        assert!(!asked.is_empty(), "{whose}: no metric in {expression}");
        for (name, labels) in asked {
            if FOREIGN.contains(&name.as_str()) {
                continue;
            }
            let shown = self.0.get(&name).unwrap_or_else(|| panic!("{whose}: no server shows {name}"));
            for label in labels.iter().filter(|label| !ADDED.contains(&label.as_str())) {
                assert!(shown.contains_key(label), "{whose}: {name} has no label {label}");
            }
        }
    }

    /// Fails unless a server could show a series, such as `kagzi_x_total{instance="a",reason="y"}`.
    pub fn could_show(&self, series: &str) {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        if FOREIGN.contains(&name) {
            return;
        }
        let shown = self.0.get(name).unwrap_or_else(|| panic!("no server shows {name}"));
        let given: BTreeMap<String, String> =
            labels_of(labels).filter(|(label, _)| !ADDED.contains(&label.as_str())).collect();
        let names = |labels: Vec<&String>| labels.into_iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(given.keys().collect()), names(shown.keys().collect()), "{series}");
        for (label, value) in given.iter().filter(|(label, _)| FIXED.contains(&label.as_str())) {
            assert!(shown[label].contains(value), "{series}: {label} is one of {:?}", shown[label]);
        }
    }
}

/// The labels of a series like `a="x",b="y"}`, with their values. No value here holds a quote.
fn labels_of(labels: &str) -> impl Iterator<Item = (String, String)> {
    let parts: Vec<&str> = labels.split('"').collect();
    let named = |pair: &[&str]| {
        let name = pair[0].trim_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        (name.to_owned(), pair[1].to_owned())
    };
    parts.chunks_exact(2).map(named).collect::<Vec<_>>().into_iter()
}

/// The metrics that an expression names, with the labels in the braces after each.
fn asked(expression: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        rest = &rest[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if word.starts_with("kagzi_") || FOREIGN.contains(&word) {
            let labels = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            if let Some((labels, after)) = labels {
                found.push((word.to_owned(), label_names(labels)));
                rest = after;
            } else {
                found.push((word.to_owned(), BTreeSet::new()));
            }
        }
    }
    found
}

/// The names of labels like `a="x",b!~"y"`. No value here holds a quote.
fn label_names(labels: &str) -> BTreeSet<String> {
    let outside = labels.split('"').step_by(2);
    let names = outside.map(|part| part.trim_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn names_and_labels_are_found_in_expressions_and_pages() {
    let of = |name: &str, labels: &[&str]| {
        (name.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect::<BTreeSet<_>>())
    };
    let expression = "max by (x) (rate(kagzi_a_total{b=\"c\", d!~\"e|f\"}[5m])) / kagzi_g > 0 and up == 1";
    assert_eq!(asked(expression), [of("kagzi_a_total", &["b", "d"]), of("kagzi_g", &[]), of("up", &[])]);
    let page = Page::read("# TYPE x counter\nkagzi_a_total{b=\"c\",d=\"e\"} 1\nkagzi_g 2\n");
    page.must_show("a test", expression);
    for bad in ["kagzi_h", "kagzi_g{b=\"c\"}", "kagzi_a_total{z=\"1\"}"] {
        assert!(std::panic::catch_unwind(|| page.must_show("a test", bad)).is_err(), "{bad}");
    }
}
