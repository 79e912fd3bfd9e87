//! One decision through each door of the plugin contract, on a map of 10,000 keys with 256 of them hot, or other numbers.

use anyhow::{Context, Result, bail};
use http::{HeaderMap, HeaderValue, Method};
use std::collections::BTreeMap;
use std::sync::Arc;
use throwbar_host::plugin::{
    Access, Decision, Instance, PluginConfig, PluginLimits, Plugins, RequestHead, Source, builtin,
};
use throwbar_host::store::{
    BackendKind, BucketConfig, Snapshot, Store, ValueKind, Write, WriteBatch,
};

/// Keys of the map.
const KEYS: usize = 10_000;
/// Keys of it that requests ask for.
const HOT: usize = 256;
/// Requests that a door decides in turn.
const REQUESTS: usize = 256;

/// A warm instance and the requests it decides.
pub struct Door {
    /// Its name in results.
    pub name: &'static str,
    instance: Instance,
    snapshot: Arc<Snapshot>,
    heads: Vec<Option<RequestHead>>,
    next: usize,
    // Stops the epoch ticker when dropped.
    _plugins: Arc<Plugins>,
    _data: tempfile::TempDir,
}

/// The doors: what a guest is given, and what it answers.
///
/// | door | guest | it is given | it answers |
/// |---|---|---|---|
/// | `by-slots` | built-in by-header | nothing: it looks up by slots | an entry of the bucket |
/// | `by-value` | the least one | a field by value | an entry of the bucket |
/// | `by-value-and-slots` | built-in self-register, granted to write | the path by value, and slots | an entry of the bucket |
/// | `address` | built-in path-prefix | the path by value | an address as text |
/// | `upstream` | built-in canary | two fields by value | a named upstream |
/// | `pass` | built-in path-prefix | the path by value | pass: no prefix fits |
/// | `reply` | built-in maintenance | a field by value | a reply with headers and a body |
pub const NAMES: [&str; 7] = [
    "by-slots",
    "by-value",
    "by-value-and-slots",
    "address",
    "upstream",
    "pass",
    "reply",
];

/// Settings of a guest.
type Settings = &'static [(&'static str, &'static str)];

/// The guest of a door, and its settings.
fn guest(door: &str) -> Result<(Vec<u8>, Settings)> {
    let (name, settings): (_, Settings) = match door {
        "by-slots" => ("by-header", &[]),
        "by-value" => return Ok((wat::parse_str(include_str!("by_value.wat"))?, &[])),
        "by-value-and-slots" => ("self-register", &[("secret", "0123456789abcdef")]),
        "address" => ("path-prefix", &[("prefix./ws", "10.0.0.7:8080")]),
        "upstream" => (
            "canary",
            &[("weights", "stable=95,next=5"), ("key", "x-id")],
        ),
        "pass" => ("path-prefix", &[("prefix./api", "api")]),
        _ => ("maintenance", &[]),
    };
    let component = builtin::component(name).context("it is built in")?;
    Ok((component.to_vec(), settings))
}

impl Door {
    /// Compiles the guest of a door and warms an instance.
    ///
    /// # Errors
    /// An unknown name, or a guest that is refused.
    pub fn open(name: &str) -> Result<Self> {
        Self::with_keys(name, KEYS, HOT)
    }

