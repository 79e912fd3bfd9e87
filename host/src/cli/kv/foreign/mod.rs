//! Maps of other proxies as entries of a bucket.

mod haproxy;
mod nginx;

pub(super) use haproxy::parse as haproxy_map;
pub(super) use nginx::parse as nginx_map;

use crate::cli::client::Client;
use serde_json::Value;

/// The kinds of look-up that a bucket declares: what of a map can be carried over depends on it.
///
/// # Errors
/// If the proxy cannot be reached.
pub(super) async fn kinds(client: &Client, bucket: &str) -> anyhow::Result<Vec<String>> {
    let answer: Value = client.get("/v1/kv").await?.json()?;
    let buckets = super::listed(&answer, "buckets").iter();
    let mut named = buckets.filter(|it| it["name"] == bucket);
    let words = named.next().and_then(|it| it["lookup"].as_array());
    let words = words.into_iter().flatten().filter_map(Value::as_str);
    Ok(words.map(str::to_owned).collect())
}

/// How HAProxy compares the keys of a map: the word after `map_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Match {
    /// The whole key
    Str,
    /// What the key begins with
    Beg,
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
