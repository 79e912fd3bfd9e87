//! A TCP relay on the loopback, to cut what goes through it.

use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Relays to one address, unless it is cut.
pub struct Relay {
    address: String,
    cut: watch::Sender<bool>,
    /// How many connections there are.
    connections: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts one to `host:port`.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let cut = watch::Sender::new(false);
        let connections = watch::Sender::new(0);
        let task = tokio::spawn(accept(
            listener,
            target.into(),
            cut.subscribe(),
            connections.clone(),
        ));
        Self {
            address,
            cut,
            connections,
            task,
        }
    }

    /// Where it is, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Closes all connections, and new ones at once. Returns when nothing can come through any more.
    pub async fn cut(&self) {
        self.cut.send_replace(true);
        let mut connections = self.connections.subscribe();
        let closed = connections.wait_for(|count| *count == 0);
        super::soon("the relay is cut", closed)
            .await
            .expect("its sender is here");
    }

    /// Lets new connections through again.
    pub fn restore(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: Arc<str>,
    cut: watch::Receiver<bool>,
    counted: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (target, cut, counted) = (Arc::clone(&target), cut.clone(), counted.clone());
        counted.send_modify(|count| *count += 1);
        connections.spawn(async move {
            relay(client, &target, cut).await;
            counted.send_modify(|count| *count -= 1);
        });
    }
}

async fn relay(mut client: TcpStream, target: &str, mut cut: watch::Receiver<bool>) {
    if *cut.borrow_and_update() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        // Whatever it is now: this connection is over.
        _ = cut.changed() => {}
    }
}