    /// The same, on a map of so many keys, of which requests ask for so many.
    ///
    /// # Errors
    /// As [`Door::open`].
    pub fn with_keys(name: &str, keys: usize, hot: usize) -> Result<Self> {
        let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
            bail!("no door {name:?}, expected one of {NAMES:?}");
        };
        let (component, settings) = guest(name)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        runtime.block_on(Self::warm(name, component, settings, keys, hot))
    }

    async fn warm(
        name: &'static str,
        component: Vec<u8>,
        settings: Settings,
        keys: usize,
        hot: usize,
    ) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let bucket = BucketConfig::new("upstreams", BackendKind::Memory, ValueKind::Endpoint);
        let store = Store::open(&[bucket], data.path())?;
        let bucket = store
            .snapshot()
            .bucket_id("upstreams")
            .context("opened above")?;
        let writes = (0..keys).map(|i| {
            let [_, a, b, c] = (i as u32).to_be_bytes();
            let value = format!("10.{a}.{b}.{c}");
            Write::put(bucket, key(i), value.into_bytes())
        });
        let batch = WriteBatch {
            writes: writes.collect(),
            ..Default::default()
        };
        store.commit(batch).await?;
        let plugins = crate::plugins(data.path(), &store)?;
        let config = PluginConfig {
            name: "bench".into(),
            source: Source::Pushed,
            grants: BTreeMap::from([("upstreams".into(), Access::Write)]),
            settings: settings
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            sessions: Default::default(),
            limits: PluginLimits {
                calls_max: u64::MAX,
                ..Default::default()
            },
            versions: Default::default(),
        };
        plugins.apply(&[config]).await.map_err(|(_, error)| error)?;
        plugins
            .deploy("bench", component.into(), "bench", false)
            .await?;
        let slot = plugins.slot("bench").context("applied above")?;
        let generation = slot.active().clone().context("deployed above")?;
        let mut door = Self {
            name,
            instance: Instance::new(&generation)?,
            snapshot: store.snapshot(),
            heads: (0..REQUESTS)
                .map(|i| Some(head(&key(i % hot * keys / hot))))
                .collect(),
            next: 0,
            _plugins: plugins,
            _data: data,
        };
        match (name, door.decide()) {
            ("pass", Some(Decision::Pass))
            | ("reply", Some(Decision::Reply(_)))
            | (_, Some(Decision::Forward(_))) => Ok(door),
            (_, other) => bail!("{name} decided {other:?}"),
        }
    }

    /// Decides one request: what a worker does between parsing and forwarding.
    #[inline(never)]
    pub fn decide(&mut self) -> Option<Decision> {
        self.next = (self.next + 1) % REQUESTS;
        let head = &mut self.heads[self.next];
        Some(self.instance.route(head, &self.snapshot).ok()?.decision)
    }

    /// Decides a request of the caller's.
    pub fn route(&mut self, head: RequestHead) -> Option<Decision> {
        let routed = self.instance.route(&mut Some(head), &self.snapshot);
        Some(routed.ok()?.decision)
    }
}

/// The message of a hot request, as a client sends it.
pub fn message() -> Vec<u8> {
    let head = head(&key(0));
    let mut message = format!(
        "{} {} HTTP/1.1\r\nhost: {}\r\n",
        head.method, head.uri, head.authority
    )
    .into_bytes();
    for (name, value) in &head.headers {
        message.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    message.extend(b"\r\n");
    message
}

fn key(i: usize) -> String {
    format!(
        "sess-{i:08x}-{:08x}",
        i.wrapping_mul(2_654_435_761) & 0xffff_ffff
    )
}

/// A browser's request, about 600 bytes, with the fields that route it.
fn head(id: &str) -> RequestHead {
    let fields = [
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
        ),
        (
            "accept",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        ),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-GB,en;q=0.9,de;q=0.7"),
        ("cache-control", "no-cache"),
        ("origin", "https://play.example.com"),
        (
            "cookie",
            "sid=8f2c1d7a9b3e4f60; theme=dark; _ga=GA1.2.1203949.",
        ),
        ("x-request-id", "01J9Z6H3B2M4N5P6Q7R8S9T0VW"),
        ("x-port", "8080"),
    ];
    let mut headers = HeaderMap::with_capacity(16);
    for (name, value) in fields {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(
        "x-id",
        HeaderValue::from_str(id).expect("a key is hex digits"),
    );
    RequestHead {
        method: Method::GET,
        uri: http::Uri::from_static("/ws/room?v=3"),
        authority: http::uri::Authority::from_static("play.example.com"),
        headers,
        client: std::net::Ipv4Addr::LOCALHOST.into(),
        scheme: "http",
        websocket: false,
    }
}
