//! The versions of a plugin as they are told: what each is now, what it decided and failed at, what it costs.

use super::generation::{CallStats, GenerationLabel};
use super::record::{Activation, Record};
use super::report::{CanaryInfo, Errors, FailingInfo, VersionInfo, VersionState};
use super::slot::BY_CONFIG;
use super::{Generation, GenerationId};
use crate::metrics::CallTotals;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is left of a generation when its code is gone.
pub(super) struct Past {
    pub(super) label: Arc<GenerationLabel>,
    pub(super) stats: Arc<[CallStats]>,
    /// Whether it decides requests: a shadow does not.
    pub(super) decides: bool,
}

impl Past {
    /// What is to be remembered of a generation.
    pub(super) fn of(generation: &Generation) -> Self {
        Self {
            label: Arc::clone(generation.label()),
            stats: Arc::clone(&generation.sandbox.stats),
            decides: true,
        }
    }

    /// Calls of all workers.
    pub(super) fn totals(&self) -> CallTotals {
        let mut totals = CallTotals::default();
        self.stats
            .iter()
            .for_each(|worker| totals.add_stats(worker));
        totals
    }

    /// Bytes of linear memory of its instances.
    fn memory(&self) -> u64 {
        let bytes = |worker: &CallStats| worker.memory_bytes.load(Ordering::Relaxed);
        self.stats.iter().map(bytes).sum()
    }

    fn sessions(&self) -> u64 {
        self.label.sessions.load(Ordering::Relaxed)
    }

    pub(super) fn streams(&self) -> u64 {
        self.label.streams.load(Ordering::Relaxed)
    }
}

/// What is known of a plugin's versions at one moment.
pub(super) struct Known<'a> {
    pub(super) record: Option<&'a Record>,
    /// Digests on disk with their bytes.
    pub(super) kept: &'a [super::artifact::Kept],
    /// Every generation that something still belongs to, oldest first.
    pub(super) generations: &'a [Past],
    pub(super) active: Option<(GenerationId, &'a str)>,
    pub(super) canary: Option<(GenerationId, &'a str)>,
    pub(super) shadow: Option<(GenerationId, &'a str)>,
}

impl Known<'_> {
    /// Versions, newest activation first.
    pub(super) fn list(&self) -> Vec<VersionInfo> {
        let mut digests: Vec<&str> = Vec::new();
        let mut add = |digest| {
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        };
        for (_, digest) in [self.active, self.canary, self.shadow]
            .into_iter()
            .flatten()
        {
            add(digest);
        }
        if let Some(record) = self.record {
            add(&record.active.digest);
            record.previous.iter().for_each(|digest| add(digest));
            record
                .history
                .iter()
                .for_each(|activation| add(&activation.digest));
            record
                .failing
                .iter()
                .for_each(|failing| add(&failing.digest));
        }
        self.kept.iter().for_each(|kept| add(&kept.digest));
        let generations = self.generations.iter().rev();
        generations.for_each(|past| add(&past.label.digest));
        let infos = digests.into_iter().map(|digest| self.version(digest));
        infos
            .filter(|info| info.bytes.is_some() || info.state != VersionState::Kept)
            .collect()
    }

    fn version(&self, digest: &str) -> VersionInfo {
        let is = |one: Option<(GenerationId, &str)>| one.is_some_and(|(_, other)| other == digest);
        let failing = self.record.and_then(|record| record.failing(digest));
        let ours = || {
            self.generations
                .iter()
                .filter(|past| *past.label.digest == *digest)
        };
        let streams = ours().map(Past::streams).sum();
        let state = if is(self.active) {
            VersionState::Active
        } else if is(self.canary) {
            VersionState::Canary
        } else if is(self.shadow) {
            VersionState::Shadow
        } else if failing.is_some() {
            VersionState::Failing
        } else if streams > 0 {
            VersionState::Draining
        } else {
            VersionState::Kept
        };
        let role = match state {
            VersionState::Active => self.active,
            VersionState::Canary => self.canary,
            VersionState::Shadow => self.shadow,
            _ => None,
        };
        let newest = match role {
            Some((id, _)) => ours().find(|past| past.label.id == id),
            None => ours().next_back(),
        };
        let totals = newest.map(Past::totals).unwrap_or_default();
        let activation = self.activation(digest);
        VersionInfo {
            digest: digest.to_owned(),
            generation: newest.map(|past| past.label.id.0),
            bytes: self
                .kept
                .iter()
                .find(|kept| kept.digest == digest)
                .map(|kept| kept.bytes),
            state,
            canary: (state == VersionState::Canary)
                .then(|| self.canary_info())
                .flatten(),
            failing: failing.map(FailingInfo::from),
            since: newest
                .map(|past| past.label.since)
                .or(activation.map(|one| one.at)),
            by: activation.map_or(BY_CONFIG, |one| &one.by).to_owned(),
            streams,
            sessions: ours().map(Past::sessions).sum(),
            calls: totals.ok,
            errors: totals.failed() + totals.refused_writes,
            errors_by_kind: Errors::from(&totals),
            decision_ns: totals.nanos.checked_div(totals.calls()).unwrap_or(0),
            decision_p50_ns: totals.quantile(0.5),
            decision_p99_ns: totals.quantile(0.99),
            memory_bytes: ours().map(Past::memory).sum(),
            totals,
        }
    }

    fn activation(&self, digest: &str) -> Option<&Activation> {
        self.record?.activations().find(|one| one.digest == digest)
    }

    pub(super) fn canary_info(&self) -> Option<CanaryInfo> {
        let canary = self.record?.canary.as_ref()?;
        Some(CanaryInfo {
            version: canary.started.digest.clone(),
            percent: canary.share.fraction.as_percent(),
            by: canary.share.field.to_string(),
            since: canary.started.at,
            started_by: canary.started.by.clone(),
        })
    }

    pub(super) fn failing(&self) -> Vec<FailingInfo> {
        let failing = self.record.map_or(&[][..], |record| &record.failing);
        failing.iter().map(FailingInfo::from).collect()
    }
}
