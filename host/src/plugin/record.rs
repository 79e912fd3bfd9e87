//! What is recorded of a plugin: which version is active, which were, which is tried beside it, which failed.
//!
//! The record is one file, replaced as a whole, so a crash leaves the state before a change or after it.

use super::canary::{Fraction, Share};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Activations remembered of a plugin: as many as `keep` may be.
pub(super) const HISTORY_MAX: usize = 100;
/// Failed versions remembered of a plugin.
const FAILING_MAX: usize = 100;

/// One activation, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Activation {
    /// The version.
    pub(super) digest: String,
    /// Who asked for it.
    pub(super) by: String,
    /// When.
    pub(super) at: SystemTime,
    /// Whether it was active, not only tried beside another.
    #[serde(default = "yes")]
    pub(super) was_active: bool,
}

impl Activation {
    /// At this moment, to be active.
    pub(super) fn now(digest: &str, by: &str) -> Self {
        Self {
            digest: digest.to_owned(),
            by: by.to_owned(),
            at: SystemTime::now(),
            was_active: true,
        }
    }

    /// At this moment, to be tried beside the active version.
    pub(super) fn trial(digest: &str, by: &str) -> Self {
        Self {
            was_active: false,
            ..Self::now(digest, by)
        }
    }
}

/// A canary that is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CanaryRecord {
    pub(super) started: Activation,
    pub(super) share: Share,
}

/// A shadow that is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShadowRecord {
    pub(super) started: Activation,
    pub(super) sample: Fraction,
}

/// A version that the guard took back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failing {
    /// The version.
    pub(super) digest: String,
    /// What was over its limit.
    pub(super) reason: String,
    /// When.
    pub(super) at: SystemTime,
    /// From the guard's verdict until the version decided nothing any more; forgotten at a restart.
    #[serde(skip)]
    pub(super) took: Arc<OnceLock<Duration>>,
}

/// Which version of a plugin is active, and what is known of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The active one.
    pub(super) active: Activation,
    /// What a rollback activates.
    pub(super) previous: Option<String>,
    /// Digest of the settings, grants and limits it was activated with.
    pub(super) settings: String,
    /// Activations before, newest first, each version once.
    #[serde(default)]
    pub(super) history: Vec<Activation>,
    /// Whether the active version was pushed: then it stays, whatever the config names as source.
    #[serde(default = "yes")]
    pub(super) pushed: bool,
    /// The version that takes a share of the requests.
    #[serde(default)]
    pub(super) canary: Option<CanaryRecord>,
    /// The version that is only compared.
    #[serde(default)]
    pub(super) shadow: Option<ShadowRecord>,
    /// Versions that the guard took back, newest first.
    #[serde(default)]
    pub(super) failing: Vec<Failing>,
    /// The last migration whose version became active.
    #[serde(default)]
    pub(super) migration: Option<String>,
}

fn yes() -> bool {
    true
}

impl Record {
    /// The record after an activation. It ends a canary; the version activated fails no longer.
    pub(super) fn after(
        before: Option<&Record>,
        mut active: Activation,
        settings: String,
        pushed: bool,
    ) -> Self {
        let Some(before) = before else {
            return Self {
                active,
                previous: None,
                settings,
                history: Vec::new(),
                pushed,
                canary: None,
                shadow: None,
                failing: Vec::new(),
                migration: None,
            };
        };
        // Which of two came later is told by it, also if the clock was set back in between.
        active.at = active.at.max(before.active.at);
        let mut record = before.clone();
        record.end_canary();
        record
            .failing
            .retain(|failing| failing.digest != active.digest);
        if record
            .shadow
            .as_ref()
            .is_some_and(|shadow| shadow.started.digest == active.digest)
        {
            record.shadow = None;
        }
        if record.active.digest != active.digest {
            let replaced = std::mem::replace(&mut record.active, active);
            record.remember(replaced);
            // One that failed is no way back.
            record.previous = record
                .history
                .iter()
                .filter(|activation| activation.was_active)
                .map(|activation| &activation.digest)
                .find(|digest| record.failing(digest).is_none())
                .cloned();
        } else {
            record.active = active;
        }
        record.settings = settings;
        record.pushed = pushed;
        record
    }

    /// Why a version failed, if it did.
    pub(super) fn failing(&self, digest: &str) -> Option<&Failing> {
        self.failing.iter().find(|failing| failing.digest == digest)
    }

    /// Marks a version as failing. What is returned is where to put how long it took to take it back.
    pub(super) fn mark_failing(&mut self, digest: &str, reason: &str) -> Arc<OnceLock<Duration>> {
        let took = Arc::<OnceLock<Duration>>::default();
        self.failing.retain(|failing| failing.digest != digest);
        self.failing.insert(
            0,
            Failing {
                digest: digest.to_owned(),
                reason: reason.to_owned(),
                at: SystemTime::now(),
                took: Arc::clone(&took),
            },
        );
        self.failing.truncate(FAILING_MAX);
        took
    }

    /// Ends a canary; its version is remembered as one that was active.
    pub(super) fn end_canary(&mut self) {
        if let Some(canary) = self.canary.take() {
            self.remember(canary.started);
        }
    }

