//! The files of `ops/`: they parse, every metric and label that they name is one that a server shows, and
//! every setting that they give is one that a server knows.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, helpers included")]

mod memory;
mod page;
mod yaml;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use page::Page;

fn read(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Vec<Value> {
    yaml::documents(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("{path} in {value}"))
}

fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    value.pointer(path).and_then(Value::as_array).unwrap_or_else(|| panic!("{path} in {value}"))
}

/// The rules of every group.
fn alerts() -> Vec<Value> {
    let file = yaml("ops/prometheus/alerts.yaml").remove(0);
    list(&file, "/groups").iter().flat_map(|group| list(group, "/rules").to_vec()).collect()
}

#[tokio::test]
async fn every_metric_and_label_of_an_alert_or_a_panel_is_one_that_a_server_shows() {
    let page = Page::of_a_server_at_work().await;
    let alerts = alerts();
    assert!(alerts.len() >= 10, "{}", alerts.len());
    for alert in &alerts {
        page.must_show(text(alert, "/alert"), text(alert, "/expr"));
    }
    let dashboard: Value = serde_json::from_str(&read("ops/grafana/kagzi.json")).unwrap();
    let mut panels = 0;
    for panel in list(&dashboard, "/panels").iter().filter(|panel| text(panel, "/type") != "row") {
        panels += 1;
        for target in list(panel, "/targets") {
            page.must_show(text(panel, "/title"), text(target, "/expr"));
        }
        assert!(!text(panel, "/description").is_empty());
    }
    assert!(panels >= 20, "{panels}");
    // A series that no server shows proves nothing.
    let cases = yaml("ops/prometheus/alerts.test.yaml").remove(0);
    for day in list(&cases, "/tests") {
        for series in list(day, "/input_series") {
            page.could_show(text(series, "/series"));
        }
    }
    let variable = text(&dashboard, "/templating/list/1/query/query");
    page.must_show("the variable instance", variable);
}

#[test]
fn every_alert_says_what_it_means_and_the_documentation_what_to_do() {
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = text(&alert, "/alert");
        assert!(names.insert(name.to_owned()), "{name} twice");
        assert!(["critical", "warning"].contains(&text(&alert, "/labels/severity")), "{name}");
        assert!(!text(&alert, "/annotations/summary").is_empty(), "{name}");
        assert!(text(&alert, "/annotations/description").contains("{{"), "{name} says of what");
    }
    let documentation = read("docs/operations.md");
    let explained: BTreeSet<String> =
        documentation.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    assert_eq!(explained, names);
}

/// The cases of `ops/prometheus/alerts.test.yaml` are played by Prometheus's own program where it is installed. That
/// each alert has some is looked at everywhere.
#[test]
fn every_alert_is_shown_to_come_on_a_bad_day_and_to_stay_away_on_a_good_one() {
    let file = yaml("ops/prometheus/alerts.test.yaml").remove(0);
    let [bad, good, ..] = list(&file, "/tests") else { panic!("a bad day, a good one and odd ones") };
    let named = |day: &Value, comes: bool| -> BTreeSet<String> {
        let cases = list(day, "/alert_rule_test").iter();
        let cases = cases.filter(|case| list(case, "/exp_alerts").is_empty() != comes);
        cases.map(|case| text(case, "/alertname").to_owned()).collect()
    };
    let alerts: BTreeSet<String> = alerts().iter().map(|alert| text(alert, "/alert").to_owned()).collect();
    assert_eq!(named(bad, true), alerts);
    assert_eq!(named(good, false), alerts);
    assert_eq!(named(good, true), BTreeSet::new());

    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../ops/prometheus");
    let played =
        Command::new("promtool").args(["test", "rules", "alerts.test.yaml"]).current_dir(directory).output();
    match played {
        Ok(played) => {
            let said = [played.stdout, played.stderr].concat();
            assert!(played.status.success(), "{}", String::from_utf8_lossy(&said));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => panic!("promtool: {error}"),
    }
}

#[test]
fn panels_lie_side_by_side() {
    let dashboard: Value = serde_json::from_str(&read("ops/grafana/kagzi.json")).unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard, "/panels") {
        let number = |path: &str| panel.pointer(path).and_then(Value::as_u64).unwrap();
        assert!(ids.insert(number("/id")));
        let (x, y, w, h) =
            (number("/gridPos/x"), number("/gridPos/y"), number("/gridPos/w"), number("/gridPos/h"));
        assert!(x + w <= 24);
        for (column, row) in (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row))) {
            assert!(taken.insert((column, row)), "{} overlaps", text(panel, "/title"));
        }
    }
}

/// The variables that a server reads.
fn variables() -> BTreeSet<String> {
    let example = read("kagzi-server/kagzi.example.toml");
    let keys = example.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = "));
    keys.map(|(key, _)| format!("KAGZI_{}", key.to_uppercase())).collect()
}

/// Fails if a server would refuse addresses that others reach: with neither credentials and TLS nor leave.
fn must_start<'v>(variable: impl Fn(&str) -> Option<&'v str>) {
    let open = |name: &str| variable(name).is_some_and(|address| address.starts_with("0.0.0.0:"));
    assert!(open("KAGZI_LISTEN") && open("KAGZI_HTTP_LISTEN"));
    let guarded =
        ["KAGZI_ACCESS_FILE", "KAGZI_TLS_CERT", "KAGZI_TLS_KEY"].iter().all(|name| variable(name).is_some());
    assert!(guarded || variable("KAGZI_INSECURE") == Some("true"));
    assert_eq!(variable("KAGZI_HTTP_INSECURE"), Some("true"));
}

