//! Components of versions, by digest: put into the depot before a version is agreed on, fetched by nodes that lack them.
//!
//! A place in the depot is used once. Its entry says whether what is there is whole. Who relies on that writes the entry
//! anew when the version is agreed on, and who removes it requires it to be still the same: of the two the first one wins, so
//! nothing is removed that is needed.

use super::entry::{ARTIFACT, ArtifactEntry, PLUGIN, PluginEntry};
use super::{Fleet, random_hex, unix_ms};
use crate::plugin::{DeployError, digest};
use crate::store::{Action, CommitError, Expect, Revision, Write, WriteBatch};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

/// What this node has known for so long not to be whole, or to be of a plugin on which nothing is agreed, is left over.
const ABANDONED: Duration = Duration::from_secs(600);

impl Fleet {
    /// Sees to it that every node can fetch a version of this node's. What is returned belongs into the batch that relies
    /// on it.
    pub(super) async fn publish(&self, plugin: &str, version: &str) -> Result<Write, DeployError> {
        let known = self.artifacts().into_iter();
        let known = known.filter(|(_, _, entry)| entry.whole && entry.digest == version);
        if let Some((place, revision, entry)) = known.max_by_key(|(_, revision, _)| *revision) {
            // Another value, or it would keep its revision.
            let relied_on = ArtifactEntry {
                at_ms: unix_ms(SystemTime::now()).max(entry.at_ms.saturating_add(1)),
                ..entry
            };
            return self.write(&place, &relied_on, Expect::At(revision));
        }
        let component = self.plugins.component(plugin, version).await?;
        let short = version.get(..16).unwrap_or(version);
        let chance = random_hex().map_err(|error| DeployError::Fleet(error.to_string()))?;
        let place = format!("{short}-{chance}");
        let mut entry = ArtifactEntry {
            digest: version.to_owned(),
            plugin: plugin.to_owned(),
            bytes: component.len() as u64,
            whole: false,
            at_ms: unix_ms(SystemTime::now()),
        };
        let begun = self.write(&place, &entry, Expect::Absent)?;
        let begun = self.commit(vec![begun]).await;
        let begun = begun.map_err(|error| match error {
            CommitError::Unseen { .. } => behind(&error),
            error => DeployError::Writes(error),
        })?;
        let put = self.depot.put(&place, component).await;
        put.map_err(|error| DeployError::Fleet(error.to_string()))?;
        entry.whole = true;
        let expected = begun.map_or(Expect::Present, Expect::At);
        self.write(&place, &entry, expected)
    }

    /// Does something with a version: with what this node keeps of it, or else with its component, which is fetched.
    pub(super) async fn with_component<T, F: Future<Output = Result<T, DeployError>>>(
        &self,
        plugin: &str,
        version: &str,
        work: impl Fn(Option<Bytes>) -> F,
    ) -> Result<T, DeployError> {
        if self.plugins.keeps(plugin, version) {
            match work(None).await {
                // The file is gone, or not what it was.
                Err(DeployError::Io(error)) => {
                    tracing::warn!(plugin, error, "fleet: a version that was kept is fetched");
                }
                done => return done,
            }
        }
        work(Some(self.fetch(version).await?)).await
    }

    /// The component of a version.
    async fn fetch(&self, version: &str) -> Result<Bytes, DeployError> {
        self.counters.fetches.fetch_add(1, Relaxed);
        let fetched = self.try_fetch(version).await;
        fetched.map_err(|reason| {
            self.counters.fetch_errors.fetch_add(1, Relaxed);
            let version = version.get(..12).unwrap_or(version);
            DeployError::Fleet(format!("version {version} cannot be fetched: {reason}"))
        })
    }

    async fn try_fetch(&self, version: &str) -> Result<Bytes, String> {
        let known = self.artifacts().into_iter();
        let known = known.filter(|(_, _, entry)| entry.whole && entry.digest == version);
        let Some((place, _, entry)) = known.max_by_key(|(_, revision, _)| *revision) else {
            return Err("the fleet has no component of it, push it again".to_owned());
        };
        let bytes_max = self.plugins.component_bytes_max();
        if entry.bytes > bytes_max as u64 {
            return Err(format!(
                "it has {} bytes, component_bytes_max is {bytes_max}",
                entry.bytes
            ));
        }
        let component = self.depot.get(&place, entry.bytes).await;
        let component = component.map_err(|error| error.to_string())?;
        let content = component.clone();
        let found = tokio::task::spawn_blocking(move || digest(&content)).await;
        let found = found.map_err(|error| error.to_string())?;
        if found != version {
            return Err(format!(
                "artifact {place:?}: {} bytes with digest {found}, expected {} with {version}",
                component.len(),
                entry.bytes
            ));
        }
        Ok(component)
    }

    /// Removes what no plugin needs and is not among the newest of its plugin either, and what was never finished.
    pub(super) async fn prune(&self) {
        self.prune_after(None, Instant::now()).await;
    }

