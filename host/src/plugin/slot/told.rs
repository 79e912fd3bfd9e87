//! What a slot tells: of itself in lists, and of a deploy.

use super::super::compile::Loaded;
use super::super::deploy::millis;
use super::super::report::{Deployed, Outcome, PluginInfo};
use super::super::versions::Known;
use super::super::{Generation, GenerationId, Role};
use super::PluginSlot;
use std::sync::Arc;
use std::time::Duration;

impl PluginSlot {
    /// What is told of a generation that is prepared already.
    pub(in crate::plugin) fn told(&self, generation: &Generation) -> Deployed {
        let loaded = Loaded {
            code: Arc::clone(&generation.sandbox.code),
            cached: true,
        };
        let mut told = self.deployed(&loaded, Duration::ZERO, Duration::ZERO);
        told.generation = Some(generation.id().0);
        told
    }

    /// The answer to a deploy of what is there already, in the same role.
    pub(in crate::plugin) fn unchanged(&self, digest: &str, role: &Role) -> Option<Deployed> {
        let generation = match role {
            Role::Active => self.active.load_full()?,
            Role::Canary(share) => {
                let canary = self.canary.load_full()?;
                (canary.share == *share).then(|| Arc::clone(&canary.generation))?
            }
            Role::Shadow(sample) => {
                let shadow = self.shadow.load_full()?;
                (shadow.sample() == *sample).then(|| Arc::clone(shadow.generation()))?
            }
        };
        let state = self.state();
        let same = generation.sandbox.config.same_sandbox(&state.config);
        if *generation.label().digest != *digest || !same {
            return None;
        }
        Some(Deployed {
            plugin: self.name.to_string(),
            digest: digest.to_owned(),
            generation: Some(generation.id().0),
            previous: Some(digest.to_owned()),
            outcome: Outcome::Unchanged,
            bytes: generation.sandbox.code.bytes,
            imports: generation.sandbox.code.imports.clone(),
            cached: true,
            compile_ms: 0.0,
            init_ms: 0.0,
            publish_us: 0.0,
            revision: None,
            migrated: None,
            not_migrated: None,
            streams_kept: state.streams(),
        })
    }

    /// The answer to a deploy that got as far as its trial.
    pub(in crate::plugin) fn deployed(
        &self,
        loaded: &Loaded,
        compile: Duration,
        init: Duration,
    ) -> Deployed {
        let active = self.active.load();
        let previous = active
            .as_ref()
            .map(|active| active.label().digest.to_string());
        Deployed {
            plugin: self.name.to_string(),
            digest: loaded.code.digest.to_string(),
            generation: None,
            previous,
            outcome: Outcome::Checked,
            bytes: loaded.code.bytes,
            imports: loaded.code.imports.clone(),
            cached: loaded.cached,
            compile_ms: millis(compile),
            init_ms: millis(init),
            publish_us: 0.0,
            revision: None,
            migrated: None,
            not_migrated: None,
            streams_kept: self.state().streams(),
        }
    }

    /// Versions but one with open streams, that activated longest ago first, each with their number. With `active`, the
    /// active version counts as one of them.
    pub(in crate::plugin) fn draining(&self, without: &str, active: bool) -> Vec<(String, u64)> {
        let now = self.active.load_full();
        let canary = self.canary.load_full();
        let spared = |digest: &str| {
            let is = |one: &Generation| *one.label().digest == *digest;
            digest == without
                || (!active && now.as_deref().is_some_and(is))
                || canary.as_ref().is_some_and(|canary| is(&canary.generation))
        };
        let mut draining: Vec<(String, u64)> = Vec::new();
        // Oldest first; a version's last generation says when it was activated.
        for past in self.state().generations.iter().rev() {
            let (digest, streams) = (&*past.label.digest, past.streams());
            if streams == 0 || spared(digest) {
                continue;
            }
            match draining.iter_mut().find(|(known, _)| known == digest) {
                Some((_, sum)) => *sum += streams,
                None => draining.push((digest.to_owned(), streams)),
            }
        }
        draining.reverse();
        draining
    }

    /// The plugin, for lists.
    pub(in crate::plugin) fn info(&self) -> PluginInfo {
        let active = self.active.load_full();
        let canary = self.canary.load_full();
        let shadow = self.shadow.load_full();
        let state = self.state();
        let name =
            |generation: &Generation| (generation.id(), generation.label().digest.to_string());
        let [active, canary, tried] = [
            active.as_deref(),
            canary.as_ref().map(|canary| &*canary.generation),
            shadow.as_ref().map(|shadow| &**shadow.generation()),
        ]
        .map(|generation| generation.map(name));
        fn borrowed(one: &Option<(GenerationId, String)>) -> Option<(GenerationId, &str)> {
            one.as_ref().map(|(id, digest)| (*id, digest.as_str()))
        }
        let known = Known {
            record: state.record.as_ref(),
            kept: &state.kept,
            generations: &state.generations,
            active: borrowed(&active),
            canary: borrowed(&canary),
            shadow: borrowed(&tried),
        };
        PluginInfo {
            name: self.name.to_string(),
            versions: known.list(),
            canary: canary.as_ref().and_then(|_| known.canary_info()),
            shadow: shadow.map(|shadow| shadow.info()),
            failing: known.failing(),
            guard_trips: state
                .guard_trips
                .iter()
                .map(|(limit, n)| (*limit, *n))
                .collect(),
            grants: state.config.grants.clone(),
            totals: state.totals(),
            generation: active.as_ref().map(|(id, _)| id.0),
            active: active.map(|(_, digest)| digest),
        }
    }
}
