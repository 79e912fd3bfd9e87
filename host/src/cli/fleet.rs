//! `throwbar fleet`: the nodes that share a backend, whether each has what they agreed on, and what none of them has.

use super::client::{Client, Connect, encode, with_query};
use super::output::{self, Align, Out, Table, printable};
use super::{Ended, Exit};
use crate::config::decode::units;
use anyhow::Context;
use clap::Subcommand;
use http::Method;
use http_body_util::Empty;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks while it waits.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Arguments of `fleet`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar fleet status
  throwbar fleet status --wait 30s      until every node has what was pushed last
  throwbar fleet forget old-router      what was agreed on of a plugin that no config has any more")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the nodes, and what each has; fails if one has not what was agreed on
    #[command(after_help = "\
A node is `ok` if it has what was agreed on, `behind` while it takes it, `failed` if it could not
and stays with what it had, `own` if nothing was agreed on of its plugins, `unknown` while nothing
is heard of it.

Examples:
  throwbar fleet status
  throwbar fleet status --json
  throwbar fleet status --wait 30s")]
    Status {
        /// Wait so long for every node to have what was agreed on until now, by whichever node
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = units::duration)]
        wait: Option<Duration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget what was agreed on of a plugin that no node has, and its components
    #[command(after_help = "\
It is refused while a node has a plugin of this name: take it out of the config of each first. One
that is away is not asked: if it comes back with it, it keeps the version it had, as its own.

Examples:
  throwbar fleet forget old-router --dry-run
  throwbar fleet forget old-router")]
    Forget {
        /// The plugin's name
        name: String,
        /// Change nothing, say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
}

/// The fleet, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
struct Fleet {
    node: String,
    /// In seconds; none if it knows nothing yet.
    staleness_s: Option<f64>,
    not_told: Option<String>,
    nodes: Vec<Node>,
    plugins: BTreeMap<String, Agreed>,
}

/// A node, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    node: String,
    state: String,
    ready: bool,
    version: String,
    admin: String,
    config: String,
    revision: u64,
    told_s: u64,
    name_taken: bool,
    plugins: BTreeMap<String, Told>,
    unreadable: Option<String>,
}

/// What a node has of a plugin.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    state: String,
    active: Option<String>,
    canary: Option<Canary>,
    reason: Option<String>,
}

/// What was agreed on of a plugin.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Agreed {
    active: Option<String>,
    canary: Option<Canary>,
    by: String,
    node: String,
    at: Option<String>,
    unreadable: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Canary {
    version: String,
    percent: f64,
}

impl Fleet {
    /// Whether it is known that no node has a plugin of this name.
    fn is_of_nobody(&self, plugin: &str) -> bool {
        let lacks = |node: &Node| node.unreadable.is_none() && !node.plugins.contains_key(plugin);
        self.not_told.is_none() && self.nodes.iter().all(lacks)
    }
}

impl Canary {
    fn shown(&self) -> String {
        format!("{} {} %", output::short(&self.version), self.percent)
    }
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached or is no node, if a node has not what was agreed on, and if a plugin cannot be forgotten.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.connect.client()?;
    match args.command {
        Command::Status { wait, json } => status(&client, wait, json).await,
        Command::Forget {
            name,
            dry_run,
            json,
        } => forget(&client, &name, dry_run, json).await,
    }
}

async fn forget(client: &Client, name: &str, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let path = with_query(
        format!("/v1/fleet/plugins/{}", encode(name)),
        &[("dry_run", dry_run.then(|| "true".to_owned()))],
    );
    let answer = client.send(Method::DELETE, &path, &[], Empty::new(), None);
    let answer: Value = answer.await?.json()?;
    let mut out = Out::stdout();
    if json {
        out.json(&answer)?;
    } else {
        let name = printable(name);
        out.line(match dry_run {
            true => format!("{name}: would be forgotten; nothing changed"),
            false => format!("{name}: forgotten"),
        })?;
    }
    out.flush()
}

