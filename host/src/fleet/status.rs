//! What is told of the fleet: by the admin API, and as metrics.

use super::entry::{ArtifactEntry, CanaryEntry, NODE, NodeEntry, PLUGIN, PluginEntry, State};
use super::{Fleet, locked};
use crate::metrics::{FleetPluginRow, FleetRow};
use crate::store::Health;
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

impl Fleet {
    /// This node, for `/v1/status`.
    pub fn status(&self) -> Value {
        let snapshot = self.store.snapshot();
        let states = self.states(&snapshot);
        let state = states.values().map(|plugin| plugin.state).max();
        let plugins: Map<String, Value> = states
            .into_iter()
            .map(|(name, plugin)| {
                let agreed = self.agreed(&snapshot, &name);
                let wanted = agreed.and_then(|(_, entry)| entry.ok());
                let shown = json!({
                    "state": plugin.state,
                    "reason": plugin.reason,
                    "wanted": wanted.as_ref().map(|wanted| &wanted.active),
                    "wanted_canary": wanted.and_then(|wanted| wanted.canary).map(canary_json),
                });
                (name, shown)
            })
            .collect();
        let lost = self.lost();
        let heartbeats = locked(&self.heartbeats);
        json!({
            "node": self.node,
            "backend": self.config.backend,
            "state": state.unwrap_or(State::Own),
            "told_s": heartbeats.told.map(|told| told.elapsed().as_secs()),
            "not_told": lost,
            "name_taken": heartbeats.twin,
            "plugins": plugins,
        })
    }

    /// The whole fleet, as this node knows it.
    pub fn document(&self) -> Value {
        // As of before the read, so that it is not too low.
        let staleness = self.health().and_then(|health| health.staleness());
        let snapshot = self.store.snapshot();
        let lost = self.lost();
        let ages = self.ages(&snapshot, Instant::now());
        let told = |name: &str| ages.get(&format!("{NODE}{name}")).copied();
        let plugins = self.entries::<PluginEntry>(&snapshot, PLUGIN);
        let nodes = self.entries::<NodeEntry>(&snapshot, NODE).into_iter();
        let nodes: Vec<Value> = nodes
            .map(|(name, _, entry)| match entry {
                Ok(entry) => {
                    let mut node = node_json(&name, entry, &plugins, told(&name));
                    if lost.is_some() && name != self.node {
                        node["state"] = json!(State::Unknown);
                    }
                    node
                }
                Err(reason) => {
                    json!({ "node": name, "state": State::Failed, "unreadable": reason })
                }
            })
            .collect();
        let plugins: Map<String, Value> = plugins
            .into_iter()
            .map(|(name, revision, entry)| {
                let shown = match entry {
                    Ok(entry) => json!({
                        "revision": revision,
                        "active": entry.active,
                        "canary": entry.canary.map(canary_json),
                        "failing": entry.failing,
                        "by": entry.by,
                        "node": entry.node,
                        "at": rfc3339(entry.at_ms),
                    }),
                    Err(reason) => json!({ "revision": revision, "unreadable": reason }),
                };
                (name, shown)
            })
            .collect();
        let artifacts = self.artifacts().into_iter();
        let artifacts: Vec<Value> = artifacts
            .map(|(_, _, entry)| artifact_json(&entry))
            .collect();
        json!({
            "node": self.node,
            "backend": self.config.backend,
            "staleness_s": staleness.map(|age| age.as_secs_f64()),
            "not_told": lost,
            "nodes": nodes,
            "plugins": plugins,
            "artifacts": artifacts,
        })
    }

    /// Why nothing is heard of the others, or they hear nothing of this node.
    fn lost(&self) -> Option<String> {
        let lost = self.health().and_then(|health| health.lost);
        lost.or_else(|| locked(&self.heartbeats).error.clone())
    }

    /// Of the backend.
    fn health(&self) -> Option<Health> {
        let mut all = self.store.health().into_iter();
        let own = all.find(|(backend, _)| *backend == self.config.backend);
        own.map(|(_, health)| health)
    }

    /// What this node counts.
    pub fn row(&self) -> FleetRow {
        let snapshot = self.store.snapshot();
        let plugins = self.states(&snapshot).into_iter();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
        FleetRow {
            nodes: self.entries::<NodeEntry>(&snapshot, NODE).len() as u64,
            plugins: plugins
                .map(|(plugin, told)| FleetPluginRow {
                    plugin,
                    differs: matches!(told.state, State::Behind | State::Failed),
                    failed: told.state == State::Failed,
                })
                .collect(),
            steps: load(&self.counters.steps),
            step_errors: load(&self.counters.step_errors),
            fetches: load(&self.counters.fetches),
            fetch_errors: load(&self.counters.fetch_errors),
        }
    }
}

/// A node. What it has is compared with what is agreed on now, which it may not have told of yet.
fn node_json(
    name: &str,
    entry: NodeEntry,
    agreed: &[(String, crate::store::Revision, Result<PluginEntry, String>)],
    told: Option<Duration>,
) -> Value {
    let mut worst = State::Own;
    let plugins: Map<String, Value> = entry
        .plugins
        .into_iter()
        .map(|(plugin, told)| {
            let wanted = agreed.iter().find(|(name, _, _)| *name == plugin);
            let wanted = wanted.and_then(|(_, _, entry)| entry.as_ref().ok());
            let has = |wanted: &PluginEntry| {
                told.active.as_ref() == Some(&wanted.active) && told.canary == wanted.canary
            };
            let state = match wanted {
                Some(wanted) if has(wanted) => State::Ok,
                Some(_) if told.state != State::Failed => State::Behind,
                _ => told.state,
            };
            worst = worst.max(state);
            let shown = json!({
                "state": state,
                "active": told.active,
                "canary": told.canary.map(canary_json),
                "reason": told.reason,
            });
            (plugin, shown)
        })
        .collect();
    json!({
        "node": name,
        "state": worst,
        "ready": entry.ready,
        "version": entry.version,
        "admin": entry.admin,
        "config": entry.config,
        "revision": entry.revision,
        "started": rfc3339(entry.started_ms),
        "name_taken": entry.name_taken,
        "told_s": told.unwrap_or_default().as_secs(),
        "plugins": plugins,
    })
}

fn canary_json(canary: CanaryEntry) -> Value {
    json!({
        "version": canary.version,
        "percent": canary.share.fraction.as_percent(),
        "by": canary.share.field.to_string(),
    })
}

fn artifact_json(entry: &ArtifactEntry) -> Value {
    json!({
        "digest": entry.digest,
        "plugin": entry.plugin,
        "bytes": entry.bytes,
        "whole": entry.whole,
        "at": rfc3339(entry.at_ms),
    })
}

fn rfc3339(ms: u64) -> Option<String> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))?;
    let at = jiff::Timestamp::try_from(at).ok()?;
    Some(format!("{at:.3}"))
}
