//! Connections to endpoints: dialling, and the idle ones each worker keeps.

use crate::deadline::{Deadlines, Ticks, Watched};
use crate::metrics::WorkerCounters;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;

/// A connection to an endpoint, between two exchanges or in one.
pub struct Connection {
    // Declared before the socket, so that it is dropped before it.
    pub(super) watched: Watched,
    pub(super) tcp: TcpStream,
    /// The endpoint.
    pub address: SocketAddr,
    /// Whether it has served an exchange before.
    pub reused: bool,
    idle_since: u32,
}

impl Connection {
    /// Whether the peer ended it or sent something unasked: then it is of no use.
    fn is_stale(&self) -> bool {
        // No system call unless the socket became readable; the waker is replaced by the next real read.
        match self
            .tcp
            .poll_read_ready(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Pending => false,
            Poll::Ready(_) => {
                !matches!(self.tcp.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
            }
        }
    }

    /// Whether the socket was shut down for being late.
    pub fn expired(&self) -> bool {
        self.watched.expired()
    }

    /// The raw socket, for a stream.
    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }
}

/// Bounds of the idle connections.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Idle connections to one endpoint.
    pub per_endpoint_max: usize,
    /// How long one is kept.
    pub idle_timeout: Ticks,
}

/// One worker's idle connections.
pub struct Pool {
    idle: RefCell<HashMap<SocketAddr, Vec<Connection>, ahash::RandomState>>,
    deadlines: Arc<Deadlines>,
}

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not within the connect timeout.
    #[error("endpoint {0}: connect timed out after {1:?}")]
    Timeout(SocketAddr, Duration),
    /// Refused, unreachable, out of descriptors.
    #[error("endpoint {0}: connect")]
    Io(SocketAddr, #[source] io::Error),
    /// The table of deadlines is full.
    #[error("endpoint {0}: too many sockets on this worker")]
    TooMany(SocketAddr),
}

impl Pool {
    /// Without connections.
    pub fn new(deadlines: Arc<Deadlines>) -> Rc<Self> {
        Rc::new(Self {
            idle: RefCell::default(),
            deadlines,
        })
    }

    /// The idle connection to this endpoint that was used last, if there is a good one.
    pub fn take(&self, address: SocketAddr, counters: &WorkerCounters) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&address)?;
        while let Some(connection) = connections.pop() {
            decrement(&counters.upstream_idle);
            if !connection.is_stale() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is complete, unless there are enough.
    pub fn put(&self, mut connection: Connection, limits: PoolLimits, counters: &WorkerCounters) {
        connection.watched.read_any_time();
        connection.watched.write_any_time();
        if connection.expired() {
            return;
        }
        connection.reused = true;
        connection.idle_since = self.deadlines.now();
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.address).or_default();
        if connections.len() < limits.per_endpoint_max {
            connections.push(connection);
            counters.upstream_idle.fetch_add(1, Relaxed);
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// See [`DialError`]. Dropping the future gives up.
    pub async fn dial(
        &self,
        address: SocketAddr,
        timeout: Duration,
        counters: &WorkerCounters,
    ) -> Result<Connection, DialError> {
        counters.upstream_dials.fetch_add(1, Relaxed);
        let failed = |error| {
            counters.upstream_dial_errors.fetch_add(1, Relaxed);
            error
        };
        let tcp = tokio::time::timeout(timeout, TcpStream::connect(address))
            .await
            .map_err(|_| failed(DialError::Timeout(address, timeout)))?
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| failed(DialError::Io(address, error)))?;
        let watched = self
            .deadlines
            .watch(&tcp)
            .ok_or_else(|| failed(DialError::TooMany(address)))?;
        Ok(Connection {
            watched,
            tcp,
            address,
            reused: false,
            idle_since: 0,
        })
    }

    /// Drops connections that were idle too long or that the peer has ended.
    pub fn sweep(&self, limits: PoolLimits, counters: &WorkerCounters) {
        let now = self.deadlines.now();
        self.idle.borrow_mut().retain(|_, connections| {
            let before = connections.len();
            connections.retain(|c| {
                now.wrapping_sub(c.idle_since) < limits.idle_timeout.count() && !c.is_stale()
            });
            for _ in connections.len()..before {
                decrement(&counters.upstream_idle);
            }
            if connections.is_empty() {
                return false;
            }
            connections.shrink_to(connections.len() * 2);
            true
        });
    }
}

fn decrement(counter: &std::sync::atomic::AtomicU64) {
    counter.fetch_sub(1, Relaxed);
}
