//! Typed records: values of routing buckets that say more than one address, parsed once, when they are written or loaded.
//!
//! ```json
//! {"addresses": ["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 3}], "policy": "least-requests",
//!  "tags": {"zone": "eu"}, "on_change": {"drain": {"after_ms": 5000, "over_ms": 60000}}}
//! ```
//!
//! What is kept and shown is one form of each: fields by name, nothing that stands at its default, no spaces. So a record
//! that says the same is the same value, and writing it once more changes nothing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::OnChange;
use super::value::{Target, ValueError, shown};
use node::Node;

mod node;
#[cfg(test)]
mod tests;

/// Which endpoint of several a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One after the other, on each worker, as often as its weight says.
    #[default]
    RoundRobin,
    /// The one with the fewest requests and streams of this worker, for its weight.
    LeastRequests,
    /// By rendezvous hash of the key the plugin gave, or looked up (without one: the client's address).
    Hash,
}

impl Policy {
    /// All of them, as configs and records have them.
    pub const WORDS: [(&str, Self); 3] = [
        ("round-robin", Self::RoundRobin),
        ("least-requests", Self::LeastRequests),
        ("hash", Self::Hash),
    ];

    fn word(self) -> &'static str {
        let known = Self::WORDS.iter().find(|(_, policy)| *policy == self);
        known.map_or("", |(word, _)| word)
    }
}

/// One of the addresses of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedTarget {
    /// Where.
    pub target: Target,
    /// How much of the requests it gets, compared with the others: 1 to 1,000.
    pub weight: u16,
}

/// TLS to the addresses of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordTls {
    /// The name that is asked for, and that the certificate has to be for; without one, the host of each address.
    pub sni: Option<Arc<str>>,
}

/// Addresses, and what is to be done with them.
#[derive(Debug)]
pub struct TypedRecord {
    /// At least one.
    pub addresses: Box<[WeightedTarget]>,
    /// Which of them a request gets.
    pub policy: Policy,
    /// Names with what they are set to, in order of names; empty for a name alone.
    tags: Box<[Tag]>,
    /// What becomes of streams when the entry changes, instead of what the bucket says.
    pub on_change: Option<OnChange>,
    /// Whether the addresses are reached over TLS, and who has to be there.
    pub tls: Option<RecordTls>,
    /// Whether an address has no port of its own, nor is a socket without one.
    pub needs_port: bool,
    text: Box<str>,
}

/// Most addresses and tags of a record.
const ADDRESSES_MAX: usize = 256;
const TAGS_MAX: usize = 64;
/// Longest name of a tag, and longest value.
const TAG_NAME_BYTES_MAX: usize = 64;
const TAG_VALUE_BYTES_MAX: usize = 256;
const WEIGHT_MAX: u16 = 1_000;
/// Longest record.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// Longest span of a drain, as of a bucket's in the config.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// A name, and what it is set to.
type Tag = (Box<str>, Box<str>);

/// A field that is wrong, with its path, and why.
type Wrong = String;

impl PartialEq for TypedRecord {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for TypedRecord {}

impl TypedRecord {
    /// Whether text is meant to be one.
    pub(super) fn is_meant(text: &str) -> bool {
        text.trim_ascii_start().starts_with('{')
    }

    /// Parses a record.
    ///
    /// # Errors
    /// The first thing that is wrong with it: the field, what it is, what was expected.
    pub(super) fn parse(text: &str) -> Result<Arc<Self>, ValueError> {
        let refuse = |reason: String| ValueError(format!("typed record: {reason}"));
        if text.len() > RECORD_BYTES_MAX {
            return Err(refuse(format!(
                "it has {} bytes, expected at most {RECORD_BYTES_MAX}",
                text.len()
            )));
        }
        let node: Node = serde_json::from_str(text)
            .map_err(|error| refuse(format!("{} is no JSON: {error}", shown(text))))?;
        read(&node).map(Arc::new).map_err(refuse)
    }

    /// Its one form.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a tag is set to, if there is one of this name; empty for a name alone.
    pub fn tag(&self, name: &str) -> Option<&str> {
        let at = self.tags.binary_search_by(|(known, _)| (**known).cmp(name));
        at.ok().map(|at| &*self.tags[at].1)
    }

