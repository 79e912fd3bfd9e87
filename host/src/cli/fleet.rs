//! `throwbar fleet`: the nodes that share a backend, and whether each has what they agreed on.

use super::client::{Client, Connect};
use super::output::{self, Align, Out, Table, printable};
use super::{Ended, Exit};
use crate::config::decode::units;
use anyhow::Context;
use clap::Subcommand;
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
  throwbar fleet status --wait 30s      until every node has what was pushed last")]
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
        /// Wait so long for every node to have what was agreed on
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = units::duration)]
        wait: Option<Duration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The fleet, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
struct Fleet {
    node: String,
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

impl Canary {
    fn shown(&self) -> String {
        format!("{} {} %", output::short(&self.version), self.percent)
    }
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached or is no node, and if a node has not what was agreed on.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.connect.client()?;
    let Command::Status { wait, json } = args.command;
    let deadline = Instant::now() + wait.unwrap_or_default();
    let (answer, fleet, wrong) = loop {
        let (answer, fleet) = read(&client).await?;
        let wrong = wrong(&fleet);
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

/// A line for each plugin of each node that is not what was agreed on.
fn problems(fleet: &Fleet) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, agreed) in &fleet.plugins {
        if let Some(reason) = &agreed.unreadable {
            lines.push(format!(
                "plugin {name}: what was agreed on is unreadable: {reason}"
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