    /// The same by this time, after a plugin was forgotten: what nobody else needs of it goes at once.
    pub(super) async fn prune_after(&self, forgotten: Option<&str>, now: Instant) {
        for (place, revision, entry) in self.superfluous(forgotten, now) {
            if let Err(error) = self.remove(&place, revision, &entry).await {
                // Whoever publishes next tries again.
                tracing::warn!(artifact = place, %error, "fleet: an old artifact is not removed");
            }
        }
    }

    pub(super) async fn remove(
        &self,
        place: &str,
        revision: Revision,
        entry: &ArtifactEntry,
    ) -> Result<(), DeployError> {
        let mut expected = Expect::At(revision);
        if entry.whole {
            // From now on nobody relies on it.
            let removed = ArtifactEntry {
                whole: false,
                ..entry.clone()
            };
            let marked = self.write(place, &removed, expected)?;
            match self.commit(vec![marked]).await {
                Ok(revision) => expected = revision.map_or(Expect::Present, Expect::At),
                // Somebody needs it, or removes it.
                Err(CommitError::Conflict { .. }) => return Ok(()),
                Err(error) => return Err(DeployError::Writes(error)),
            }
        }
        let emptied = self.depot.remove(place, entry.bytes).await;
        emptied.map_err(|error| DeployError::Fleet(error.to_string()))?;
        let bucket = self.bucket_id()?;
        let gone = Write::delete(bucket, format!("{ARTIFACT}{place}")).expecting(expected);
        match self.commit(vec![gone]).await {
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(DeployError::Writes(error)),
        }
    }

    /// Places with their entries. One that cannot be read is nobody's.
    pub(super) fn artifacts(&self) -> Vec<(String, Revision, ArtifactEntry)> {
        let entries = self.entries(&self.store.snapshot(), ARTIFACT).into_iter();
        entries
            .filter_map(|(place, revision, entry)| Some((place, revision, entry.ok()?)))
            .collect()
    }

    fn superfluous(
        &self,
        forgotten: Option<&str>,
        now: Instant,
    ) -> Vec<(String, Revision, ArtifactEntry)> {
        let snapshot = self.store.snapshot();
        let agreed = self.entries::<PluginEntry>(&snapshot, PLUGIN);
        let needed: BTreeSet<&str> = agreed
            .iter()
            .filter_map(|(_, _, entry)| entry.as_ref().ok())
            .flat_map(|entry| {
                let canary = entry.canary.iter().map(|canary| canary.version.as_str());
                canary.chain([entry.active.as_str()])
            })
            .collect();
        let mut artifacts = self.artifacts();
        // Newest first, whatever the clocks of nodes say.
        artifacts.sort_by_key(|(_, revision, _)| std::cmp::Reverse(*revision));
        let ages = self.ages(&snapshot, now);
        let mut newest: BTreeMap<String, usize> = BTreeMap::new();
        artifacts.retain(|(place, _, entry)| {
            let age = ages.get(&format!("{ARTIFACT}{place}"));
            let is_left_over = age.is_some_and(|age| *age > ABANDONED);
            if !entry.whole {
                return is_left_over;
            }
            let is_needed = needed.contains(entry.digest.as_str());
            if !agreed.iter().any(|(name, _, _)| *name == entry.plugin) {
                // It was forgotten, or somebody is about to agree on its first version.
                let is_forgotten = forgotten == Some(&*entry.plugin);
                return (is_forgotten || is_left_over) && !is_needed;
            }
            let place = newest.entry(entry.plugin.clone()).or_default();
            *place += 1;
            // Of a plugin that this node does not know as many stay as do by default.
            let keep = self.plugins.keep(&entry.plugin).unwrap_or(5);
            *place > keep && !is_needed
        });
        artifacts
    }

    fn write(
        &self,
        place: &str,
        entry: &ArtifactEntry,
        expected: Expect,
    ) -> Result<Write, DeployError> {
        let value = serde_json::to_vec(entry);
        let value = value.map_err(|error| DeployError::Fleet(error.to_string()))?;
        let bucket = self.bucket_id()?;
        let put = Action::Put {
            value: value.into(),
            ttl: None,
        };
        Ok(Write::new(bucket, format!("{ARTIFACT}{place}"), put).expecting(expected))
    }

    pub(super) fn bucket_id(&self) -> Result<crate::store::BucketId, DeployError> {
        let bucket = self.bucket(&Arc::clone(&self.store.snapshot()));
        bucket.ok_or_else(|| DeployError::Fleet("the store has no bucket for it".to_owned()))
    }

    /// Commits, and tells at which revision the entry of the last write is then.
    pub(super) async fn commit(&self, writes: Vec<Write>) -> Result<Option<Revision>, CommitError> {
        let batch = WriteBatch {
            writes,
            ..WriteBatch::default()
        };
        Ok(self.store.commit(batch).await?.entry)
    }
}

/// Why nothing was agreed on: what has to come before that was written, and is not seen here.
pub(super) fn behind(error: &CommitError) -> DeployError {
    DeployError::Fleet(format!(
        "this node is behind what was written before, nothing was agreed on, try again: {error}"
    ))
}
