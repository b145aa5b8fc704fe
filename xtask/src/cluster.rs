//! `cargo xtask cluster`: the suite and the demo on a Citus cluster of three servers, or on one that exists; and what
//! becomes of clusters of one's own whose nodes are killed.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use crate::report;
use crate::shell::{self, cargo};

/// Names the coordinator of a cluster that exists.
const URL_VARIABLE: &str = "KAGZI_TEST_CITUS_URL";

/// Over how many partitions the demo spreads its runs.
const PARTITIONS: u16 = 32;

/// Runs the suite and the demo, and where servers can be started here, what kills them. The cluster that was started for
/// the suite ends with it.
pub fn run() -> Result<(), String> {
    let named = std::env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty());
    let (url, started) = match named {
        Some(url) => (url, None),
        None => start().map(|(url, cluster)| (url, Some(cluster)))?,
    };
    let is_own = started.is_some();
    let judged = judge(&url);
    let stopped = started.map_or(Ok(()), stop);
    judged.and(stopped)?;
    if is_own {
        kill_nodes()
    } else {
        println!(
            "\nnodes that are killed: not applicable to a cluster of somebody else; leave out {URL_VARIABLE}"
        );
        Ok(())
    }
}

/// A migration that is killed, a node that is gone, and 5,000 workflows one data node of which is killed on the way.
fn kill_nodes() -> Result<(), String> {
    let mut tests =
        cargo(&["test", "--locked", "--package", "kagzi-store-postgres", "--test", "citus_cluster"]);
    shell::run("schemas on a cluster that fails", tests.args(["--", "--ignored", "--test-threads", "1"]))?;
    let arguments = ["run", "--locked", "--quiet", "--package", "kagzi-torture", "--", "cluster"];
    shell::run("workflows while a data node is killed", &mut cargo(&arguments))
}

fn judge(url: &str) -> Result<(), String> {
    let report = report::fresh_file()?;
    let mut suite =
        cargo(&["test", "--locked", "--package", "kagzi-store-postgres", "--test", "conformance_citus"]);
    suite.env(URL_VARIABLE, url).env("KAGZI_CONFORMANCE_REPORT", &report);
    let played = shell::run("conformance suite on Citus", &mut suite);
    report::print(&report)?;
    played?;
    let sign = if url.contains('?') { '&' } else { '?' };
    let store = format!("{url}{sign}partitions={PARTITIONS}&schema=kagzi_demo");
    let arguments = ["run", "--locked", "--release", "--bin", "kagzi", "--", "demo", "--store", &store];
    shell::run("demo on Citus", &mut cargo(&arguments))
}

/// Starts a cluster; it ends when its standard input does.
fn start() -> Result<(String, Child), String> {
    let mut program = cargo(&["run", "--locked", "--quiet", "--package", "kagzi-testkit", "--bin", "citus"]);
    println!("\n=== starting a coordinator and two workers");
    let mut cluster = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the cluster: {error}"))?;
    let mut url = String::new();
    if let Some(output) = cluster.stdout.take() {
        BufReader::new(output).read_line(&mut url).map_err(|error| format!("the cluster: {error}"))?;
    }
    if url.is_empty() {
        stop(cluster)?;
        return Err("no Citus cluster could be started; the reason stands above".to_owned());
    }
    Ok((url.trim().to_owned(), cluster))
}

fn stop(mut cluster: Child) -> Result<(), String> {
    drop(cluster.stdin.take());
    let status = cluster.wait().map_err(|error| format!("the cluster: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("the cluster did not end well: {status}")) }
}