#[test]
fn a_composition_gives_only_settings_that_there_are_and_publishes_nothing_beyond_this_machine() {
    let compose = yaml("ops/docker/compose.yaml").remove(0);
    let known = variables();
    assert!(known.len() > 25, "{known:?}");
    let environment = compose.pointer("/services/kagzi/environment").and_then(Value::as_object).unwrap();
    for name in environment.keys() {
        assert!(known.contains(name), "{name}");
    }
    must_start(|name| environment.get(name).and_then(Value::as_str));
    let services = compose.pointer("/services").and_then(Value::as_object).unwrap();
    for (name, service) in services {
        for port in service.pointer("/ports").and_then(Value::as_array).into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
    }
    // What is written into the files of others is YAML too.
    for config in compose.pointer("/configs").and_then(Value::as_object).unwrap().values() {
        yaml::documents(text(config, "/content")).unwrap();
    }
    let scraped = yaml::documents(text(&compose, "/configs/prometheus/content")).unwrap().remove(0);
    let alone = yaml("ops/prometheus/prometheus.yaml").remove(0);
    for file in [scraped, alone] {
        // The alerts ask for this job.
        assert_eq!(text(&file, "/scrape_configs/0/job_name"), "kagzi");
        assert_eq!(text(&file, "/rule_files/0"), "alerts.yaml");
    }
}

#[test]
fn a_pod_is_probed_where_the_server_answers_and_has_no_rights_that_it_does_not_need() {
    let manifest = yaml("ops/kubernetes/kagzi.yaml");
    let kinds: Vec<&str> = manifest.iter().map(|document| text(document, "/kind")).collect();
    assert_eq!(kinds, ["Deployment", "Service", "PodDisruptionBudget"]);
    let pod = manifest[0].pointer("/spec/template/spec").unwrap();
    assert_eq!(pod.pointer("/securityContext/runAsNonRoot"), Some(&Value::Bool(true)));
    // Two servers on one machine are one machine away from none.
    let spread = list(pod, "/topologySpreadConstraints");
    assert_eq!(text(&spread[0], "/topologyKey"), "kubernetes.io/hostname");
    for constraint in spread {
        let selector = "/labelSelector/matchLabels";
        assert_eq!(constraint.pointer(selector), manifest[0].pointer("/spec/selector/matchLabels"));
    }
    let container = &list(pod, "/containers")[0];
    for (probe, path) in
        [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(text(container, &format!("/{probe}/httpGet/path")), path);
        assert_eq!(text(container, &format!("/{probe}/httpGet/port")), "http");
    }
    let known = variables();
    for variable in list(container, "/env") {
        assert!(known.contains(text(variable, "/name")), "{variable}");
    }
    let variables = list(container, "/env");
    must_start(|wanted| {
        let variable = variables.iter().find(|variable| text(variable, "/name") == wanted)?;
        variable.pointer("/value").and_then(Value::as_str)
    });
    let security = container.pointer("/securityContext").unwrap();
    assert_eq!(security.pointer("/allowPrivilegeEscalation"), Some(&Value::Bool(false)));
    assert_eq!(security.pointer("/readOnlyRootFilesystem"), Some(&Value::Bool(true)));
    assert_eq!(text(security, "/capabilities/drop/0"), "ALL");
    for document in &manifest[1..] {
        let selector = if text(document, "/kind") == "Service" {
            "/spec/selector"
        } else {
            "/spec/selector/matchLabels"
        };
        assert_eq!(document.pointer(selector), manifest[0].pointer("/spec/selector/matchLabels"));
    }
}

#[test]
fn an_image_and_a_unit_run_the_server_without_root() {
    let image = read("ops/docker/Dockerfile");
    let last = image.rsplit("\nFROM ").next().unwrap();
    let user = last.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(!user.starts_with('0') && !user.contains("root"), "{user}");
    assert!(last.contains("ENTRYPOINT [\"/usr/local/bin/kagzi\"]") && last.contains("CMD [\"serve\"]"));
    let unit = read("ops/systemd/kagzi.service");
    for line in ["NoNewPrivileges=yes", "ProtectSystem=strict", "KillSignal=SIGTERM", "Restart=always"] {
        assert!(unit.lines().any(|said| said == line), "{line}");
    }
    // One that stays, since it owns files that nobody else may read, and that is made beside the unit.
    let user = unit.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
    let made = read("ops/systemd/kagzi.sysusers.conf");
    assert!(made.lines().any(|line| line.starts_with(&format!("u {user} - "))), "{user}: {made}");
    assert!(!unit.lines().any(|line| line.starts_with("DynamicUser")));
    assert!(read("docs/operations.md").contains(&format!("sudo -u {user} kagzi backup")));
    // Where the audit log is said to be, the unit lets it be written.
    let logs = unit.lines().find_map(|line| line.strip_prefix("LogsDirectory=")).unwrap();
    for file in ["docs/operations.md", "kagzi-server/kagzi.example.toml"] {
        assert!(read(file).contains(&format!("/var/log/{logs}/audit.jsonl")), "{file}");
    }
    // It is started again however often it did not start.
    let section = unit.split("\n[Service]").next().unwrap();
    assert!(section.lines().any(|line| line == "StartLimitIntervalSec=0"), "{section}");
}
