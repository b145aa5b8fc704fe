//! Whether what a server may hold by its settings fits the memory that it is given.

use kagzi_server::{LoadLimits, ServerConfig};

use crate::{list, read, text, yaml};

const MIB: u64 = 1024 * 1024;

/// The figures of docs/security.md: the server itself, and what it holds beyond its account.
const ITSELF: u64 = 100 * MIB;
const CONNECTION: u64 = 2 * MIB;
const STREAM: u64 = 50_000;

/// What a server with these variables holds at most, in bytes.
fn held(variable: impl Fn(&str) -> Option<u64>) -> u64 {
    let LoadLimits { max_bytes_in_flight, max_connections, max_streams, .. } = ServerConfig::default().load;
    let of = |name: &str, default: u64| variable(name).unwrap_or(default);
    let bytes = of("KAGZI_MAX_BYTES_IN_FLIGHT", max_bytes_in_flight.try_into().unwrap());
    let connections = of("KAGZI_MAX_CONNECTIONS", max_connections.into());
    assert!(variable("KAGZI_MAX_CONNECTIONS_PER_ADDRESS").is_some_and(|each| each <= connections));
    let streams = of("KAGZI_MAX_STREAMS", max_streams.into());
    ITSELF + bytes + bytes / 2 + CONNECTION * connections + STREAM * streams
}

/// Fails if it is more than the limit, or if the file says another sum beside its settings.
fn fits(held: u64, limit: u64, file: &str) {
    assert!(held <= limit, "{} MiB in {} MiB", held / MIB, limit / MIB);
    let said = file.split_once("together ").unwrap().1.split_once(" MiB").unwrap().0;
    assert_eq!(said.parse(), Ok((held + MIB / 2) / MIB), "the sum in the comment");
}

/// Bytes, as `1Gi`, `512Mi` or `2G` of systemd, which counts by 1024.
fn size(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap());
    let unit = match unit.trim_end_matches('i') {
        "M" => MIB,
        "G" => 1024 * MIB,
        other => panic!("{other}"),
    };
    number.parse::<u64>().unwrap() * unit
}

#[test]
fn what_a_pod_may_hold_fits_its_limit_of_memory() {
    let manifest = yaml("ops/kubernetes/kagzi.yaml").remove(0);
    let container = &list(&manifest, "/spec/template/spec/containers")[0];
    let held = held(|name| {
        let variable = list(container, "/env").iter().find(|variable| text(variable, "/name") == name)?;
        Some(text(variable, "/value").parse().unwrap())
    });
    fits(held, size(text(container, "/resources/limits/memory")), &read("ops/kubernetes/kagzi.yaml"));
}

#[test]
fn what_a_unit_may_hold_fits_its_limit_of_memory() {
    let unit = read("ops/systemd/kagzi.service");
    let lines = |key: &'static str| unit.lines().filter_map(move |line| line.strip_prefix(key));
    let variables: Vec<_> =
        lines("Environment=").flat_map(str::split_whitespace).filter_map(|one| one.split_once('=')).collect();
    let held = held(|wanted| {
        let (_, value) = variables.iter().find(|(name, _)| *name == wanted)?;
        Some(value.parse().unwrap())
    });
    fits(held, size(lines("MemoryMax=").next().unwrap()), &unit);
}

#[test]
fn a_composition_bounds_no_memory_that_its_server_could_exceed() {
    // It is for a trial. Who gives it a limit gives it the settings and a sum as above.
    let compose = yaml("ops/docker/compose.yaml").remove(0);
    assert_eq!(compose.pointer("/services/kagzi/mem_limit"), None);
    assert_eq!(compose.pointer("/services/kagzi/deploy"), None);
}

#[test]
fn the_figures_are_those_of_the_documentation() {
    let page = read("docs/security.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let figures = "some 100 MiB, `max_bytes_in_flight`, half of it again for what stands beside the bytes \
        (buffers of HTTP/2, what was decoded), 50 KB for each stream beyond its 16 KiB, and 2 MiB times the connections";
    assert!(page.contains(figures));
}
