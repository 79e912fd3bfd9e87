//! What is in the bucket of a fleet, as JSON: what nodes are to have, what they have, and where components are.

use crate::plugin::{Agreement, Share};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What keys of plugins begin with; the plugin's name follows.
pub(super) const PLUGIN: &str = "plugin/";
/// What keys of nodes begin with; the node's name follows.
pub(super) const NODE: &str = "node/";
/// What keys of components begin with; the place in the depot follows.
pub(super) const ARTIFACT: &str = "artifact/";

/// What each node is to have of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PluginEntry {
    /// The active version, by its digest.
    pub(super) active: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) canary: Option<CanaryEntry>,
    /// A version that a guard took back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failing: Option<FailingEntry>,
    /// Though something speaks against it.
    #[serde(default)]
    pub(super) force: bool,
    /// Whether it is a way back.
    #[serde(default)]
    pub(super) back: bool,
    /// Whether it was agreed on in one step with writes: no node shows one without the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) with_writes: bool,
    /// Who asked for it.
    pub(super) by: String,
    /// Of which node.
    pub(super) node: String,
    /// When, in milliseconds since 1970.
    pub(super) at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CanaryEntry {
    pub(super) version: String,
    pub(super) share: Share,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FailingEntry {
    pub(super) version: String,
    pub(super) reason: String,
}

impl PluginEntry {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let entry: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let canary = entry.canary.iter().map(|canary| &canary.version);
        let failing = entry.failing.iter().map(|failing| &failing.version);
        for digest in std::iter::once(&entry.active).chain(canary).chain(failing) {
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            if digest.len() != 64 || !digest.bytes().all(is_hex) {
                return Err(format!(
                    "{digest:?} is no digest, expected 64 hexadecimal digits"
                ));
            }
        }
        Ok(entry)
    }

    pub(super) fn new(agreement: Agreement, by: &str, node: &str, at_ms: u64) -> Self {
        let canary = agreement.canary;
        let failing = agreement.failing;
        Self {
            active: agreement.active,
            canary: canary.map(|(version, share)| CanaryEntry { version, share }),
            failing: failing.map(|(version, reason)| FailingEntry { version, reason }),
            force: agreement.force,
            back: agreement.back,
            with_writes: false,
            by: by.to_owned(),
            node: node.to_owned(),
            at_ms,
        }
    }

    pub(super) fn agreement(&self) -> Agreement {
        let canary = self.canary.clone();
        let failing = self.failing.clone();
        Agreement {
            active: self.active.clone(),
            canary: canary.map(|canary| (canary.version, canary.share)),
            failing: failing.map(|failing| (failing.version, failing.reason)),
            force: self.force,
            back: self.back,
        }
    }
}

/// What a node is; gone when the node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeEntry {
    /// A mark of its process.
    pub(super) life: String,
    /// Of the program.
    pub(super) version: String,
    pub(super) started_ms: u64,
    pub(super) told_ms: u64,
    /// Where its admin API is.
    pub(super) admin: String,
    /// The digest of its config.
    pub(super) config: String,
    pub(super) ready: bool,
    /// Another process tells under its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) name_taken: bool,
    /// The newest revision of the store that it has.
    pub(super) revision: u64,
    /// By name.
    pub(super) plugins: BTreeMap<String, PluginState>,
}

/// What a node has of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PluginState {
    pub(super) active: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) canary: Option<CanaryEntry>,
    pub(super) state: State,
    /// Why it is not what was agreed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

/// How a node does with what was agreed on. The worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Nothing was agreed on: it has what its config says, or what it was given before.
    Own,
    /// It has it.
    Ok,
    /// It is about to take it.
    Behind,
    /// It could not take it, and stays with what it had.
    Failed,
    /// It may have changed, or gone: nothing is heard of the others.
    Unknown,
}

/// A component in the depot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ArtifactEntry {
    pub(super) digest: String,
    /// Whose version it was when it was put there.
    pub(super) plugin: String,
    pub(super) bytes: u64,
    /// Whether it is there; before, it is being put there, and after, removed.
    pub(super) whole: bool,
    /// When it was relied on for the last time.
    pub(super) at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Fraction;

    fn digest(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn what_was_agreed_on_is_read_as_it_was_written() {
        let agreement = Agreement {
            active: digest('a'),
            canary: Some((
                digest('b'),
                Share {
                    fraction: Fraction::percent(2.5).expect("a percentage"),
                    field: "header:x-id".parse().expect("a field"),
                },
            )),
            failing: Some((digest('c'), "5 traps".to_owned())),
            force: true,
            back: false,
        };
        let entry = PluginEntry::new(agreement.clone(), "ada", "one", 7);
        let text = serde_json::to_vec(&entry).expect("text");
        let read = PluginEntry::parse(&text).expect("an entry");
        assert_eq!((read.agreement(), read), (agreement, entry));
    }

    #[test]
    fn an_entry_that_is_none_says_what_was_expected() {
        let short = r#"{"active": "ab", "by": "x", "node": "y", "at_ms": 1}"#;
        let error = PluginEntry::parse(short.as_bytes()).expect_err("no digest");
        assert_eq!(error, "\"ab\" is no digest, expected 64 hexadecimal digits");
        let error = PluginEntry::parse(b"{}").expect_err("nothing");
        assert!(error.contains("missing field `active`"), "{error}");
    }
}
