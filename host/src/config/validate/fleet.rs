//! What must hold of a fleet: where it agrees, what its node is called, and how long it waits.

use super::names::is_name;
use super::{Finding, join, span};
use crate::config::Config;
use crate::config::diagnostic::shorten;
use crate::fleet::{HEARTBEAT_RANGE, START_TIMEOUT_MAX};
use crate::store::BackendKind;
use std::time::Duration;

pub(super) fn fleet(config: &Config, found: &mut Vec<Finding>) {
    let Some(fleet) = &config.fleet else {
        return;
    };
    let (is_there, example) = match fleet.backend {
        BackendKind::Etcd => (
            config.store.etcd.is_some(),
            "endpoints = [\"127.0.0.1:2379\"]",
        ),
        _ => (config.store.redis.is_some(), "server = \"127.0.0.1:6379\""),
    };
    if !is_there {
        let name = fleet.backend.as_str();
        let message =
            format!("the fleet agrees in {name}, and the config does not say where that is");
        let finding = Finding::new(
            "fleet.backend",
            message,
            format!("there is no [store.{name}]"),
        );
        // One that is there and could not be read is told by itself.
        let finding = finding.other(join("store", name));
        found.push(finding.help(format!("write `[store.{name}]` with `{example}`")));
    }
    if let Some(node) = fleet.node.as_ref().filter(|node| !is_name(node)) {
        let message = format!(
            "{:?} cannot be the name of a node: expected at most 64 letters, digits, `-`, `_` and `.`, the first a letter \
             or digit",
            shorten(node)
        );
        found.push(Finding::new("fleet.node", message, "not a name"));
    }
    span(
        join("fleet", "heartbeat"),
        fleet.heartbeat,
        HEARTBEAT_RANGE,
        found,
    );
    span(
        join("fleet", "start_timeout"),
        fleet.start_timeout,
        Duration::ZERO..=START_TIMEOUT_MAX,
        found,
    );
}
