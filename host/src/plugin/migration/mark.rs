//! Which version the data of a plugin are for: kept with them, so that both change at once.

use crate::plugin::GenerationId;
use crate::plugin::generation::Sandbox;
use crate::plugin::record::{Activation, Record};
use crate::plugin::report::DeployError;
use crate::store::{Revision, Snapshot, Write, WriteBatch};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::SystemTime;

/// Which version the data of a plugin are for, kept in one batch with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::plugin) struct Mark {
    /// Different from any other's.
    pub(super) id: String,
    from: Option<String>,
    /// The activation that it belongs to.
    pub(super) to: Activation,
    /// Whether the version was pushed.
    pushed: bool,
}

impl Mark {
    /// The mark of a migration that is made now, before `record` is written.
    pub(super) fn new(generation: GenerationId, from: Option<String>, record: &Record) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        Self {
            id: format!("{now:x}-{:x}", generation.0),
            from,
            to: record.active.clone(),
            pushed: record.pushed,
        }
    }

    /// The writes that set it beside those of the migration, and with `changed` the one that says that the data are others now.
    ///
    /// # Errors
    /// If the clock says a time that cannot be written.
    pub(super) fn writes(
        &self,
        snapshot: &Snapshot,
        sandbox: &Sandbox,
        batch: &WriteBatch,
        changed: bool,
    ) -> Result<Vec<Write>, DeployError> {
        let first = batch.writes.first().map(|write| write.bucket);
        let granted = || sandbox.grants.values().map(|grant| grant.bucket).next();
        let Some(bucket) = snapshot.marks_beside(first.or_else(granted)) else {
            return Ok(Vec::new());
        };
        let text = serde_json::to_vec(self).map_err(|error| DeployError::Io(error.to_string()))?;
        let write = |key: &str, value: &[u8]| Write::put(bucket, key, value);
        let mut writes = vec![write(&sandbox.label.plugin, &text)];
        if changed {
            writes.push(write(&sandbox.data_mark, self.id.as_bytes()));
        }
        Ok(writes)
    }

    /// The mark of a plugin, if any version ever migrated its data.
    pub(super) fn of(snapshot: &Snapshot, plugin: &str) -> Option<Self> {
        let entry = snapshot.mark(plugin)?;
        let mark = serde_json::from_slice(&entry.value.to_bytes());
        mark.inspect_err(
            |error| tracing::error!(plugin, %error, "what is kept of the last migration is unreadable"),
        )
        .ok()
    }

    /// Whether the activation that it belongs to was not recorded: the process was killed between the two.
    pub(super) fn is_unfinished(&self, record: Option<&Record>) -> bool {
        record.is_none_or(|record| {
            record.migration.as_ref() != Some(&self.id) && self.to.at >= record.active.at
        })
    }

    /// The record as it would have been written, if the process was killed before it was.
    pub(in crate::plugin) fn unfinished(
        snapshot: &Snapshot,
        plugin: &str,
        record: Option<&Record>,
    ) -> Option<Record> {
        let mark = Self::of(snapshot, plugin)?;
        if !mark.pushed || !mark.is_unfinished(record) {
            return None;
        }
        let settings = record.map(|record| record.settings.clone());
        let mut finished = Record::after(record, mark.to, settings.unwrap_or_default(), true);
        finished.migration = Some(mark.id);
        Some(finished)
    }
}

/// When the data of a plugin were changed by a migration for the last time; by the key of [`data_mark`].
#[inline]
pub(in crate::plugin) fn changed_at(snapshot: &Snapshot, data_mark: &str) -> Option<Revision> {
    snapshot.mark(data_mark).map(|mark| mark.revision)
}

/// The key of the mark that is set when a migration changes something. A plugin's name has no slash.
pub(in crate::plugin) fn data_mark(plugin: &str) -> Arc<str> {
    format!("{plugin}/data").into()
}
