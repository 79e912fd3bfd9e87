//! What may be done with versions now, and what speaks against it.

use super::short;
use crate::plugin::record::{Activation, CanaryRecord};
use crate::plugin::{DeployError, DrainingFull, PluginSlot, Role};

impl PluginSlot {
    /// Whether a version may have a role now.
    pub(in crate::plugin) fn check_role(
        &self,
        digest: &str,
        role: &Role,
        force: bool,
    ) -> Result<(), DeployError> {
        let name = self.name();
        let record = self.record();
        let failing = record.as_ref().and_then(|record| record.failing(digest));
        if let (Some(failing), false) = (failing, force) {
            return Err(DeployError::Failing {
                plugin: name.to_string(),
                version: short(digest).to_owned(),
                reason: failing.reason.clone(),
            });
        }
        if *role == Role::Active {
            return Ok(());
        }
        let Some(record) = record else {
            return Err(DeployError::Conflict(format!(
                "plugin {name:?} has no active version yet: push one first"
            )));
        };
        if record.active.digest == digest {
            let version = short(digest);
            return Err(DeployError::Conflict(format!(
                "version {version} of plugin {name:?} is active already"
            )));
        }
        let other = |started: &Activation| started.digest != digest;
        match role {
            Role::Canary(_) => match &record.canary {
                Some(CanaryRecord { started, .. }) if other(started) => {
                    let version = short(&started.digest);
                    Err(DeployError::Conflict(format!(
                        "version {version} is the canary of plugin {name:?}: promote or abort it first"
                    )))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Whether a version may be removed.
    pub(in crate::plugin) fn check_unused(
        &self,
        digest: &str,
        force: bool,
    ) -> Result<(), DeployError> {
        let (info, version) = (self.info(), short(digest));
        let conflict = |why: String| {
            let name = self.name();
            Err(DeployError::Conflict(format!(
                "version {version} of plugin {name:?} {why}"
            )))
        };
        let is = |other: Option<&String>| other.is_some_and(|other| other == digest);
        if is(info.active.as_ref()) {
            return conflict("is active".into());
        }
        if is(info.canary.as_ref().map(|canary| &canary.version)) {
            return conflict("is the canary: promote or abort it first".into());
        }
        if is(info.shadow.as_ref().map(|shadow| &shadow.version)) {
            return conflict("is the shadow: end it first".into());
        }
        if force {
            return Ok(());
        }
        if is(self.rollback_target().as_ref()) {
            return conflict("is what a rollback activates: force=true removes it".into());
        }
        let streams = info.versions.iter().find(|one| one.digest == digest);
        match streams.map_or(0, |one| one.streams) {
            0 => Ok(()),
            streams => conflict(format!(
                "has {streams} open stream(s): force=true removes it"
            )),
        }
    }

    /// Whether another version may become active, as far as open streams go.
    pub(in crate::plugin) fn check_draining(&self, next: &str) -> Result<(), DeployError> {
        let policy = &self.config().versions;
        let (Some(max), DrainingFull::Refuse) = (policy.draining_max, policy.draining_full) else {
            return Ok(());
        };
        let draining = self.draining(next, true);
        if draining.len() <= max {
            return Ok(());
        }
        let each = draining.iter().map(|(digest, streams)| {
            let noun = if *streams == 1 { "stream" } else { "streams" };
            format!("{} with {streams} {noun}", short(digest))
        });
        Err(DeployError::Draining(format!(
            "plugin {:?} would have {} versions draining, max_draining is {max}: {}",
            self.name(),
            draining.len(),
            each.collect::<Vec<_>>().join(", ")
        )))
    }
}
