//! What is recorded of an activation, and of a trial.

use crate::plugin::canary::Canary;
use crate::plugin::record::{Activation, CanaryRecord, Record};
use crate::plugin::{Generation, PluginConfig};
use sha2::{Digest, Sha256};

/// The record of a generation about to be active, after another.
pub(in crate::plugin) fn record_after(
    before: Option<&Record>,
    generation: &Generation,
    by: &str,
    pushed: bool,
) -> Record {
    let activation = Activation::now(&generation.label().digest, by);
    Record::after(
        before,
        activation,
        settings_digest(generation.config()),
        pushed,
    )
}

/// What is recorded of a canary that begins.
pub(in crate::plugin) fn canary_record(canary: &Canary, by: &str) -> CanaryRecord {
    CanaryRecord {
        started: Activation::trial(&canary.generation.label().digest, by),
        share: canary.share.clone(),
    }
}

/// Digest of what a version was activated with beside its bytes.
fn settings_digest(config: &PluginConfig) -> String {
    let text = format!(
        "{:?} {:?} {:?} {:?}",
        config.grants, config.settings, config.limits, config.sessions
    );
    crate::plugin::artifact::hex(&Sha256::digest(text))
}
