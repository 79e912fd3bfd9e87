//! Connections to endpoints: dialling, and the idle ones each worker keeps.

use super::address::{Address, Place};
use super::socket::Socket;
use super::tls::Tls;
use crate::deadline::{Deadlines, Ticks, Watched};
use crate::metrics::WorkerCounters;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A connection to an endpoint, between two exchanges or in one.
pub struct Connection {
    // Declared before the socket, so that it is dropped before it.
    pub(super) watched: Watched,
    pub(super) socket: Socket,
    place: Place,
    /// Whether it has served an exchange before.
    pub reused: bool,
    idle_since: u32,
}

impl Connection {
    /// Whether the peer ended it or sent something unasked: then it is of no use.
    fn is_stale(&mut self) -> bool {
        self.socket.has_ended_or_said_something()
    }

    /// Where it goes.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the socket was shut down for being late.
    pub fn expired(&self) -> bool {
        self.watched.expired()
    }

    /// The raw socket, for a stream.
    ///
    /// # Errors
    /// If it cannot be taken out of the runtime.
    pub fn into_raw(self) -> io::Result<socket2::Socket> {
        let Self {
            watched, socket, ..
        } = self;
        drop(watched);
        socket.into_raw()
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
    idle: RefCell<HashMap<Place, Vec<Connection>, ahash::RandomState>>,
    deadlines: Arc<Deadlines>,
}

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not within the connect timeout.
    #[error("endpoint {0}: connect timed out after {1:?}")]
    Timeout(Address, Duration),
    /// Refused, unreachable, out of descriptors.
    #[error("endpoint {0}: connect")]
    Io(Address, #[source] io::Error),
    /// There is no TLS with who has to be there.
    #[error("endpoint {0}: TLS with {1:?}")]
    Tls(Address, Arc<str>, #[source] io::Error),
    /// The table of deadlines is full.
    #[error("endpoint {0}: too many sockets on this worker")]
    TooMany(Address),
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
    pub fn take(&self, place: &Place, counters: &WorkerCounters) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(place)?;
        while let Some(mut connection) = connections.pop() {
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
        let connections = match idle.get_mut(&connection.place) {
            Some(connections) => connections,
            None => idle.entry(connection.place.clone()).or_default(),
        };
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
        place: Place,
        tls: &Tls,
        timeout: Duration,
        counters: &WorkerCounters,
    ) -> Result<Connection, DialError> {
        counters.upstream_dials.fetch_add(1, Relaxed);
        let failed = |error| {
            counters.upstream_dial_errors.fetch_add(1, Relaxed);
            error
        };
        let address = &place.address;
        let connecting = async {
            let socket = Socket::connect(address).await;
            let socket = socket.map_err(|error| DialError::Io(address.clone(), error))?;
            match &place.server_name {
                None => Ok(socket),
                Some(name) => socket
                    .secure(tls, name)
                    .await
                    .map_err(|error| DialError::Tls(address.clone(), Arc::clone(name), error)),
            }
        };
        let socket = tokio::time::timeout(timeout, connecting)
            .await
            .map_err(|_| failed(DialError::Timeout(address.clone(), timeout)))?
            .map_err(failed)?;
        let watched = self
            .deadlines
            .watch(&socket)
            .ok_or_else(|| failed(DialError::TooMany(address.clone())))?;
        Ok(Connection {
            watched,
            socket,
            place,
            reused: false,
            idle_since: 0,
        })
    }

    /// Drops connections that were idle too long or that the peer has ended.
    pub fn sweep(&self, limits: PoolLimits, counters: &WorkerCounters) {
        let now = self.deadlines.now();
        self.idle.borrow_mut().retain(|_, connections| {
            let before = connections.len();
            connections.retain_mut(|c| {
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
