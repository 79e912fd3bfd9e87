//! The admin listener: binds, accepts under a limit, serves HTTP/1.1 with deadlines, stops gracefully.

use super::operation::Operations;
use super::{Address, Auth, Config};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// First byte, head, and pause between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// While a client takes nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// A request head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long running requests may take after the stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long is read what a client sends after the last answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same once the process ends.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept: out of file descriptors, most often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bound address. Dropping it removes the file of a Unix socket.
#[derive(Debug)]
pub struct Bound {
    address: Address,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a socket we bound, removed with us unless another process has put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // Nothing is lost if it stays: the next start finds that nothing answers on it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Bound {
    /// Where it listens: with the port the system chose, if the config said 0.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// Binds the address of the admin API.
///
/// # Errors
/// Each names the address: it is in use, not ours, or open to others without a token.
pub fn bind(config: &Config) -> io::Result<Bound> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("admin {}: {error}", config.listen))
    };
    match &config.listen {
        Address::Tcp(address) => {
            if config.auth == Auth::None && !address.ip().is_loopback() {
                return Err(named(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "auth = \"none\" is allowed on loopback and Unix sockets only",
                )));
            }
            bind_tcp(*address).map_err(named)
        }
        Address::Unix(path) => bind_unix(path).map_err(named),
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Bound {
        address: Address::Tcp(listener.local_addr()?),
        socket: Socket::Tcp(listener),
    })
}

fn bind_unix(path: &Path) -> io::Result<Bound> {
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: std::fs::symlink_metadata(path)?.ino(),
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(Bound {
        address: Address::Unix(path.to_owned()),
        socket: Socket::Unix(listener, file),
    })
}

/// Removes what a killed process left: a socket on which nothing answers, and never anything else.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is not a socket is there",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "in use by another process",
        )),
    }
}

/// Serves until `stop`, then lets running requests end for a few seconds.
///
/// # Errors
/// If the listener cannot be given to the runtime. Dropping the future cuts every connection.
pub(super) async fn run(
    router: Router,
    bound: Bound,
    stop: impl Future<Output = ()>,
    operations: &Operations,
) -> io::Result<()> {
    match bound.socket {
        Socket::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            accept(router, stop, operations, || async {
                let (stream, _) = listener.accept().await?;
                // Answers are written whole; waiting to fill a segment would only delay them.
                stream.set_nodelay(true)?;
                Ok(stream)
            })
            .await;
        }
        Socket::Unix(listener, _file) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            accept(router, stop, operations, || async {
                listener.accept().await.map(|(stream, _)| stream)
            })
            .await;
        }
    }
    Ok(())
}

async fn accept<S, F>(
    router: Router,
    stop: impl Future<Output = ()>,
    operations: &Operations,
    next: impl Fn() -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            next().await.map(|stream| (stream, slot))
        };
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = accepted => match accepted {
                Ok((stream, slot)) => {
                    let (router, stopped) = (router.clone(), stopped.clone());
                    connections.spawn(async move {
                        serve_connection(stream, router, stopped).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin: accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    stopping.send_replace(true);
    operations.stop();
    let ended = async {
        while connections.join_next().await.is_some() {}
        // Of some the client is gone.
        operations.ended().await;
    };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        tracing::warn!("admin: requests were cut at the end of the stop");
    }
}

async fn serve_connection<S>(stream: S, router: Router, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(
            TokioIo::new(WriteDeadline::new(stream)),
            TowerToHyperService::new(router),
        );
    let (result, was_busy) = tokio::select! {
        result = &mut connection => (result, false),
        () = until(&mut stopped) => {
            Pin::new(&mut connection).graceful_shutdown();
            // One that waits for another request ends at once.
            tokio::select! {
                biased;
                result = &mut connection => (result, false),
                () = std::future::ready(()) => ((&mut connection).await, true),
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "admin: connection ended");
    }
    let stream = connection.into_parts().io.into_inner().stream;
    let stopped = async {
        until(&mut stopped).await;
        if was_busy {
            // Its client may not have read the answer, which the end of the process has made a short one.
            tokio::time::sleep(LAST_ANSWER_TIMEOUT).await;
        }
    };
    tokio::select! {
        () = linger(stream) => {}
        () = stopped => {}
    }
}

async fn until(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: stop too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Reads on, for a client that is still sending what was refused by its head: a socket that is closed on what was not read
/// resets the connection, and the client would lose the answer.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut nothing = tokio::io::sink();
    let read_on = async {
        // Either fails if the client is gone.
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(&mut stream, &mut nothing).await;
    };
    let _ = tokio::time::timeout(LINGER_TIMEOUT, read_on).await;
}

/// A stream that fails when its peer takes nothing for [`WRITE_TIMEOUT`].
struct WriteDeadline<S> {
    stream: S,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteDeadline<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            blocked: None,
        }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.blocked = None;
            return poll;
        }
        let deadline = self.blocked.get_or_insert_with(|| {
            Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_TIMEOUT))
        });
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Losses;
    use std::os::unix::fs::MetadataExt;
    use tokio::io::AsyncReadExt;

    fn unix(path: &Path) -> Config {
        Config {
            listen: Address::Unix(path.to_owned()),
            ..Config::default()
        }
    }

    #[test]
    fn an_address_in_use_is_named() {
        let first = bind(&Config {
            listen: Address::Tcp(([127, 0, 0, 1], 0).into()),
            ..Config::default()
        })
        .unwrap();
        let error = bind(&Config {
            listen: first.address().clone(),
            ..Config::default()
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let Address::Tcp(address) = first.address() else {
            panic!("bound TCP");
        };
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn no_auth_is_refused_beyond_loopback() {
        let error = bind(&Config {
            listen: Address::Tcp(([0, 0, 0, 0], 0).into()),
            auth: Auth::None,
            ..Config::default()
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_unix_socket_is_0660_and_gone_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = bind(&unix(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_but_not_a_live_one_nor_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let live = bind(&unix(&path)).unwrap();
        let error = bind(&unix(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&*path.to_string_lossy()));
        drop(live);
        std::fs::write(&path, "mine").unwrap();
        assert!(bind(&unix(&path)).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn requests_are_served_until_the_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = bind(&unix(&path)).unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            run(router, bound, stopped, &Operations::new(Losses::default())).await
        });
        let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut first = [0; 15];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        stop.send(()).unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert!(rest.ends_with("here"));
        server.await.unwrap().unwrap();
        assert!(!path.exists());
    }
}