    /// Every tag with what it is set to, in order of names.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The same as JSON.
    pub fn json(&self) -> Json {
        let mut fields = Map::new();
        let address = |one: &WeightedTarget| match (one.target.to_string(), one.weight) {
            (address, 1) => address.into(),
            (address, weight) => json!({ "address": address, "weight": weight }),
        };
        let addresses: Vec<Json> = self.addresses.iter().map(address).collect();
        fields.insert("addresses".into(), addresses.into());
        if self.policy != Policy::default() {
            fields.insert("policy".into(), self.policy.word().into());
        }
        if self.tags.iter().any(|(_, value)| !value.is_empty()) {
            let tags = self.tags.iter();
            let tags = tags.map(|(name, value)| (name.to_string(), Json::from(&**value)));
            fields.insert("tags".into(), Json::Object(tags.collect()));
        } else if !self.tags.is_empty() {
            let names: Vec<&str> = self.tags.iter().map(|(name, _)| &**name).collect();
            fields.insert("tags".into(), names.into());
        }
        if let Some(on_change) = self.on_change {
            fields.insert("on_change".into(), on_change.json());
        }
        if let Some(tls) = &self.tls {
            fields.insert("scheme".into(), "https".into());
            if let Some(sni) = &tls.sni {
                fields.insert("sni".into(), (**sni).into());
            }
        }
        fields.into()
    }
}

impl OnChange {
    /// As records and the admin API have it: as the config, with times in milliseconds.
    pub fn json(self) -> Json {
        match self {
            Self::Keep => "keep".into(),
            Self::Close => "close".into(),
            Self::Drain { after, over } => {
                json!({ "drain": { "after_ms": millis(after), "over_ms": millis(over) } })
            }
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn read(node: &Node) -> Result<TypedRecord, Wrong> {
    let fields = node.fields(
        "the record",
        &["addresses", "policy", "scheme", "sni", "tags", "on_change"],
    )?;
    let [addresses, policy, scheme, sni, tags, on_change] = fields;
    let Some(addresses) = addresses else {
        return Err("addresses is missing, expected a list of at least one".into());
    };
    let addresses = read_addresses(addresses)?;
    let tls = read_tls(scheme, sni, &addresses)?;
    let policy = policy.map(|policy| policy.choice("policy", &Policy::WORDS));
    let mut record = TypedRecord {
        needs_port: addresses.iter().any(|one| one.target.needs_port()),
        addresses,
        policy: policy.transpose()?.unwrap_or_default(),
        tags: tags.map(read_tags).transpose()?.unwrap_or_default(),
        on_change: on_change.map(read_on_change).transpose()?,
        tls,
        text: Box::default(),
    };
    record.text = record.json().to_string().into();
    Ok(record)
}

fn read_addresses(node: &Node) -> Result<Box<[WeightedTarget]>, Wrong> {
    let items = node.items("addresses", 1..=ADDRESSES_MAX)?;
    let mut addresses: Vec<WeightedTarget> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let path = format!("addresses[{index}]");
        let address = match item {
            Node::Object(_) => {
                let [address, weight] = item.fields(&path, &["address", "weight"])?;
                let Some(address) = address else {
                    return Err(format!("{path}.address is missing, expected an address"));
                };
                let range = 1..=u64::from(WEIGHT_MAX);
                let weight = weight.map(|it| it.whole(&format!("{path}.weight"), range));
                let weight = u16::try_from(weight.transpose()?.unwrap_or(1));
                WeightedTarget {
                    target: read_target(&format!("{path}.address"), address)?,
                    weight: weight.expect("its range is of these"),
                }
            }
            Node::Text(_) => WeightedTarget {
                target: read_target(&path, item)?,
                weight: 1,
            },
            other => {
                return Err(other.unlike(&path, "an address, or {\"address\": …, \"weight\": …}"));
            }
        };
        if addresses.iter().any(|known| known.target == address.target) {
            return Err(format!(
                "{path} is {}, which is there already",
                address.target
            ));
        }
        addresses.push(address);
    }
    Ok(addresses.into())
}

fn read_tls(
    scheme: Option<&Node>,
    sni: Option<&Node>,
    addresses: &[WeightedTarget],
) -> Result<Option<RecordTls>, Wrong> {
    let is_https = match scheme {
        Some(scheme) => scheme.choice("scheme", &[("http", false), ("https", true)])?,
        None => false,
    };
    let sni = match sni {
        None => None,
        Some(_) if !is_https => {
            return Err("sni is there, expected scheme \"https\" with it".into());
        }
        Some(sni) => match Target::parse(sni.text("sni")?) {
            Ok(Target::Name(name, None)) => Some(name),
            _ => return Err(sni.unlike("sni", "the name of a host")),
        },
    };
    let socket = |one: &WeightedTarget| matches!(one.target, Target::Unix(_));
    match addresses.iter().position(socket) {
        Some(index) if is_https => Err(format!(
            "addresses[{index}] is a Unix socket, expected hosts with scheme \"https\""
        )),
        _ => Ok(is_https.then_some(RecordTls { sni })),
    }
}

fn read_target(path: &str, node: &Node) -> Result<Target, Wrong> {
    let text = node.text(path)?;
    Target::parse(text).map_err(|error| format!("{path}: {error}"))
}

fn read_tags(node: &Node) -> Result<Box<[Tag]>, Wrong> {
    let mut tags: Vec<Tag> = match node {
        Node::List(items) => {
            let names = items.iter().enumerate().map(|(index, item)| {
                let name = item.text(&format!("tags[{index}]"))?;
                Ok((name.into(), Box::default()))
            });
            names.collect::<Result<_, Wrong>>()?
        }
        Node::Object(fields) => {
            let values = fields.iter().map(|(name, value)| {
                let value = value.text(&format!("tags.{}", shown(name)))?;
                Ok((name.as_str().into(), value.into()))
            });
            values.collect::<Result<_, Wrong>>()?
        }
        other => return Err(other.unlike("tags", "an object of strings, or a list of them")),
    };
    if tags.len() > TAGS_MAX {
        return Err(format!(
            "tags are {}, expected at most {TAGS_MAX}",
            tags.len()
        ));
    }
    for (name, value) in &tags {
        let has_control = |text: &str| text.chars().any(char::is_control);
        if name.is_empty() || name.len() > TAG_NAME_BYTES_MAX || has_control(name) {
            return Err(format!(
                "tag {} is no name of one, expected 1 to {TAG_NAME_BYTES_MAX} bytes without control characters",
                shown(name)
            ));
        }
        if value.len() > TAG_VALUE_BYTES_MAX || has_control(value) {
            return Err(format!(
                "tags.{} is {}, expected at most {TAG_VALUE_BYTES_MAX} bytes without control characters",
                shown(name),
                shown(value)
            ));
        }
    }
    tags.sort();
    match tags.windows(2).find(|two| two[0].0 == two[1].0) {
        Some(two) => Err(format!("tag {} is there twice", shown(&two[0].0))),
        None => Ok(tags.into()),
    }
}

fn read_on_change(node: &Node) -> Result<OnChange, Wrong> {
    let path = "on_change";
    match node {
        Node::Text(_) => node.choice(
            path,
            &[("keep", OnChange::Keep), ("close", OnChange::Close)],
        ),
        Node::Object(_) => {
            let [drain] = node.fields(path, &["drain"])?;
            let Some(drain) = drain else {
                return Err(
                    "on_change.drain is missing, expected {\"after_ms\": …, \"over_ms\": …}".into(),
                );
            };
            let [after, over] = drain.fields("on_change.drain", &["after_ms", "over_ms"])?;
            let span = |name: &str, node: Option<&Node>| match node {
                Some(node) => {
                    let path = format!("on_change.drain.{name}");
                    node.whole(&path, 0..=millis(DRAIN_MAX))
                        .map(Duration::from_millis)
                }
                None => Ok(Duration::ZERO),
            };
            Ok(OnChange::Drain {
                after: span("after_ms", after)?,
                over: span("over_ms", over)?,
            })
        }
        other => Err(other.unlike(path, "\"keep\", \"close\" or {\"drain\": …}")),
    }
}
