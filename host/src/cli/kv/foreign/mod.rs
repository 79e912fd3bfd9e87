//! Maps of other proxies as entries of a bucket.
//!
//! Each is looked up in an order of its own, and a bucket in that of its kinds ([`LookupKinds`]). Where an entry would
//! find something else then, it is refused with its line; or it becomes a key of another kind that finds the same.

mod haproxy;
mod include;
mod nginx;

pub(super) use haproxy::parse as haproxy_map;
pub(super) use include::Includes;
pub(super) use nginx::parse as nginx_map;

use crate::cli::client::Client;
use crate::store::ordered::{Numbered, keys_in_order};
use crate::store::{LookupKind, LookupKinds};
use serde_json::Value;

/// The bucket that a map goes to: what can be carried over depends on it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    /// The kinds of look-up that it declares.
    kinds: LookupKinds,
    /// Whether its values are addresses.
    has_addresses: bool,
}

impl Bucket {
    /// Asks the proxy.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub(super) async fn ask(client: &Client, name: &str) -> anyhow::Result<Self> {
        let answer: Value = client.get("/v1/kv").await?.json()?;
        let buckets = super::listed(&answer, "buckets").iter();
        let Some(bucket) = buckets.into_iter().find(|it| it["name"] == name) else {
            // The import itself says that there is none.
            return Ok(Self::default());
        };
        let words = bucket["lookup"].as_array().into_iter().flatten();
        let kind = |word: &Value| {
            let known = LookupKind::ALL.into_iter();
            known.clone().find(|kind| word == kind.word())
        };
        Ok(Self {
            kinds: LookupKinds::of(&words.filter_map(kind).collect::<Vec<_>>()),
            has_addresses: bucket["values"] == "endpoint",
        })
    }

    /// What an entry needs of the bucket.
    ///
    /// # Errors
    /// That the bucket does not have it.
    fn needs(&self, kind: LookupKind, what: &str) -> Result<(), String> {
        if self.kinds.has(kind) {
            return Ok(());
        }
        Err(format!(
            "{what} has no counterpart without {:?} in `lookup` of the bucket",
            kind.word()
        ))
    }

    /// Whether it can hold the value.
    ///
    /// # Errors
    /// Why it cannot.
    fn holds(&self, value: &str) -> Result<(), String> {
        if value.is_empty() && self.has_addresses {
            return Err("an empty value has no counterpart where values are addresses".to_owned());
        }
        Ok(())
    }
}

/// How HAProxy compares the keys of a map: the word after `map_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Match {
    /// The whole key
    Str,
    /// What the key begins with
    Beg,
    /// What the key ends with
    End,
    /// What is anywhere in the key
    Sub,
    /// Whole segments between slashes
    Dir,
    /// A domain and the names in it
    Dom,
    /// A regular expression
    Reg,
}

/// What a foreign map comes to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Key and value, each key once.
    pub(super) entries: Vec<(String, String)>,
    /// What a bucket has no counterpart for, with its line.
    pub(super) unsupported: Vec<String>,
    /// What is done in another way here.
    pub(super) notes: Vec<String>,
}

impl Found {
    /// Adds patterns with their values, in the order in which they are tried.
    fn add_expressions(&mut self, expressions: Vec<(String, String)>) {
        let mut once: Vec<(String, String)> = Vec::with_capacity(expressions.len());
        let mut seen = std::collections::BTreeSet::new();
        // A second one is never found.
        once.extend(
            expressions
                .into_iter()
                .filter(|it| seen.insert(it.0.clone())),
        );
        let (keys, numbered) = keys_in_order(once.iter().map(|(pattern, _)| pattern.as_str()));
        if numbered == Numbered::Yes {
            self.notes.push(format!(
                "a bucket tries expressions by the bytes of their keys: they are numbered to be tried in the order of the \
                 map, such as {}",
                keys[0]
            ));
        }
        let values = once.into_iter().map(|(_, value)| value);
        self.entries.extend(keys.into_iter().zip(values));
    }
}

#[cfg(test)]
fn bucket_of(kinds: &[LookupKind]) -> Bucket {
    Bucket {
        kinds: LookupKinds::of(kinds),
        has_addresses: false,
    }
}
