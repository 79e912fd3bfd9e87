//! Following: one step after the other from what this node has to what was agreed on, by the ways of the admin API.
//!
//! A step that fails leaves the node with what it had. It is tried again with growing pauses if the reason may pass, and
//! else as soon as something else is agreed on, or the config is another.

use super::entry::{PLUGIN, PluginEntry};
use super::{Failure, Fleet, Progress, step};
use crate::plugin::{Agreement, DeployError, Order, Step};
use crate::store::{CommitError, Revision};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Most steps from anything to anything.
const STEPS_MAX: usize = 8;
/// While somebody else changes a plugin.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// After the first failure whose reason may pass; twice as long after each further one.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What no event tells of: another config, a plugin that is new in it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at what the store tells, however much is written.
const REST: Duration = Duration::from_millis(2);

/// What came of looking at a plugin.
enum Looked {
    /// It is as it should be, or nothing can be done.
    Rests,
    /// It is to be looked at then.
    Until(Instant),
}

impl Fleet {
    /// Takes what was agreed on, for as long as a start may wait for it.
    pub async fn settle(&self) {
        let within = self.config.start_timeout;
        if tokio::time::timeout(within, self.look()).await.is_err() {
            tracing::warn!(
                ?within,
                "fleet: this node serves before it has what was agreed on"
            );
        }
    }

    /// Follows until it is dropped.
    pub async fn follow(self: Arc<Self>) {
        let mut changes = self.store.changes();
        loop {
            let seen = self.revision();
            let next = self.look().await;
            if self.prune_due.swap(false, Relaxed) {
                self.prune().await;
            }
            let at_latest = Instant::now() + LOOK_EVERY;
            let next = next.map_or(at_latest, |next| next.min(at_latest));
            let until = tokio::time::sleep_until(next.into());
            tokio::pin!(until);
            while self.revision() == seen {
                tokio::select! {
                    () = &mut until => break,
                    () = self.look.notified() => break,
                    changed = changes.changed() => {
                        if changed.is_err() {
                            // The store is closed.
                            return;
                        }
                        tokio::time::sleep(REST).await;
                    }
                }
            }
        }
    }

    /// Of what was agreed on last.
    fn revision(&self) -> Option<Revision> {
        let snapshot = self.store.snapshot();
        let bucket = snapshot.bucket(self.bucket(&snapshot)?)?;
        Some(bucket.revision())
    }

