//! What the nodes of a fleet agree on: which versions of a plugin each of them is to have.
//!
//! What is asked for on one node is tried there, then agreed on, and only then done, there and on every other node. A node
//! that follows takes one [`Step`] after another: each is done as if it were asked for there, but not agreed on again.

use super::deploy::{Plugins, Shared, blocking, io_error};
use super::guard::Verdict;
use super::report::DeployError;
use super::rollout::short;
use super::{Access, Generation, Order, Role, Share, Wanted};
use crate::store::{Revision, WriteBatch};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

mod proposal;

pub(super) use proposal::Origin;

/// How long a version that fails is kept on because the fleet does not answer.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(1);

/// What each node is to have of one plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// The version that decides, by its digest.
    pub active: String,
    /// The version that takes a share of the requests.
    pub canary: Option<(String, Share)>,
    /// A version that the guard of some node took back, and why.
    pub failing: Option<(String, String)>,
    /// Though something speaks against it that is not in the way.
    pub force: bool,
    /// Whether it is a way back, which no node refuses for its draining versions.
    pub back: bool,
}

/// What a change builds on.
#[derive(Debug, Clone, Default)]
pub struct Base {
    /// When it was agreed on; none: nothing was yet.
    pub revision: Option<Revision>,
    /// What was agreed on.
    pub agreed: Option<Agreement>,
}

/// What this node has of a plugin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Present {
    /// The version that decides.
    pub active: Option<String>,
    /// The version that takes a share of the requests.
    pub canary: Option<(String, Share)>,
    /// Versions that a guard took back.
    pub failing: BTreeSet<String>,
}

/// What a node does next to have what was agreed on.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Remember that a version failed on another node.
    Mark {
        /// The version.
        version: String,
        /// Why.
        reason: String,
    },
    /// Let a version decide.
    Activate(String),
    /// Let the canary decide.
    Promote,
    /// End the canary.
    Abort,
    /// Give a version a share of the requests.
    Canary(String, Share),
    /// Give the canary another share.
    Share(Share),
}

/// Where the nodes of a fleet agree.
pub trait Accord: Send + Sync + 'static {
    /// What a change of a plugin builds on.
    ///
    /// # Errors
    /// [`DeployError::Disagreed`] while this node has not taken yet what was agreed on last.
    fn base(&self, plugin: &str) -> Result<Base, DeployError>;

    /// Makes it what each node is to have, unless others were faster. The versions are kept on this node.
    ///
    /// # Errors
    /// [`DeployError::Disagreed`] if others were, [`DeployError::Fleet`] if nobody can be asked. If the future is dropped
    /// it may still be agreed on.
    fn agree<'a>(
        &'a self,
        plugin: &'a str,
        base: &'a Base,
        wanted: Agreement,
        by: &'a str,
    ) -> Agreeing<'a, ()>;

    /// The same as a batch, to be applied together with other writes to the same backend; nothing is agreed on before. Other
    /// nodes see neither without the other.
    ///
    /// # Errors
    /// [`DeployError::Fleet`] if nobody can be asked.
    fn prepare<'a>(
        &'a self,
        plugin: &'a str,
        base: &'a Base,
        wanted: Agreement,
        by: &'a str,
    ) -> Agreeing<'a, WriteBatch>;

    /// Waits until others have agreed on something for a plugin that cannot be shown here before somebody has done with
    /// changing it: why that is of no use any more. Ready at once if it is so already.
    fn overtaken<'a>(&'a self, plugin: &'a str) -> Overtaken<'a>;
}

/// What the others are asked.
pub type Agreeing<'a, T> = Pin<Box<dyn Future<Output = Result<T, DeployError>> + Send + 'a>>;

/// That others were faster.
pub type Overtaken<'a> = Pin<Box<dyn Future<Output = DeployError> + Send + 'a>>;

impl Shared {
    /// Checks that the writes beside an activation are made where the fleet agrees, if this is a node of one: nothing else
    /// could make both or neither.
    pub(super) fn check_beside(&self, batch: &WriteBatch) -> Result<(), DeployError> {
        let snapshot = self.store.snapshot();
        let config = |id| Some(snapshot.bucket(id)?.config());
        let Some(fleet) = snapshot.fleet().and_then(config) else {
            return Ok(());
        };
        let written = batch.writes.iter().map(|write| write.bucket);
        let mut written = written
            .chain(batch.replace.iter().copied())
            .filter_map(config);
        let apart = written.find(|bucket| bucket.backend != fleet.backend);
        apart.map_or(Ok(()), |bucket| {
            Err(DeployError::Apart {
                bucket: bucket.name.clone(),
                backend: bucket.backend,
                fleet: fleet.backend,
            })
        })
    }

    /// Whether a version has a migration that can only write where the fleet agrees.
    pub(super) fn migrates_beside(&self, generation: &Generation) -> bool {
        let snapshot = self.store.snapshot();
        let backend = |id| Some(snapshot.bucket(id)?.config().backend);
        let fleet = snapshot.fleet().and_then(backend);
        let mut written = generation
            .config()
            .grants
            .iter()
            .filter(|(_, access)| **access == Access::Write)
            .map(|(name, _)| snapshot.bucket_id(name).and_then(backend));
        generation.sandbox.code.migrate_export.is_some()
            && fleet.is_some()
            && written.all(|backend| backend == fleet)
    }

