//! Whether the other nodes of a Citus cluster keep what they acknowledge.
//!
//! The store turns `synchronous_commit` on in its own sessions, and that does not reach the nodes: Citus hands on at most
//! what `SET LOCAL` says within a transaction, and most statements of the store are transactions of their own. They commit
//! on the node, and what counts there is what the sessions of Citus get. So the nodes are asked by such a session
//! when a store is opened, and one that would acknowledge what it may lose is refused. What an operator changes
//! afterwards, `kagzi doctor` tells.

use kagzi_core::{Finding, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::citus;
use crate::error::Fault;
use crate::statement::{Tx, query};

/// What a node is asked for, in this order.
const SETTINGS: [&str; 3] = ["synchronous_commit", "fsync", "full_page_writes"];

/// One value of text, as Citus wants it.
const ASKED: &str = "SELECT concat_ws(' ', current_setting('synchronous_commit'), current_setting('fsync'),
    current_setting('full_page_writes'))";

const REMEDY: &str = "set synchronous_commit = on for the role, on the coordinator (`ALTER ROLE ... SET`, which Citus \
    hands to every node), or in the postgresql.conf of the node, and reload it";

/// Another node than the one that the URL names.
#[derive(Debug)]
struct Node {
    /// `HOST:PORT`, as the cluster knows it.
    address: String,
    /// The values of [`SETTINGS`], or why it did not tell them.
    settings: Result<Vec<String>, String>,
}

impl Node {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (host, port): (String, i32) = (row.try_get("host")?, row.try_get("port")?);
        let told: String = row.try_get::<Option<_>, _>("told")?.unwrap_or_default();
        let settings: Vec<String> = told.split(' ').map(str::to_owned).collect();
        let is_answer = row.try_get("success")? && settings.len() == SETTINGS.len();
        Ok(Self {
            address: format!("{host}:{port}"),
            settings: if is_answer { Ok(settings) } else { Err(told) },
        })
    }

    /// The settings that are off.
    fn off(&self) -> impl Iterator<Item = &'static str> {
        let values = self.settings.as_deref().unwrap_or_default();
        SETTINGS.into_iter().zip(values).filter(|(_, value)| *value == "off").map(|(name, _)| name)
    }
}

/// Refuses a cluster one of whose nodes does not wait until its commits are durable, and speaks up where the machine of
/// a node can lose them all the same. A node that is away says nothing, and does not keep the store from being opened.
pub(crate) async fn check(tx: &mut Tx<'_>, partitions: u16) -> Result<(), Fault> {
    let nodes = ask(tx, partitions).await?;
    for node in &nodes {
        if let Err(why) = &node.settings {
            tracing::warn!(
                node = node.address,
                why,
                "a node of the cluster could not be asked for its settings"
            );
        }
        for setting in node.off().filter(|name| *name != SETTINGS[0]) {
            tracing::warn!(
                node = node.address,
                setting,
                "NOT DURABLE: this node of the cluster runs with {setting} = off, so a crash of its machine can lose \
                 or damage what was acknowledged; set {setting} = on in its postgresql.conf"
            );
        }
    }
    let careless: Vec<&str> = nodes
        .iter()
        .filter(|node| node.off().any(|name| name == SETTINGS[0]))
        .map(|node| &*node.address)
        .collect();
    if careless.is_empty() {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: "citus".to_owned(),
        expected: format!(
            "nodes that answer when a commit is durable, since the store's own setting does not reach them: {REMEDY}"
        ),
        got: format!("synchronous_commit = off on {}", careless.join(", ")),
    }
    .into())
}

/// What is to be told to operators; nothing where there are no other nodes.
pub(crate) async fn examine(tx: &mut Tx<'_>, partitions: u16) -> Result<Option<Finding>, Fault> {
    let nodes = ask(tx, partitions).await?;
    Ok((!nodes.is_empty()).then(|| judge(&nodes)))
}

fn judge(nodes: &[Node]) -> Finding {
    let off: Vec<String> = nodes
        .iter()
        .flat_map(|node| node.off().map(move |name| format!("{name} = off on {}", node.address)))
        .collect();
    if !off.is_empty() {
        let remedy = format!(
            "{REMEDY}; for fsync and full_page_writes restart it: as it is, a crash of its machine loses or damages what \
             was acknowledged"
        );
        return Finding::fail("nodes", off.join(", "), remedy);
    }
    let silent: Vec<String> = nodes
        .iter()
        .filter_map(|node| Some(format!("{}: {}", node.address, node.settings.as_ref().err()?)))
        .collect();
    if !silent.is_empty() {
        let remedy =
            "start it again; see `SELECT * FROM citus_check_cluster_node_health()` on the coordinator";
        return Finding::warn(
            "nodes",
            format!("not to be asked for their settings: {}", silent.join(", ")),
            remedy,
        );
    }
    let found = format!("{} beside this one, with {} on", nodes.len(), SETTINGS.join(", "));
    Finding::ok("nodes", found)
}

/// The other nodes of the cluster; none where all stays on the server that the URL names.
async fn ask(tx: &mut Tx<'_>, partitions: u16) -> Result<Vec<Node>, Fault> {
    if partitions <= 1 || !citus::is_installed(tx).await? {
        return Ok(Vec::new());
    }
    // By default half a minute for a machine that is gone, which is as long as a statement may take.
    query("SELECT set_config('citus.node_connection_timeout', '5s', true)").execute(tx).await?;
    let nodes = query(
        "SELECT n.nodename::text AS host, n.nodeport::integer AS port, a.success, a.result AS told
         FROM run_command_on_all_nodes($1) a JOIN pg_dist_node n USING (nodeid)
         WHERE n.groupid NOT IN (SELECT groupid FROM pg_dist_local_group)
         ORDER BY 1, 2",
    );
    let rows = nodes.bind(ASKED).fetch_all(tx).await?;
    Ok(rows.iter().map(Node::from_row).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use kagzi_core::Verdict;

    use super::*;

    fn node(address: &str, settings: Result<&str, &str>) -> Node {
        let settings = settings.map(|told| told.split(' ').map(str::to_owned).collect());
        Node { address: address.to_owned(), settings: settings.map_err(str::to_owned) }
    }

    #[test]
    fn what_a_node_would_lose_is_told_before_what_one_did_not_tell() {
        let well = || node("n1:5432", Ok("remote_apply on on"));
        let away = || node("n2:5432", Err("failed to connect to n2:5432"));
        let judged = judge(&[well()]);
        assert_eq!((judged.verdict, judged.check), (Verdict::Ok, "nodes"));
        let judged = judge(&[well(), away()]);
        assert_eq!(judged.verdict, Verdict::Warn);
        assert!(judged.found.contains("failed to connect to n2:5432"), "{judged:?}");
        for (told, name) in [
            ("off on on", "synchronous_commit"),
            ("on off on", "fsync"),
            ("local on off", "full_page_writes"),
        ] {
            let judged = judge(&[well(), away(), node("n3:5433", Ok(told))]);
            assert_eq!(
                (judged.verdict, &*judged.found),
                (Verdict::Fail, &*format!("{name} = off on n3:5433"))
            );
        }
    }
}