    /// Looks at every plugin, and takes what can be taken. The moment at which to look again, if there is one.
    async fn look(&self) -> Option<Instant> {
        let snapshot = self.store.snapshot();
        // So that they are known from when they came.
        drop(self.ages(&snapshot, Instant::now()));
        let entries = self.entries::<PluginEntry>(&snapshot, PLUGIN);
        let mut next: Option<Instant> = None;
        for (plugin, _, _) in &entries {
            if let Looked::Until(at) = self.look_at(plugin).await {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        let is_known = |name: &str| entries.iter().any(|(plugin, _, _)| plugin == name);
        self.progress().retain(|name, _| is_known(name));
        next
    }

    async fn look_at(&self, plugin: &str) -> Looked {
        for _ in 0..STEPS_MAX {
            // While a step is taken, something else may be agreed on.
            let snapshot = self.store.snapshot();
            let Some((revision, entry)) = self.agreed(&snapshot, plugin) else {
                return Looked::Rests;
            };
            if let Some((entry, ahead)) = self.moments.due(plugin, snapshot.revision()) {
                // Whatever was agreed on since, this is what requests are decided by.
                let step = Step::Activate(entry.active.clone());
                let by = who(&entry);
                let taken = self.plugins.take_over(ahead, order(&entry, &by)).await;
                match self.took(plugin, revision, &step, taken) {
                    None => continue,
                    Some(looked) => return looked,
                }
            }
            let Some(present) = self.plugins.present(plugin) else {
                // Another node's.
                return Looked::Rests;
            };
            let config = (self.facts)().config;
            let entry = match entry {
                Ok(entry) => entry,
                Err(reason) => {
                    let reason = format!("what was agreed on is unreadable: {reason}");
                    self.note(plugin, revision, config, Some((reason, false)));
                    return Looked::Rests;
                }
            };
            if entry.node == self.node && self.is_news(plugin, revision) {
                // Only now is what it replaced needed no more.
                self.prune_due.store(true, Relaxed);
            }
            let wanted = entry.agreement();
            let Some(step) = step::next_step(&wanted, &present) else {
                self.note(plugin, revision, config, None);
                return Looked::Rests;
            };
            if let Some(looked) = self.waits(plugin, revision, &config) {
                return looked;
            }
            let taken = self.take(plugin, &entry, &wanted, step.clone()).await;
            if let Some(looked) = self.took(plugin, revision, &step, taken) {
                return looked;
            }
        }
        // Others change their minds faster than this node can follow.
        Looked::Until(Instant::now() + BUSY_PAUSE)
    }

    /// What is next after a step; none if it was taken.
    fn took(
        &self,
        plugin: &str,
        revision: Revision,
        step: &Step,
        taken: Result<(), DeployError>,
    ) -> Option<Looked> {
        match taken {
            Ok(()) => {
                self.counters.steps.fetch_add(1, Relaxed);
                None
            }
            Err(DeployError::Busy(_)) => Some(Looked::Until(Instant::now() + BUSY_PAUSE)),
            Err(error) => {
                self.counters.step_errors.fetch_add(1, Relaxed);
                let passes = may_pass(&error);
                tracing::error!(plugin, step = told(step), %error, again = passes, "fleet: what was agreed on is not taken");
                let reason = format!("{}: {error}", told(step));
                let config = (self.facts)().config;
                let again = self.note(plugin, revision, config, Some((reason, passes)));
                Some(again.map_or(Looked::Rests, Looked::Until))
            }
        }
    }

    /// Whether a plugin is left alone for now, because it failed before.
    fn waits(&self, plugin: &str, revision: Revision, config: &Arc<str>) -> Option<Looked> {
        let progress = self.progress();
        let known = progress.get(plugin).filter(|progress| {
            progress.revision == revision && progress.config.as_ref() == Some(config)
        });
        let failure = known.and_then(|progress| progress.failure.as_ref())?;
        match failure.again {
            None => Some(Looked::Rests),
            Some(again) if again > Instant::now() => Some(Looked::Until(again)),
            Some(_) => None,
        }
    }

    /// Whether nothing came yet of what was agreed on at this revision.
    fn is_news(&self, plugin: &str, revision: Revision) -> bool {
        let progress = self.progress();
        let known = progress.get(plugin);
        known.is_none_or(|known| known.revision != revision)
    }

    /// Remembers how it went; with a failure whose reason may pass, when to try again.
    fn note(
        &self,
        plugin: &str,
        revision: Revision,
        config: Arc<str>,
        failed: Option<(String, bool)>,
    ) -> Option<Instant> {
        let mut progress = self.progress();
        let before = progress.get(plugin);
        let tries = before
            .filter(|before| before.revision == revision)
            .and_then(|before| before.failure.as_ref())
            .map_or(0, |failure| failure.tries);
        let failure = failed.map(|(reason, passes)| {
            let pause = PAUSE.saturating_mul(1 << tries.min(16)).min(PAUSE_MAX);
            Failure {
                reason,
                tries: tries.saturating_add(1),
                again: passes.then(|| Instant::now() + pause),
            }
        });
        let reason_of = |failure: &Option<Failure>| {
            let failure = failure.as_ref();
            failure.map(|failure| failure.reason.clone())
        };
        let is_news = before.is_none_or(|before| {
            before.revision != revision || reason_of(&before.failure) != reason_of(&failure)
        });
        let again = failure.as_ref().and_then(|failure| failure.again);
        let now = Progress {
            revision,
            config: Some(config),
            failure,
        };
        progress.insert(plugin.to_owned(), now);
        if is_news {
            self.news.notify_one();
        }
        again
    }

    async fn take(
        &self,
        plugin: &str,
        entry: &PluginEntry,
        wanted: &Agreement,
        step: Step,
    ) -> Result<(), DeployError> {
        let by = who(entry);
        let order = order(entry, &by);
        let take = |component: Option<Bytes>| {
            let step = step.clone();
            self.plugins
                .take_step(plugin, step, component, order, wanted.back)
        };
        let (Step::Activate(version) | Step::Canary(version, _)) = &step else {
            return take(None).await;
        };
        self.with_component(plugin, version, take).await
    }
}

/// Who asked for it, and where.
fn who(entry: &PluginEntry) -> String {
    format!("{}@{}", entry.by, entry.node)
}

fn order<'a>(entry: &PluginEntry, by: &'a str) -> Order<'a> {
    Order {
        by,
        dry_run: false,
        force: entry.force,
    }
}

/// Whether something else may come of trying again.
fn may_pass(error: &DeployError) -> bool {
    match error {
        DeployError::Busy(_)
        | DeployError::Io(_)
        | DeployError::NoCompiler(_)
        | DeployError::Warm(_)
        | DeployError::Draining(_)
        | DeployError::MigrateRace(_)
        | DeployError::NoSuchVersion(_)
        | DeployError::Disagreed(_)
        | DeployError::Fleet(_)
        | DeployError::Writes(CommitError::Unavailable(_) | CommitError::Unseen { .. }) => true,
        DeployError::Agreed(error) => may_pass(error),
        DeployError::NoSuchPlugin(_)
        | DeployError::TooLarge(_)
        | DeployError::NotAComponent(_)
        | DeployError::World(_)
        | DeployError::Compile(_)
        | DeployError::Init(_)
        | DeployError::NothingToRollBack(_)
        | DeployError::Failing { .. }
        | DeployError::Conflict(_)
        | DeployError::Apart { .. }
        | DeployError::Late(_)
        | DeployError::Migrate(_)
        | DeployError::Writes(_) => false,
    }
}

/// A step, for people.
fn told(step: &Step) -> String {
    let short = |version: &str| version.get(..12).unwrap_or(version).to_owned();
    match step {
        Step::Mark { version, .. } => format!("mark version {} as failing", short(version)),
        Step::Activate(version) => format!("activate version {}", short(version)),
        Step::Promote => "promote the canary".to_owned(),
        Step::Abort => "abort the canary".to_owned(),
        Step::Canary(version, _) => format!("begin canary {}", short(version)),
        Step::Share(share) => format!("give the canary {} %", share.fraction.as_percent()),
    }
}
