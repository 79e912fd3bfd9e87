//! Two echo upstreams on loopback, on a thread of their own.

use anyhow::Context;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use tokio::sync::oneshot;

/// Their names: each answers with its own.
pub(super) const NAMES: [&str; 2] = ["upstream-a", "upstream-b"];
/// Attempts to find a port that is free on both addresses.
const ATTEMPTS: usize = 50;

/// The upstreams; they end when this is dropped.
pub(super) struct Upstreams {
    /// Where they listen.
    pub(super) addresses: [SocketAddr; 2],
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstreams {
    /// Binds and starts both.
    ///
    /// # Errors
    /// If no port can be bound on loopback.
    pub(super) fn start() -> anyhow::Result<Self> {
        let listeners = bind().context("bind the demonstration's upstreams on loopback")?;
        let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 2];
        for (address, listener) in addresses.iter_mut().zip(&listeners) {
            listener.set_nonblocking(true)?;
            *address = listener.local_addr()?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("demo-upstreams".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        result = serve(listeners) => {
                            if let Err(error) = result {
                                tracing::error!(%error, "demonstration upstreams ended");
                            }
                        }
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            addresses,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was shown when it happened.
            let _ = thread.join();
        }
    }
}

async fn serve(listeners: [TcpListener; 2]) -> io::Result<()> {
    let [a, b] = listeners;
    let a = tokio::net::TcpListener::from_std(a)?;
    let b = tokio::net::TcpListener::from_std(b)?;
    tokio::select! {
        never = crate::echo::serve(a, NAMES[0].to_owned()) => never.map(|never| match never {}),
        never = crate::echo::serve(b, NAMES[1].to_owned()) => never.map(|never| match never {}),
    }
}

/// Two listeners: the same port on 127.0.0.2 and 127.0.0.3, so that only the map tells them apart. Systems that have
/// no such addresses give two ports of 127.0.0.1.
fn bind() -> io::Result<[TcpListener; 2]> {
    let on =
        |last: u8, port: u16| TcpListener::bind((IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), port));
    for _ in 0..ATTEMPTS {
        let Ok(a) = on(2, 0) else { break };
        if let Ok(b) = on(3, a.local_addr()?.port()) {
            return Ok([a, b]);
        }
    }
    Ok([on(1, 0)?, on(1, 0)?])
}
