//! The moment in which a version is seen that was agreed on in one step with writes: on this node, too, no request sees one
//! without the other.
//!
//! The store asks before its readers see such an entry ([`Gate`]). It waits, and all that came after it at the backend, until
//! the version is on stage: loaded, tried, warm. Then both are shown as one state, on which the version decides; that it is
//! published follows (`follow.rs`). A node that cannot load the version, or not in time, shows the writes without it, and
//! says so: it is no reason to keep from its readers what all others see.

use super::entry::{PLUGIN, PluginEntry};
use super::{Fleet, locked};
use crate::plugin::{Ahead, DeployError};
use crate::store::{Gate, Passage, Revision};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How long what has arrived waits for a version. It is compiled at the lowest priority, beside whatever the node does.
const HOLD_MAX: Duration = Duration::from_secs(30);
/// While somebody else changes a plugin.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// After a failure that may pass.
const TRY_PAUSE: Duration = Duration::from_millis(250);

/// What waits, or is on stage.
#[derive(Default)]
pub(super) struct Moments {
    list: Mutex<Vec<Moment>>,
    /// There is a version to be made ready.
    news: Notify,
    /// The same, for whoever changes a plugin.
    came: Notify,
}

struct Moment {
    plugin: String,
    entry: PluginEntry,
    until: Instant,
    state: State,
}

enum State {
    /// Nobody makes it ready yet.
    New,
    Begun,
    Ready(Box<Ahead>),
    /// It is shown without its version.
    Over,
}

impl Moments {
    /// The version of a plugin that decides on a state of this revision and is not published yet, and what it came with.
    pub(super) fn due(&self, plugin: &str, revision: Revision) -> Option<(PluginEntry, Ahead)> {
        let mut list = locked(&self.list);
        let at = list.iter().position(|moment| {
            let decides = matches!(&moment.state, State::Ready(ahead) if ahead.decides(revision));
            moment.plugin == plugin && decides
        })?;
        let moment = list.swap_remove(at);
        match moment.state {
            State::Ready(ahead) => Some((moment.entry, *ahead)),
            State::New | State::Begun | State::Over => None,
        }
    }

    /// What waits until nobody else changes a plugin.
    pub(super) fn waiting(&self, plugin: &str) -> Option<PluginEntry> {
        let list = locked(&self.list);
        let is_it = |moment: &&Moment| {
            moment.plugin == plugin && matches!(moment.state, State::New | State::Begun)
        };
        list.iter().find(is_it).map(|moment| moment.entry.clone())
    }

    /// The same, once there is something.
    pub(super) async fn waits(&self, plugin: &str) -> PluginEntry {
        loop {
            let came = self.came.notified();
            tokio::pin!(came);
            // What comes after the look is not missed.
            came.as_mut().enable();
            if let Some(entry) = self.waiting(plugin) {
                return entry;
            }
            came.await;
        }
    }

    /// What is to be made ready next.
    fn begin(&self) -> Option<(String, PluginEntry, Instant)> {
        let mut list = locked(&self.list);
        let is_new = |moment: &&mut Moment| matches!(moment.state, State::New);
        let moment = list.iter_mut().find(is_new)?;
        moment.state = State::Begun;
        Some((moment.plugin.clone(), moment.entry.clone(), moment.until))
    }

    /// As if the time of all that waits were over.
    #[cfg(test)]
    pub(super) fn end_all(&self) {
        let now = Instant::now();
        let mut list = locked(&self.list);
        list.iter_mut().for_each(|moment| moment.until = now);
    }

    /// What came of it. A version that nobody waits for any more leaves the stage.
    fn end(&self, plugin: &str, entry: &PluginEntry, state: State) {
        let mut list = locked(&self.list);
        let is_it = |moment: &&mut Moment| moment.plugin == plugin && moment.entry == *entry;
        if let Some(moment) = list.iter_mut().find(is_it)
            && matches!(moment.state, State::Begun)
        {
            moment.state = state;
        }
    }
}