    /// Ends a shadow; its version is remembered as one that was active.
    pub(super) fn end_shadow(&mut self) {
        if let Some(shadow) = self.shadow.take() {
            self.remember(shadow.started);
        }
    }

    fn remember(&mut self, activation: Activation) {
        self.history.insert(0, activation);
        let mut seen = BTreeSet::from([self.active.digest.clone()]);
        self.history
            .retain(|activation| seen.insert(activation.digest.clone()));
        self.history.truncate(HISTORY_MAX);
    }

    /// Takes a version that is neither active nor tried out of all lists.
    pub(super) fn forget(&mut self, digest: &str) {
        self.history
            .retain(|activation| activation.digest != digest);
        self.failing.retain(|failing| failing.digest != digest);
        if self.previous.as_deref() == Some(digest) {
            self.previous = None;
        }
    }

    /// Every activation it knows of, the newest of each version first.
    pub(super) fn activations(&self) -> impl Iterator<Item = &Activation> {
        std::iter::once(&self.active)
            .chain(self.canary.as_ref().map(|canary| &canary.started))
            .chain(self.shadow.as_ref().map(|shadow| &shadow.started))
            .chain(&self.history)
    }

    /// The versions to be kept on disk: those in use, and the newest others up to `keep` in all.
    pub(super) fn keeps(&self, keep: usize) -> BTreeSet<&str> {
        let mut kept = BTreeSet::from([self.active.digest.as_str()]);
        kept.extend(self.previous.as_deref());
        kept.extend(
            self.canary
                .as_ref()
                .map(|canary| canary.started.digest.as_str()),
        );
        kept.extend(
            self.shadow
                .as_ref()
                .map(|shadow| shadow.started.digest.as_str()),
        );
        for activation in &self.history {
            if kept.len() >= keep {
                break;
            }
            kept.insert(&activation.digest);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(before: Option<&Record>, digest: &str) -> Record {
        Record::after(before, Activation::now(digest, "test"), String::new(), true)
    }

    fn history(record: &Record) -> Vec<&str> {
        record.history.iter().map(|a| a.digest.as_str()).collect()
    }

    #[test]
    fn the_version_before_is_what_a_rollback_activates() {
        let first = after(None, "a");
        assert_eq!(first.previous, None);
        let second = after(Some(&first), "b");
        assert_eq!(second.previous.as_deref(), Some("a"));
        let same = after(Some(&second), "b");
        assert_eq!(
            (same.previous.as_deref(), history(&same)),
            (Some("a"), vec!["a"])
        );
        let back = after(Some(&same), "a");
        assert_eq!(
            (back.previous.as_deref(), history(&back)),
            (Some("b"), vec!["b"])
        );
    }

    #[test]
    fn an_activation_is_not_before_the_one_that_it_replaces_whatever_the_clock_says() {
        let first = after(None, "a");
        let before = Activation {
            at: first.active.at - Duration::from_secs(3600),
            ..Activation::now("b", "test")
        };
        let second = Record::after(Some(&first), before, String::new(), true);
        assert_eq!(second.active.at, first.active.at);
    }

    #[test]
    fn a_version_that_failed_is_no_way_back_until_it_is_activated_again() {
        let mut record = after(Some(&after(Some(&after(None, "a")), "b")), "c");
        record.mark_failing("c", "2 % errors");
        let back = after(Some(&record), "b");
        assert_eq!(back.previous.as_deref(), Some("a"));
        assert_eq!(
            back.failing("c").map(|f| f.reason.as_str()),
            Some("2 % errors")
        );
        assert!(after(Some(&back), "c").failing("c").is_none());
    }

    #[test]
    fn versions_in_use_are_kept_whatever_the_bound() {
        let mut record = ["b", "c", "d"]
            .iter()
            .fold(after(None, "a"), |record, digest| {
                after(Some(&record), digest)
            });
        record.canary = Some(CanaryRecord {
            started: Activation::trial("e", "test"),
            share: Share {
                fraction: Fraction::ALL,
                field: "path".parse().expect("a field"),
            },
        });
        assert_eq!(record.keeps(1), BTreeSet::from(["c", "d", "e"]));
        assert_eq!(record.keeps(4), BTreeSet::from(["b", "c", "d", "e"]));
        record.end_canary();
        assert_eq!(history(&record), ["e", "c", "b", "a"]);
        record.forget("c");
        assert_eq!(
            (record.previous.clone(), history(&record)),
            (None, vec!["e", "b", "a"])
        );
    }

    #[test]
    fn a_record_of_an_older_release_is_read() {
        let text = r#"{"active":{"digest":"a","by":"x","at":{"secs_since_epoch":1,"nanos_since_epoch":0}},"previous":null,"settings":""}"#;
        let record: Record = serde_json::from_str(text).expect("a record");
        assert!(record.pushed && record.canary.is_none() && record.failing.is_empty());
        let written = serde_json::to_string(&record).expect("text");
        assert_eq!(
            serde_json::from_str::<Record>(&written).expect("a record"),
            record
        );
    }
}
