//! A TCP proxy on the loopback, to cut what goes through it.

use std::sync::{Arc, Mutex};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stay, and nothing comes through.
    Silent,
}

/// Relays to one address until it is told otherwise.
pub(super) struct Relay {
    address: String,
    target: Arc<Mutex<String>>,
    mode: watch::Sender<Mode>,
    /// How many connections there are.
    connections: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(super) async fn start(target: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let target = Arc::new(Mutex::new(target));
        let (mode, seen) = watch::channel(Mode::Open);
        let connections = watch::Sender::new(0);
        let counted = connections.clone();
        let task = tokio::spawn(accept(listener, Arc::clone(&target), seen, counted));
        Self {
            address,
            target,
            mode,
            connections,
            task,
        }
    }

    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// New connections go there.
    pub(super) fn turn_to(&self, target: String) {
        *self.target.lock().expect("nobody panicked with it") = target;
    }

    pub(super) fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// The same; returns when nothing can come through any more.
    pub(super) async fn cut_whole(&self) {
        self.cut();
        let mut connections = self.connections.subscribe();
        // Its sender is here.
        let _ = connections.wait_for(|count| *count == 0).await;
    }

    pub(super) fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    /// Connections that were there before are closed.
    pub(super) fn restore(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: Arc<Mutex<String>>,
    mode: watch::Receiver<Mode>,
    counted: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let target = target.lock().expect("nobody panicked with it").clone();
        let (mode, counted) = (mode.clone(), counted.clone());
        counted.send_modify(|count| *count += 1);
        connections.spawn(async move {
            relay(client, target, mode).await;
            counted.send_modify(|count| *count -= 1);
        });
    }
}

async fn relay(mut client: TcpStream, target: String, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow_and_update() == Mode::Open {
        let Ok(mut server) = TcpStream::connect(target).await else {
            return;
        };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = mode.changed() => {}
        }
        // Both stay open for as long as it is silent.
        let _ = mode.wait_for(|mode| *mode != Mode::Silent).await;
    } else {
        let _ = mode.wait_for(|mode| *mode != Mode::Silent).await;
    }
}