impl Gate for Fleet {
    fn arrives(&self, key: &str, value: &[u8], anew: bool) -> Passage {
        let Some(plugin) = key.strip_prefix(PLUGIN) else {
            return Passage::Open;
        };
        // What nobody can read is told of by who follows. Of what is loaded anew nobody knows what was written on the way.
        let entry = PluginEntry::parse(value).ok();
        let Some(entry) = entry.filter(|entry| entry.with_writes || anew) else {
            return Passage::Open;
        };
        let Some(present) = self.plugins.present(plugin) else {
            return Passage::Open;
        };
        if let Some(notes) = self.plugins.on_stage(plugin, &entry.active) {
            return Passage::Noting(notes);
        }
        let now = Instant::now();
        let mut list = locked(&self.moments.list);
        // Another one that decides already is active next: it is not known yet what this one will find.
        let is_alone = !list.iter().any(|moment| {
            moment.plugin == plugin && moment.entry != entry && !matches!(moment.state, State::Over)
        });
        if is_alone && present.active.as_ref() == Some(&entry.active) {
            return Passage::Open;
        }
        let known = list
            .iter_mut()
            .find(|moment| moment.plugin == plugin && moment.entry == entry);
        match known {
            Some(moment) if matches!(moment.state, State::Over) => Passage::Open,
            Some(moment) if moment.until <= now => {
                tell_apart(
                    plugin,
                    &entry,
                    &format!("it is not ready after {HOLD_MAX:?}"),
                );
                moment.state = State::Over;
                Passage::Open
            }
            Some(moment) => Passage::Wait(moment.until),
            None => {
                // What is over is asked for no more once there is something newer.
                list.retain(|moment| {
                    moment.plugin != plugin || !matches!(moment.state, State::Over)
                });
                let until = now + HOLD_MAX;
                list.push(Moment {
                    plugin: plugin.to_owned(),
                    entry,
                    until,
                    state: State::New,
                });
                self.moments.news.notify_one();
                drop(list);
                self.moments.came.notify_waiters();
                Passage::Wait(until)
            }
        }
    }
}

impl Fleet {
    /// Makes versions ready for their moments, until it is dropped. All at once: what was loaded anew may have several, and
    /// none waits because of another that cannot be fetched.
    pub async fn stand_by(self: Arc<Self>) {
        let mut begun = JoinSet::new();
        loop {
            tokio::select! {
                () = self.moments.news.notified() => {
                    while let Some((plugin, entry, until)) = self.moments.begin() {
                        begun.spawn(Arc::clone(&self).make_ready(plugin, entry, until));
                    }
                }
                // It panicked, which was logged, or is done.
                Some(_) = begun.join_next() => {}
            }
        }
    }

    async fn make_ready(self: Arc<Self>, plugin: String, entry: PluginEntry, until: Instant) {
        let staged = tokio::time::timeout_at(until.into(), self.stage(&plugin, &entry));
        let state = match staged.await {
            Ok(Ok(ahead)) => State::Ready(Box::new(ahead)),
            Ok(Err(error)) => {
                tell_apart(&plugin, &entry, &error.to_string());
                State::Over
            }
            // The store asks now, and it is told then.
            Err(_) => return,
        };
        self.moments.end(&plugin, &entry, state);
        self.store.ask_gate();
    }

    async fn stage(&self, plugin: &str, entry: &PluginEntry) -> Result<Ahead, DeployError> {
        loop {
            match self.try_stage(plugin, entry).await {
                Err(DeployError::Busy(_)) => tokio::time::sleep(BUSY_PAUSE).await,
                // The backend or the compiler may do better the next time.
                Err(error @ (DeployError::Fleet(_) | DeployError::NoCompiler(_))) => {
                    tracing::warn!(plugin, %error, "fleet: a version that came with writes is tried again");
                    tokio::time::sleep(TRY_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    async fn try_stage(&self, plugin: &str, entry: &PluginEntry) -> Result<Ahead, DeployError> {
        let (version, force) = (&entry.active, entry.force);
        let stage = |component| self.plugins.stage(plugin, version, component, force);
        self.with_component(plugin, version, stage).await
    }
}

fn tell_apart(plugin: &str, entry: &PluginEntry, reason: &str) {
    let version = entry.active.get(..12).unwrap_or(&entry.active);
    tracing::error!(
        plugin,
        version,
        reason,
        "fleet: requests see writes without the version that they came with"
    );
}
