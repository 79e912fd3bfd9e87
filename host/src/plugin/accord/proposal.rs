//! A change of one plugin that is to be agreed on before it is done.

use std::future::Future;
use std::sync::Arc;

use super::{Accord, Agreement, Base};
use crate::plugin::deploy::Shared;
use crate::plugin::report::DeployError;
use crate::plugin::{Order, PluginSlot, Role};
use crate::store::{CommitError, WriteBatch};

/// Who wants a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plugin) enum Origin {
    /// Somebody who asks this node.
    Here,
    /// The fleet, which has agreed on it; whether it is a way back.
    Fleet { back: bool },
}

impl Origin {
    pub(in crate::plugin) fn follows(self) -> bool {
        self != Self::Here
    }

    pub(in crate::plugin) fn is_back(self) -> bool {
        self == Self::Fleet { back: true }
    }
}

/// A change that is to be agreed on.
pub(in crate::plugin) struct Proposal {
    accord: Arc<dyn Accord>,
    base: Base,
}

impl Proposal {
    /// Agrees that a version has a role on every node.
    pub(in crate::plugin) async fn role(
        self,
        slot: &PluginSlot,
        digest: &str,
        role: &Role,
        order: Order<'_>,
        back: bool,
    ) -> Result<(), DeployError> {
        let wanted = match role {
            Role::Active => active(digest, order, back),
            Role::Canary(share) => Agreement {
                canary: Some((digest.to_owned(), share.clone())),
                force: order.force,
                ..self.known(slot)?
            },
            Role::Shadow(_) => return Ok(()),
        };
        self.agree(slot, wanted, order).await
    }

    /// Agrees that a version decides on every node, in one batch with what is to be written here.
    pub(in crate::plugin) async fn beside(
        self,
        slot: &PluginSlot,
        digest: &str,
        order: Order<'_>,
        batch: &mut WriteBatch,
    ) -> Result<(), DeployError> {
        let wanted = active(digest, order, false);
        let prepared = self
            .accord
            .prepare(slot.name(), &self.base, wanted, order.by);
        match prepared.await {
            Ok(mut prepared) => batch.writes.append(&mut prepared.writes),
            Err(error) => return Err(instead_of(&*self.accord, slot.name(), error).await),
        }
        Ok(())
    }

    /// Agrees that there is no canary.
    pub(in crate::plugin) async fn no_canary(
        self,
        slot: &PluginSlot,
        order: Order<'_>,
    ) -> Result<(), DeployError> {
        let wanted = Agreement {
            canary: None,
            ..self.known(slot)?
        };
        self.agree(slot, wanted, order).await
    }

    /// What was agreed on, or what this node has if nothing was.
    fn known(&self, slot: &PluginSlot) -> Result<Agreement, DeployError> {
        if let Some(agreed) = &self.base.agreed {
            return Ok(agreed.clone());
        }
        let active = slot
            .active()
            .as_ref()
            .map(|one| one.label().digest.to_string());
        let active = active.ok_or_else(|| {
            DeployError::Conflict(format!(
                "plugin {:?} has no active version yet",
                slot.name()
            ))
        })?;
        Ok(Agreement {
            active,
            canary: None,
            failing: None,
            force: false,
            back: false,
        })
    }

    /// Does what comes before agreeing, unless others have agreed on something meanwhile.
    pub(in crate::plugin) async fn unless_overtaken<T>(
        &self,
        slot: &PluginSlot,
        work: impl Future<Output = Result<T, DeployError>>,
    ) -> Result<T, DeployError> {
        tokio::select! {
            biased;
            error = self.accord.overtaken(slot.name()) => Err(error),
            done = work => done,
        }
    }

    async fn agree(
        self,
        slot: &PluginSlot,
        wanted: Agreement,
        order: Order<'_>,
    ) -> Result<(), DeployError> {
        let agreed = self.accord.agree(slot.name(), &self.base, wanted, order.by);
        match agreed.await {
            Ok(()) => Ok(()),
            Err(error) => Err(instead_of(&*self.accord, slot.name(), error).await),
        }
    }
}

fn active(digest: &str, order: Order<'_>, back: bool) -> Agreement {
    Agreement {
        active: digest.to_owned(),
        canary: None,
        failing: None,
        force: order.force,
        back,
    }
}

/// Why a change was not agreed on: others were faster, if what the store refuses it for waits where it cannot be seen.
async fn instead_of(accord: &dyn Accord, plugin: &str, error: DeployError) -> DeployError {
    if !matches!(error, DeployError::Writes(CommitError::Unavailable(_))) {
        return error;
    }
    tokio::select! {
        biased;
        overtaken = accord.overtaken(plugin) => overtaken,
        () = std::future::ready(()) => error,
    }
}

impl Shared {
    /// A change to be agreed on; none outside a fleet, and for one that follows it.
    pub(in crate::plugin) fn propose(
        &self,
        plugin: &str,
        origin: Origin,
    ) -> Result<Option<Proposal>, DeployError> {
        let Some(accord) = self.accord.get().filter(|_| !origin.follows()) else {
            return Ok(None);
        };
        let base = accord.base(plugin)?;
        let accord = Arc::clone(accord);
        Ok(Some(Proposal { accord, base }))
    }

    /// Why what was to be agreed on beside other writes was not.
    pub(in crate::plugin) async fn instead_of(
        &self,
        plugin: &str,
        error: DeployError,
    ) -> DeployError {
        match self.accord.get() {
            Some(accord) => instead_of(&**accord, plugin, error).await,
            None => error,
        }
    }
}
