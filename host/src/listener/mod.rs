//! Bind; accept under a limit, with back-off; one task per connection.

use crate::drain::Drain;
use crate::metrics::WorkerCounters;
use crate::proxy::Proxy;
use crate::proxy::access_log::Prepared;
use crate::upstream::scratch;
use bytes::Bytes;
use framing::Framing;
use socket::{ConnectionState, DownstreamSocket};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

pub mod framing;
pub mod http;
pub mod socket;

/// Where clients reach us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its name in routes, logs and metrics.
    pub name: String,
    /// The address; port 0 lets the system choose.
    pub address: SocketAddr,
    /// HTTP/1.1 is spoken.
    pub http1: bool,
    /// HTTP/2 with prior knowledge is spoken.
    pub h2c: bool,
}

/// Connections that the kernel completes while no worker accepts.
const BACKLOG: i32 = 4096;
/// After an accept that failed: out of descriptors, most likely.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Binds a socket of one worker; all workers bind the same address.
///
/// # Errors
/// If the address is in use or not ours to bind.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket_for(address)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn socket_for(address: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    // Connections of a process that has just ended do not count as use.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Whether the address is free: with SO_REUSEPORT another process of ours could share it, and would get half of the
/// requests.
///
/// # Errors
/// If it is in use or not ours to bind.
pub fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = socket_for(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// A client's connection, as its requests see it.
pub struct ClientConnection {
    /// What requests and socket share.
    pub state: Arc<ConnectionState>,
    /// The client.
    pub client: SocketAddr,
    /// The listener and the client, as lines of the log have them.
    pub log: Prepared,
    /// Its address without the port, for `X-Forwarded-For`.
    pub client_ip_text: Box<str>,
    /// Whether it speaks HTTP/2.
    pub http2: bool,
}

/// One worker's open connections, counted.
#[derive(Default)]
pub struct Admission {
    open: Cell<usize>,
    by_client: RefCell<HashMap<IpAddr, usize, ahash::RandomState>>,
}

/// A place among the open connections, until it is dropped.
struct Place {
    admission: Rc<Admission>,
    client: Option<IpAddr>,
}

impl Admission {
    /// A place, unless a limit is reached.
    fn enter(self: &Rc<Self>, client: IpAddr, limits: &crate::proxy::Limits) -> Option<Place> {
        if self.open.get() >= limits.connections_max {
            return None;
        }
        let per_client = limits.connections_per_client_max < limits.connections_max;
        if per_client {
            let mut by_client = self.by_client.borrow_mut();
            let count = by_client.entry(client).or_default();
            if *count >= limits.connections_per_client_max {
                return None;
            }
            *count += 1;
        }
        self.open.set(self.open.get() + 1);
        Some(Place {
            admission: self.clone(),
            client: per_client.then_some(client),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.open.set(self.admission.open.get() - 1);
        let Some(client) = self.client else { return };
        let mut by_client = self.admission.by_client.borrow_mut();
        if let Some(count) = by_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                by_client.remove(&client);
            }
        }
    }
}

/// Accepts until the listener is to be closed or the worker drains.
pub async fn accept(
    proxy: Rc<Proxy>,
    config: Rc<Config>,
    listener: std::net::TcpListener,
    admission: Rc<Admission>,
    closing: Rc<Drain>,
    drain: Rc<Drain>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, listener = config.name, "listener lost"),
    };
    let name: Arc<str> = config.name.as_str().into();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.begun() => return,
            () = closing.begun() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, listener = config.name, "accept failed");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
                continue;
            }
        };
        let counters = proxy.counters();
        let view = proxy.view();
        let Some(place) = admission.enter(client.ip(), &view.site.limits) else {
            counters.connections_refused.fetch_add(1, Relaxed);
            continue;
        };
        counters.connections_accepted.fetch_add(1, Relaxed);
        tokio::task::spawn_local(connection(
            proxy.clone(),
            config.clone(),
            name.clone(),
            tcp,
            client,
            place,
            drain.clone(),
        ));
    }
}

/// A connection's life: its protocol found out, its requests served.
async fn connection(
    proxy: Rc<Proxy>,
    config: Rc<Config>,
    listener: Arc<str>,
    tcp: TcpStream,
    client: SocketAddr,
    _place: Place,
    drain: Rc<Drain>,
) {
    let _open = Open::count(&proxy);
    let Some(watched) = tcp
        .set_nodelay(true)
        .ok()
        .and_then(|()| proxy.deadlines.watch(&tcp))
    else {
        return;
    };
    let view = proxy.view();
    let state = ConnectionState::new(
        watched,
        view.site.ticks.downstream,
        proxy.counters.clone(),
        proxy.worker,
    );
    let Some((http2, read_ahead)) = protocol(&config, &tcp, &state).await else {
        if state.expired() {
            proxy.counters().connections_timed_out.fetch_add(1, Relaxed);
        }
        return;
    };
    let framing = (!http2).then(|| Framing::new(view.site.limits.head()));
    let socket = DownstreamSocket::new(tcp, state.clone(), read_ahead, framing);
    let client_ip = client.ip().to_canonical();
    let client = SocketAddr::new(client_ip, client.port());
    let connection = Rc::new(ClientConnection {
        state,
        client,
        log: Prepared::new(|line| {
            line.text("listener", &listener);
            line.address("client", client);
        }),
        client_ip_text: client_ip.to_string().into(),
        http2,
    });
    drop(view);
    http::serve(proxy.clone(), connection, socket, &drain).await;
}

/// What HTTP/2 with prior knowledge begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether the client speaks HTTP/2, with what was read to know it. None if it went away or may not speak so. The
/// deadline on the first byte stands meanwhile.
async fn protocol(
    config: &Config,
    tcp: &TcpStream,
    state: &ConnectionState,
) -> Option<(bool, Bytes)> {
    if !config.h2c {
        return Some((false, Bytes::new()));
    }
    let mut read_ahead = Vec::new();
    let mut begun = false;
    loop {
        tcp.readable().await.ok()?;
        let read = scratch::with(|scratch| {
            tcp.try_read(scratch)
                .inspect(|&count| read_ahead.extend_from_slice(&scratch[..count]))
        });
        match read {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        }
        let common = PREFACE.len().min(read_ahead.len());
        if read_ahead[..common] != PREFACE[..common] {
            return config.http1.then(|| (false, read_ahead.into()));
        }
        if common == PREFACE.len() {
            return Some((true, read_ahead.into()));
        }
        if !std::mem::replace(&mut begun, true) {
            state.begins_head();
        }
    }
}

/// Counts a connection as open until it is dropped.
struct Open<'a>(&'a WorkerCounters);

impl<'a> Open<'a> {
    fn count(proxy: &'a Proxy) -> Self {
        proxy.counters().connections_open.fetch_add(1, Relaxed);
        Self(proxy.counters())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Relaxed);
    }
}
