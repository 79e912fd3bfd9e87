//! Agreeing: the entry of a plugin is replaced if it is still what the change was built on.

use super::artifacts::behind;
use super::entry::{PLUGIN, PluginEntry};
use super::{Fleet, unix_ms};
use crate::plugin::{Accord, Agreeing, Agreement, Base, DeployError, Overtaken};
use crate::store::{CommitError, Expect, Write, WriteBatch};
use std::time::SystemTime;

/// How often components are made sure of again because somebody was removing them.
const ATTEMPTS: usize = 3;

impl Accord for Fleet {
    fn base(&self, plugin: &str) -> Result<Base, DeployError> {
        if let Some(entry) = self.moments.waiting(plugin) {
            return Err(overtaken(plugin, &entry));
        }
        let snapshot = self.store.snapshot();
        let Some((revision, entry)) = self.agreed(&snapshot, plugin) else {
            return Ok(Base::default());
        };
        let base = |agreed| Base {
            revision: Some(revision),
            agreed,
        };
        // What nobody can read is replaced by the next change.
        let Ok(entry) = entry else {
            return Ok(base(None));
        };
        let agreed = entry.agreement();
        let has_failed = self
            .progress()
            .get(plugin)
            .is_some_and(|progress| progress.revision == revision && progress.failure.is_some());
        if has_failed || self.has(plugin, &agreed) {
            return Ok(base(Some(agreed)));
        }
        Err(overtaken(plugin, &entry))
    }

    fn agree<'a>(
        &'a self,
        plugin: &'a str,
        base: &'a Base,
        wanted: Agreement,
        by: &'a str,
    ) -> Agreeing<'a, ()> {
        Box::pin(self.try_agree(plugin, base, wanted, by))
    }

    fn prepare<'a>(
        &'a self,
        plugin: &'a str,
        base: &'a Base,
        wanted: Agreement,
        by: &'a str,
    ) -> Agreeing<'a, WriteBatch> {
        Box::pin(async move {
            // What other nodes have to load before they see the version has to be there before.
            for attempt in 1.. {
                let whole = self.publish(plugin, &wanted.active).await?;
                match self.commit(vec![whole]).await {
                    // Others rely on it, too, or remove it.
                    Err(CommitError::Conflict { .. }) if attempt < ATTEMPTS => {}
                    Err(error @ CommitError::Unseen { .. }) => return Err(behind(&error)),
                    done => {
                        done.map_err(DeployError::beside)?;
                        break;
                    }
                }
            }
            let entry = PluginEntry {
                with_writes: true,
                ..self.entry(wanted, by)
            };
            self.batch(plugin, base, entry).await
        })
    }

    fn overtaken<'a>(&'a self, plugin: &'a str) -> Overtaken<'a> {
        Box::pin(async move { overtaken(plugin, &self.moments.waits(plugin).await) })
    }
}

impl Fleet {
    async fn try_agree(
        &self,
        plugin: &str,
        base: &Base,
        wanted: Agreement,
        by: &str,
    ) -> Result<(), DeployError> {
        if base.agreed.as_ref() == Some(&wanted) {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let entry = self.entry(wanted.clone(), by);
            let batch = self.batch(plugin, base, entry).await?;
            match self.store.commit(batch).await {
                Ok(_) => {
                    self.look.notify_one();
                    return Ok(());
                }
                Err(CommitError::Conflict { key, .. }) if key != key_of(plugin) => {}
                Err(CommitError::Conflict { .. }) => return Err(self.disagreed(plugin)),
                Err(error @ CommitError::Unseen { .. }) => {
                    return Err(DeployError::Agreed(Box::new(DeployError::Writes(error))));
                }
                Err(error) => return Err(DeployError::Writes(error)),
            }
        }
        Err(DeployError::Fleet(format!(
            "components of plugin {plugin:?} were removed by others, {ATTEMPTS} times in a row"
        )))
    }

    pub(super) fn entry(&self, wanted: Agreement, by: &str) -> PluginEntry {
        PluginEntry::new(wanted, by, &self.node, unix_ms(SystemTime::now()))
    }

    /// What makes it what was agreed on: the entry of the plugin, if it is still what the change was built on, and those of
    /// the components that it needs.
    async fn batch(
        &self,
        plugin: &str,
        base: &Base,
        entry: PluginEntry,
    ) -> Result<WriteBatch, DeployError> {
        let value = serde_json::to_vec(&entry);
        let value = value.map_err(|error| DeployError::Fleet(error.to_string()))?;
        let expected = base.revision.map_or(Expect::Absent, Expect::At);
        let mut writes = vec![self.publish(plugin, &entry.active).await?];
        if let Some(canary) = &entry.canary {
            writes.push(self.publish(plugin, &canary.version).await?);
        }
        let write = Write::put(self.bucket_id()?, key_of(plugin), value);
        writes.push(write.expecting(expected));
        Ok(WriteBatch {
            writes,
            ..WriteBatch::default()
        })
    }

    /// What others have agreed on in the meantime.
    fn disagreed(&self, plugin: &str) -> DeployError {
        let there = match self.agreed(&self.store.snapshot(), plugin) {
            Some((_, Ok(entry))) => told(plugin, &entry),
            Some((_, Err(reason))) => format!("fleet, plugin {plugin:?}: unreadable: {reason}"),
            None => format!("fleet, plugin {plugin:?}: nothing is agreed on any more"),
        };
        DeployError::Disagreed(format!("{there}: it came first, look at it and try again"))
    }
}

/// What others have agreed on is not shown here yet.
fn overtaken(plugin: &str, entry: &PluginEntry) -> DeployError {
    DeployError::Disagreed(format!(
        "{}: this node is about to take it, try again then",
        told(plugin, entry)
    ))
}

fn key_of(plugin: &str) -> String {
    format!("{PLUGIN}{plugin}")
}

/// What was agreed on, for people.
fn told(plugin: &str, entry: &PluginEntry) -> String {
    let version = entry.active.get(..12).unwrap_or(&entry.active);
    let canary = entry.canary.as_ref().map(|canary| {
        let version = canary.version.get(..12).unwrap_or(&canary.version);
        let percent = canary.share.fraction.as_percent();
        format!(" with {version} as a canary of {percent} %")
    });
    format!(
        "fleet, plugin {plugin:?}: version {version}{} was agreed on, by {} on node {}",
        canary.unwrap_or_default(),
        entry.by,
        entry.node
    )
}