    /// Whether a plugin may write a bucket that other nodes have, too.
    pub(super) fn writes_shared(&self, generation: &Generation) -> bool {
        let snapshot = self.store.snapshot();
        let is_shared = |name: &String| {
            let bucket = snapshot.bucket(snapshot.bucket_id(name)?)?;
            Some(bucket.config().backend.is_shared())
        };
        let mut grants = generation.config().grants.iter();
        grants.any(|(name, access)| *access == Access::Write && is_shared(name).unwrap_or_default())
    }

    /// Whether this node takes a version back that its guard judged, in favour of another or by ending a canary. The fleet
    /// is told if it is the fleet's version; if it cannot be told, this node does it alone.
    pub(super) async fn take_back_agreed(
        &self,
        plugin: &str,
        judged: &str,
        target: Option<&str>,
        verdict: &Verdict,
    ) -> bool {
        let Some(accord) = self.accord.get() else {
            return true;
        };
        // Others have decided something, which this node is about to take.
        let Ok(base) = accord.base(plugin) else {
            return false;
        };
        let Some(agreed) = &base.agreed else {
            return true;
        };
        let canary = agreed
            .canary
            .as_ref()
            .filter(|(version, _)| version != judged);
        let is_ours = match target {
            Some(_) => agreed.active == judged,
            None => agreed.canary.is_some() && canary.is_none(),
        };
        if !is_ours {
            return true;
        }
        let wanted = Agreement {
            active: target.unwrap_or(&agreed.active).to_owned(),
            canary: None,
            failing: Some((judged.to_owned(), verdict.reason.clone())),
            force: true,
            back: true,
        };
        let agreed = accord.agree(plugin, &base, wanted, "guard");
        let error = match tokio::time::timeout(TAKE_BACK_TIMEOUT, agreed).await {
            Ok(Ok(())) => return true,
            Ok(Err(DeployError::Disagreed(_))) => return false,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {TAKE_BACK_TIMEOUT:?}"),
        };
        let version = short(judged);
        tracing::error!(plugin, version, error, "guard: the fleet is not told");
        true
    }
}

impl Plugins {
    /// Has every change agreed on first; to be called once, before the first one.
    pub fn set_accord(&self, accord: Arc<dyn Accord>) {
        // A second one would be a mistake of the caller's; the first one stays.
        let _ = self.shared.accord.set(accord);
    }

    /// What this node has of a plugin; none if it is not in the config.
    pub fn present(&self, plugin: &str) -> Option<Present> {
        let slot = self.slot(plugin)?;
        let active = slot
            .active()
            .as_ref()
            .map(|one| one.label().digest.to_string());
        let canary = slot.canary().map(|canary| {
            let digest = canary.generation.label().digest.to_string();
            (digest, canary.share.clone())
        });
        let record = slot.record();
        let failing = record.iter().flat_map(|record| &record.failing);
        Some(Present {
            active,
            canary,
            failing: failing.map(|failing| failing.digest.clone()).collect(),
        })
    }

    /// The bytes of a version that is kept.
    ///
    /// # Errors
    /// If it is not, or its file is not what it was.
    pub async fn component(&self, plugin: &str, digest: &str) -> Result<Bytes, DeployError> {
        let (shared, plugin, digest) = (
            Arc::clone(&self.shared),
            plugin.to_owned(),
            digest.to_owned(),
        );
        blocking(move || shared.artifacts.load(&plugin, &digest).map_err(io_error)).await
    }

    /// Whether a version is kept.
    pub fn keeps(&self, plugin: &str, digest: &str) -> bool {
        let info = self.get(plugin);
        let mut versions = info.iter().flat_map(|info| &info.versions);
        versions.any(|one| one.digest == digest && one.bytes.is_some())
    }

    /// The plugins of the config.
    pub fn names(&self) -> Vec<String> {
        self.shared.slots.load().keys().cloned().collect()
    }

    /// How many versions of a plugin are to be kept; none if it is not in the config.
    pub fn keep(&self, plugin: &str) -> Option<usize> {
        Some(self.slot(plugin)?.config().versions.keep)
    }

    /// The largest component that is taken, in bytes.
    pub fn component_bytes_max(&self) -> usize {
        self.shared.component_bytes_max
    }

    /// Does what was agreed on. Of a version that is not kept the component has to be given.
    ///
    /// # Errors
    /// As if it were asked for here; nothing is changed then.
    pub async fn take_step(
        &self,
        plugin: &str,
        step: Step,
        component: Option<Bytes>,
        order: Order<'_>,
        back: bool,
    ) -> Result<(), DeployError> {
        let origin = Origin::Fleet { back };
        let wanted = |digest| match component {
            Some(component) => Wanted::Component(component),
            None => Wanted::Version(digest),
        };
        match step {
            Step::Mark { version, reason } => self.mark_failing(plugin, version, reason).await?,
            Step::Activate(digest) => {
                self.walk(plugin, wanted(digest), Role::Active, order, origin, None)
                    .await?;
            }
            Step::Canary(digest, share) => {
                let role = Role::Canary(share);
                self.walk(plugin, wanted(digest), role, order, origin, None)
                    .await?;
            }
            Step::Promote => drop(self.promote_canary(plugin, order, origin).await?),
            Step::Abort => self.abort_canary(plugin, order, origin).await?,
            Step::Share(share) => drop(self.reshare(plugin, share, order, origin).await?),
        }
        Ok(())
    }

    async fn mark_failing(
        &self,
        plugin: &str,
        version: String,
        reason: String,
    ) -> Result<(), DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(plugin)?;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.rewrite(turn.slot(), |record| {
                drop(record.mark_failing(&version, &reason));
            })
        })
        .await
    }
}
