//! A config as it is going to be written: only what a foreign config has a say in, in the order people read it.

use crate::store::LookupKind;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a foreign config comes to.
#[derive(Debug, Serialize)]
pub(super) struct Draft {
    version: u8,
    data: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) admin: Option<Admin>,
    pub(super) listener: Vec<Listener>,
    #[serde(
        serialize_with = "bucket_tables",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(super) buckets: Vec<Bucket>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) upstreams: BTreeMap<String, Upstream>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) plugins: BTreeMap<String, Plugin>,
    pub(super) route: Vec<Route>,
    #[serde(skip_serializing_if = "Compat::is_empty")]
    pub(super) compat: Compat,
}

/// `[admin]`
#[derive(Debug, Serialize)]
pub(super) struct Admin {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) listen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth: Option<&'static str>,
}

/// `[[listener]]`
#[derive(Debug, Serialize)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) listen: String,
}

/// `[buckets.NAME]`, and what is in it.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    /// Key and value, each key once.
    pub(super) entries: Vec<(String, String)>,
    /// Empty if it is of whole keys alone.
    pub(super) lookup: Vec<LookupKind>,
    /// If it is more than by default.
    pub(super) regexes_max: Option<usize>,
}

/// `[upstreams.NAME]`
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Upstream {
    pub(super) endpoints: Vec<String>,
    pub(super) policy: &'static str,
}

/// `[plugins.NAME]`
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Plugin {
    pub(super) source: &'static str,
    pub(super) buckets: BTreeMap<String, &'static str>,
    pub(super) settings: BTreeMap<&'static str, String>,
}

/// `[[route]]`
#[derive(Debug, Serialize)]
pub(super) struct Route {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) handler: Handler,
    #[serde(rename = "match", skip_serializing_if = "Match::is_empty")]
    pub(super) matcher: Match,
}

/// What a route does.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Handler {
    /// A plugin decides.
    Plugin(String),
    /// One address.
    To(String),
    /// An upstream.
    Upstream(String),
    /// An answer.
    Reply(Reply),
}

/// `reply` of a route.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Reply {
    pub(super) status: u16,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) body: String,
}

/// `[route.match]`
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Match {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) host: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) path: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) method: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) header: BTreeMap<String, String>,
}

/// `[compat]`
#[derive(Debug, Default, Serialize)]
pub(super) struct Compat {
    /// Caddy's `@id` of a map → bucket.
    pub(super) caddy: BTreeMap<String, String>,
}

impl Match {
    /// Whether every request fits.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Compat {
    fn is_empty(&self) -> bool {
        self.caddy.is_empty()
    }
}

impl Draft {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self {
            version: 1,
            data: "data",
            admin: None,
            listener: Vec::new(),
            buckets: Vec::new(),
            upstreams: BTreeMap::new(),
            plugins: BTreeMap::new(),
            route: Vec::new(),
            compat: Compat::default(),
        }
    }

    /// The config, under a title and notes as comments.
    pub(super) fn to_toml(&self, title: &str, notes: &[&String]) -> String {
        let mut text = String::new();
        for line in std::iter::once(title).chain(notes.iter().map(|note| note.as_str())) {
            // A comment ends with its line, whatever was quoted in it.
            let line: String = line
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            text.push_str("# ");
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str(&toml::to_string(self).expect("tables of texts and numbers"));
        text
    }
}

/// The settings of each.
fn bucket_tables<S: serde::Serializer>(
    buckets: &[Bucket],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Settings<'b> {
        backend: &'static str,
        values: &'static str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        lookup: &'b [LookupKind],
        #[serde(skip_serializing_if = "Option::is_none")]
        regexes_max: Option<usize>,
    }
    serializer.collect_map(buckets.iter().map(|bucket| {
        let settings = Settings {
            backend: "embedded",
            values: "endpoint",
            lookup: &bucket.lookup,
            regexes_max: bucket.regexes_max,
        };
        (&bucket.name, settings)
    }))
}
