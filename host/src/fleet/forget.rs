//! Forgetting: what was agreed on of a plugin that no node has any more is taken out of the bucket, if somebody asks for it.
//!
//! It is never done by itself: while a config reaches the nodes one after the other, some lack a plugin that others have, and
//! a node that is away may come back with it. Such a node keeps the version it had, as its own.

use super::Fleet;
use super::entry::{NODE, NodeEntry, PLUGIN};
use crate::store::{CommitError, Expect, Snapshot, Write, WriteBatch};
use std::time::Instant;

/// Why a plugin is not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// There is nothing of it.
    #[error("the fleet has agreed on nothing of a plugin {0:?}")]
    Unknown(String),
    /// A node has it, or may have it.
    #[error("plugin {plugin:?}: node {node:?} {has}: expected one that no node has in its config")]
    InUse {
        /// The plugin.
        plugin: String,
        /// The node.
        node: String,
        /// What is known of that.
        has: &'static str,
    },
    /// Others have agreed on something meanwhile.
    #[error(
        "the fleet has agreed on something else of plugin {0:?} meanwhile, look at it and try again"
    )]
    Changed(String),
    /// The backend does not take it.
    #[error(transparent)]
    Refused(CommitError),
}

impl Fleet {
    /// Forgets a plugin that no node has. Its components go after it, but for those that another plugin needs: these go when
    /// it needs them no more.
    ///
    /// # Errors
    /// See [`ForgetError`]. Dropping the future may leave components behind, which are removed later.
    pub async fn forget(&self, plugin: &str, dry_run: bool) -> Result<(), ForgetError> {
        let snapshot = self.store.snapshot();
        let (Some(bucket), Some((revision, _))) =
            (self.bucket(&snapshot), self.agreed(&snapshot, plugin))
        else {
            return Err(ForgetError::Unknown(plugin.to_owned()));
        };
        if let Some((node, has)) = self.node_with(&snapshot, plugin) {
            let plugin = plugin.to_owned();
            return Err(ForgetError::InUse { plugin, node, has });
        }
        let gone = Write::delete(bucket, format!("{PLUGIN}{plugin}"));
        let batch = WriteBatch {
            writes: vec![gone.expecting(Expect::At(revision))],
            dry_run,
            ..WriteBatch::default()
        };
        let committed = self.store.commit(batch).await;
        committed.map_err(|error| match error {
            CommitError::Conflict { .. } => ForgetError::Changed(plugin.to_owned()),
            error => ForgetError::Refused(error),
        })?;
        if !dry_run {
            self.prune_after(Some(plugin), Instant::now()).await;
        }
        Ok(())
    }

    /// A node that has a plugin of this name, or may have it.
    fn node_with(&self, snapshot: &Snapshot, plugin: &str) -> Option<(String, &'static str)> {
        // What this node has told of itself may be older than its config.
        if self.plugins.present(plugin).is_some() {
            return Some((self.node.clone(), "has it"));
        }
        let nodes = self.entries::<NodeEntry>(snapshot, NODE).into_iter();
        let mut others = nodes.filter(|(node, _, _)| *node != self.node);
        others.find_map(|(node, _, entry)| match entry {
            Ok(entry) if entry.plugins.contains_key(plugin) => {
                Some((node, "has it, as it told last"))
            }
            Ok(_) => None,
            Err(_) => Some((node, "may have it, what it tells cannot be read")),
        })
    }
}