async fn status(client: &Client, wait: Option<Duration>, json: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let deadline = began + wait.unwrap_or_default();
    let (answer, fleet, wrong) = loop {
        let asked = began.elapsed();
        let (answer, fleet) = read(client).await?;
        let behind = wait.and_then(|_| behind(&fleet, asked));
        let wrong = wrong(&fleet).or(behind);
        if wrong.is_none() || Instant::now() >= deadline {
            break (answer, fleet, wrong);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let mut out = Out::stdout();
    if json {
        out.json(&answer)?;
    } else {
        print(&fleet, &mut out)?;
    }
    out.flush()?;
    match wrong {
        None => Ok(()),
        Some(wrong) => Err(Ended::error(Exit::Failed, wrong)),
    }
}

async fn read(client: &Client) -> anyhow::Result<(Value, Fleet)> {
    let answer: Value = client.get("/v1/fleet").await?.json()?;
    let fleet = Fleet::deserialize(&answer);
    let fleet = fleet.context("the admin API's answer is not what was expected")?;
    Ok((answer, fleet))
}

/// Why a node may not know yet what was agreed on so long ago.
fn behind(fleet: &Fleet, ago: Duration) -> Option<String> {
    let node = &fleet.node;
    match fleet.staleness_s {
        Some(age) if age <= ago.as_secs_f64() => None,
        Some(age) => Some(format!(
            "node {node:?} tells what it knew {age:.1} s ago: something may have been agreed on since"
        )),
        None => Some(format!("node {node:?} does not know what was agreed on")),
    }
}

/// What is not as it should be, in one line.
fn wrong(fleet: &Fleet) -> Option<String> {
    let count = |state: &str| {
        fleet
            .nodes
            .iter()
            .filter(|node| node.state == state)
            .count()
    };
    let (behind, failed, unknown) = (count("behind"), count("failed"), count("unknown"));
    let mut parts = Vec::new();
    if failed > 0 {
        parts.push(format!("{failed} failed"));
    }
    if behind > 0 {
        parts.push(format!("{behind} behind"));
    }
    if unknown > 0 {
        parts.push(format!("{unknown} unknown"));
    }
    let taken = fleet.nodes.iter().filter(|node| node.name_taken).count();
    if taken > 0 {
        parts.push(format!(
            "{} of two processes",
            output::counted(taken as u64, "name")
        ));
    }
    if let Some(reason) = &fleet.not_told {
        let node = &fleet.node;
        parts.push(format!("node {node:?} has lost the others: {reason}"));
    }
    if !fleet.nodes.iter().any(|node| node.node == fleet.node) {
        parts.push(format!(
            "node {:?}, which was asked, is not among them",
            fleet.node
        ));
    }
    let total = output::counted(fleet.nodes.len() as u64, "node");
    (!parts.is_empty()).then(|| format!("of {total}: {}", parts.join(", ")))
}

fn print(fleet: &Fleet, out: &mut Out) -> anyhow::Result<()> {
    let mut nodes = Table::new(&[
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("VERSION", Align::Left),
        ("CONFIG", Align::Left),
        ("REVISION", Align::Right),
        ("TOLD", Align::Right),
        ("ADMIN", Align::Left),
    ]);
    for node in &fleet.nodes {
        let ready = if node.ready { "" } else { ", not ready" };
        nodes.row([
            printable(&node.node),
            format!("{}{ready}", node.state),
            printable(&node.version),
            output::short(&node.config).to_owned(),
            node.revision.to_string(),
            output::age(node.told_s),
            printable(&node.admin),
        ]);
    }
    nodes.print(out)?;
    if !fleet.plugins.is_empty() {
        out.line("")?;
        let mut plugins = Table::new(&[
            ("PLUGIN", Align::Left),
            ("AGREED", Align::Left),
            ("CANARY", Align::Left),
            ("BY", Align::Left),
            ("AT", Align::Left),
        ]);
        for (name, agreed) in &fleet.plugins {
            let version = agreed.active.as_deref().map(output::short);
            let canary = agreed.canary.as_ref().map(Canary::shown);
            plugins.row([
                printable(name),
                version.unwrap_or("unreadable").to_owned(),
                canary.unwrap_or_else(|| "-".to_owned()),
                printable(&format!("{}@{}", agreed.by, agreed.node)),
                agreed.at.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        plugins.print(out)?;
    }
    let problems = problems(fleet);
    if !problems.is_empty() {
        out.line("")?;
        for problem in problems {
            out.line(printable(&problem))?;
        }
    }
    Ok(())
}

/// A line for each plugin of each node that is not what was agreed on, and for each that no node has.
fn problems(fleet: &Fleet) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, agreed) in &fleet.plugins {
        if let Some(reason) = &agreed.unreadable {
            lines.push(format!(
                "plugin {name}: what was agreed on is unreadable: {reason}"
            ));
        }
        if fleet.is_of_nobody(name) {
            lines.push(format!(
                "plugin {name}: no node has a plugin of this name; `throwbar fleet forget {name}` if none is to have it again"
            ));
        }
    }
    for node in &fleet.nodes {
        if let Some(reason) = &node.unreadable {
            lines.push(format!("{}: unreadable: {reason}", node.node));
        }
        if node.name_taken {
            lines.push(format!(
                "{}: two processes tell under this name: give each a name of its own, `node` in [fleet]",
                node.node
            ));
        }
        for (name, told) in &node.plugins {
            if !matches!(told.state.as_str(), "behind" | "failed") {
                continue;
            }
            let has = told.active.as_deref().map_or("no version", output::short);
            let canary = told.canary.as_ref().map(Canary::shown);
            let canary = canary.map(|canary| format!(" with canary {canary}"));
            let reason = told.reason.as_ref().map(|reason| format!(": {reason}"));
            lines.push(format!(
                "{}: plugin {name} {}, has {has}{}{}",
                node.node,
                told.state,
                canary.unwrap_or_default(),
                reason.unwrap_or_default()
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fleet(answer: Value) -> Fleet {
        Fleet::deserialize(answer).expect("a fleet")
    }

    #[test]
    fn what_is_not_as_agreed_on_is_said_with_its_reason() {
        let version = "a".repeat(64);
        let fleet = fleet(json!({
            "node": "a", "not_told": null,
            "nodes": [
                {"node": "a", "state": "ok", "plugins": {"p": {"state": "ok", "active": version}}},
                {"node": "b", "state": "failed", "plugins": {"p": {
                    "state": "failed", "active": null, "reason": "activate version bbb: init: no"}}},
                {"node": "c", "state": "behind", "plugins": {"p": {
                    "state": "behind", "active": version, "canary": {"version": version, "percent": 5.0, "by": "path"}}}},
            ],
            "plugins": {"p": {"active": version, "by": "x", "node": "a"}},
        }));
        assert_eq!(
            wrong(&fleet).as_deref(),
            Some("of 3 nodes: 1 failed, 1 behind")
        );
        assert_eq!(
            problems(&fleet),
            [
                "b: plugin p failed, has no version: activate version bbb: init: no",
                "c: plugin p behind, has aaaaaaaaaaaa with canary aaaaaaaaaaaa 5 %",
            ]
        );
    }

    #[test]
    fn two_processes_of_one_name_are_not_as_it_should_be() {
        let fleet = fleet(json!({
            "node": "a", "nodes": [{"node": "a", "state": "ok", "name_taken": true}], "plugins": {},
        }));
        let expected = "of 1 node: 1 name of two processes";
        assert_eq!(wrong(&fleet).as_deref(), Some(expected));
        let [problem] = &problems(&fleet)[..] else {
            panic!("one problem");
        };
        assert!(
            problem.starts_with("a: two processes tell under this name"),
            "{problem}"
        );
    }

    #[test]
    fn a_plugin_that_no_node_has_is_said_but_nothing_is_wrong_with_it() {
        let answer = json!({
            "node": "a", "not_told": null,
            "nodes": [
                {"node": "a", "state": "own", "plugins": {"p": {"state": "own"}}},
                {"node": "b", "state": "own", "plugins": {"p": {"state": "own"}}},
            ],
            "plugins": {"p": {"by": "x", "node": "a"}, "old": {"by": "x", "node": "a"}},
        });
        let mut nobody = fleet(answer);
        assert_eq!(wrong(&nobody), None);
        let [problem] = &problems(&nobody)[..] else {
            panic!("one problem: {:?}", problems(&nobody));
        };
        assert!(problem.starts_with("plugin old: no node has"), "{problem}");
        // A node of which nothing can be read, or that is not heard of, may have it.
        nobody.nodes[1].unreadable = Some("no JSON".to_owned());
        assert_eq!(problems(&nobody), ["b: unreadable: no JSON"]);
        nobody.nodes[1].unreadable = None;
        nobody.not_told = Some("away".to_owned());
        assert!(problems(&nobody).is_empty());
    }

    #[test]
    fn a_fleet_that_agrees_is_right_and_one_that_is_lost_is_not() {
        let answer = json!({
            "node": "a", "nodes": [{"node": "a", "state": "own"}, {"node": "b", "state": "ok"}], "plugins": {},
        });
        assert_eq!(wrong(&fleet(answer.clone())), None);
        let mut lost = fleet(answer);
        lost.not_told = Some("store unavailable: away".to_owned());
        lost.nodes[1].state = "unknown".to_owned();
        let expected =
            "of 2 nodes: 1 unknown, node \"a\" has lost the others: store unavailable: away";
        assert_eq!(wrong(&lost).as_deref(), Some(expected));
    }

    #[test]
    fn a_node_that_is_not_in_its_own_list_is_told() {
        let fleet = fleet(json!({ "node": "a", "nodes": [], "plugins": {} }));
        let expected = "of 0 nodes: node \"a\", which was asked, is not among them";
        assert_eq!(wrong(&fleet).as_deref(), Some(expected));
    }
}
