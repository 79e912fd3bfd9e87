//! The node of a fleet that a config makes of this process.

use crate::config::Config;
use crate::control::Control;
use crate::fleet::{Facts, Fleet, Parts};
use crate::plugin::Plugins;
use crate::store::Store;
use crate::store::shared::artifacts;
use anyhow::Context;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Makes this process a node, has it take what was agreed on, and follow from then on; none if the config has no fleet.
pub(super) fn join(
    config: &Config,
    store: &Store,
    plugins: &Arc<Plugins>,
    control: &Control,
    admin: String,
    handle: &Handle,
) -> anyhow::Result<Option<Arc<Fleet>>> {
    let Some(fleet) = &config.fleet else {
        return Ok(None);
    };
    let control = control.clone();
    let facts = move || Facts {
        config: Arc::clone(&control.running().digest),
        ready: control.ready().is_ok(),
    };
    let fleet = Fleet::new(Parts {
        config: fleet.clone(),
        store: store.clone(),
        plugins: Arc::clone(plugins),
        depot: artifacts::open(fleet.backend, &config.store).context("fleet")?,
        admin,
        facts: Box::new(facts),
    })?;
    handle.spawn(Arc::clone(&fleet).stand_by());
    handle.block_on(fleet.settle());
    handle.spawn(Arc::clone(&fleet).follow());
    handle.spawn(Arc::clone(&fleet).tell());
    Ok(Some(fleet))
}
