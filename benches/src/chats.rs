//! Sessions of the built-in chat-filter, which denies nothing here: what a plugin that does next to nothing costs.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Method};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use throwbar_host::metrics::{Counters, WorkerCounters};
use throwbar_host::plugin::deploy::Plugins;
use throwbar_host::plugin::{
    Generation, Opened, PluginConfig, PluginLimits, RequestHead, Session, Sessions, Source,
};
use throwbar_host::store::Store;
use throwbar_host::stream::{Config, Hook, NewStream, Streams};

/// A worker's sessions.
pub struct Chats {
    generation: Arc<Generation>,
    sessions: Rc<Sessions>,
    _plugins: Arc<Plugins>,
    _data: tempfile::TempDir,
}

impl Chats {
    /// Compiles the plugin.
    ///
    /// # Errors
    /// If it is refused.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        runtime.block_on(async {
            let data = tempfile::tempdir()?;
            let store = Store::open(&[], data.path())?;
            let plugins = crate::plugins(data.path(), &store)?;
            let config = PluginConfig {
                name: "chat".into(),
                source: Source::Builtin("chat-filter".into()),
                grants: BTreeMap::new(),
                settings: BTreeMap::from([("upstream".into(), "chat".into())]),
                sessions: Default::default(),
                versions: Default::default(),
                limits: PluginLimits {
                    // A busy machine may take its time.
                    deadline: Duration::from_secs(1),
                    ..Default::default()
                },
            };
            plugins.apply(&[config]).await.map_err(|(_, error)| error)?;
            let slot = plugins.slot("chat").context("applied above")?;
            let generation = slot.active().clone().context("it is built in")?;
            Ok(Self {
                generation,
                sessions: Sessions::new(0, store.reader()),
                _plugins: plugins,
                _data: data,
            })
        })
    }

    /// Opens a session.
    ///
    /// # Errors
    /// If it is refused.
    pub fn open(&self) -> Result<Session> {
        let head = RequestHead {
            method: Method::GET,
            uri: http::Uri::from_static("/room"),
            authority: http::uri::Authority::from_static("chat.example.com"),
            headers: HeaderMap::new(),
            client: std::net::Ipv4Addr::LOCALHOST.into(),
            scheme: "http",
            websocket: true,
        };
        match self.sessions.open(&self.generation, &mut Some(head))? {
            Opened::Taken { session, .. } => Ok(session),
            Opened::Refused { .. } => bail!("the session refused its stream"),
        }
    }
}

/// A worker's streams between sockets of this process.
pub struct Relayed {
    /// The streams; to be run.
    pub streams: Rc<Streams>,
    listener: TcpListener,
    address: SocketAddr,
}

/// The ends of a stream beyond the proxy.
pub struct Ends {
    /// The client's.
    pub client: TcpStream,
    /// The endpoint's.
    pub endpoint: TcpStream,
}

impl Relayed {
    /// No streams yet. To be called in a tokio runtime.
    ///
    /// # Errors
    /// If the kernel gives no sockets.
    pub fn new(chats: &Chats) -> Result<Self> {
        let counters = Arc::new(Counters {
            workers: [WorkerCounters::default()].into(),
        });
        let streams = Streams::new(0, Config::default(), counters, Box::new(|_| {}))?;
        streams.set_sessions(chats.sessions.clone());
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        Ok(Self {
            streams,
            listener,
            address,
        })
    }

    /// Opens a stream, with or without a session.
    ///
    /// # Errors
    /// If the kernel gives no sockets, or the stream is refused.
    pub fn open(&self, session: Option<Session>) -> Result<Ends> {
        let (client, downstream) = self.connect()?;
        let (endpoint, upstream) = self.connect()?;
        self.streams.open(NewStream {
            downstream: downstream.into(),
            downstream_read_ahead: Bytes::new(),
            upstream: upstream.into(),
            upstream_read_ahead: Bytes::new(),
            route: "chat".into(),
            label: None,
            key: None,
            client: self.address,
            endpoint: self.address.into(),
            times: Default::default(),
            upstream_name: None,
            follow: None,
            hook: session.map(|session| Hook {
                session,
                tick: None,
            }),
            on_close: None,
        })?;
        Ok(Ends { client, endpoint })
    }

    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let far = TcpStream::connect(self.address)?;
        Ok((far, self.listener.accept()?.0))
    }
}
