//! What a node tells of its fleet.

use super::Out;
use crate::metrics::FleetRow;
use std::fmt;

impl FleetRow {
    pub(super) fn encode(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauge(
            "throwbar_fleet_nodes",
            "Nodes that tell that they are there",
            self.nodes,
        )?;
        let rows = || self.plugins.iter();
        out.gauges(
            "throwbar_fleet_plugin_differs",
            "Whether this node has another version than was agreed on",
            rows().map(|row| ([("plugin", row.plugin.as_str())], u64::from(row.differs))),
        )?;
        out.gauges(
            "throwbar_fleet_plugin_failed",
            "Whether this node failed to take what was agreed on",
            rows().map(|row| ([("plugin", row.plugin.as_str())], u64::from(row.failed))),
        )?;
        for (name, help, count) in [
            (
                "throwbar_fleet_steps",
                "Changes made because the fleet agreed on them",
                self.steps,
            ),
            (
                "throwbar_fleet_step_errors",
                "Changes that the fleet agreed on and this node could not make",
                self.step_errors,
            ),
            (
                "throwbar_fleet_fetches",
                "Components asked for",
                self.fetches,
            ),
            (
                "throwbar_fleet_fetch_errors",
                "Components that could not be had",
                self.fetch_errors,
            ),
        ] {
            out.counter(name, help, count)?;
        }
        Ok(())
    }
}
