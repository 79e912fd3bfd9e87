//! HTTP/1 and HTTP/2 bytes into requests; obeys drain.
//!
//! Everything that knows the HTTP library's server is in this file: a connection goes in, [`Proxy::handle`] is called with
//! each request, and what it returns goes out.

use super::ClientConnection;
use super::socket::DownstreamSocket;
use crate::drain::Drain;
use crate::proxy::Proxy;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

/// What the library buffers of a connection, each way, in bytes: more cost 1.2 MiB for each client that stops reading.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Streams that were reset and not yet taken (CVE-2023-44487), and those that we reset for errors (CVE-2025-8671), before
/// an HTTP/2 connection is ended.
const PENDING_RESETS_MAX: usize = 20;
const LOCAL_RESETS_MAX: usize = 100;
/// Flow-control windows of HTTP/2: what a client may send before it is read.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// A response without a `Date` gets one, ours and an endpoint's alike (RFC 9110, 6.6.1).
const DATE: bool = true;
/// How long an HTTP/2 client may leave a ping unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves a connection until it ends. When a drain begins, what is in flight is finished and nothing new is taken.
pub async fn serve(
    proxy: Rc<Proxy>,
    connection: Rc<ClientConnection>,
    socket: DownstreamSocket,
    drain: &Drain,
) {
    let limits = proxy.view().site.limits.clone();
    let http2 = connection.http2;
    let state = connection.state.clone();
    let counters = proxy.counters.clone();
    let worker = proxy.worker;
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (proxy, connection) = (proxy.clone(), connection.clone());
        // Called in there, so that what is moved about until the first poll is small.
        async move { Ok::<_, Infallible>(proxy.handle(connection, request).await) }
    });
    if http2 {
        let mut builder = http2::Builder::new(Local);
        builder
            .timer(TokioTimer::new())
            .auto_date_header(DATE)
            .max_concurrent_streams(limits.h2_streams_max)
            .max_header_list_size(limits.head_bytes_max as u32)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(LOCAL_RESETS_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(BUFFER_BYTES_MAX)
            .keep_alive_interval(limits.idle_timeout)
            .keep_alive_timeout(PING_TIMEOUT);
        let connection = pin!(builder.serve_connection(socket, service));
        obey(connection, drain, http2::Connection::graceful_shutdown).await;
    } else {
        let mut builder = http1::Builder::new();
        builder
            .auto_date_header(DATE)
            .half_close(false)
            .header_read_timeout(None)
            .max_buf_size(limits.head_bytes_max.max(BUFFER_BYTES_MAX))
            .max_headers(limits.headers_max);
        let connection = pin!(builder.serve_connection(socket, service).with_upgrades());
        obey(
            connection,
            drain,
            http1::UpgradeableConnection::graceful_shutdown,
        )
        .await;
    }
    if state.expired() {
        counters.workers[worker]
            .connections_timed_out
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Runs a connection; asks it to end when the drain begins.
async fn obey<C, E>(mut connection: Pin<&mut C>, drain: &Drain, shutdown: fn(Pin<&mut C>))
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut begun = pin!(drain.begun());
    let (mut waiting, mut ending) = (false, false);
    let ended = poll_fn(|cx: &mut Context<'_>| {
        // Polled once: the waker it keeps is this task's, and stays good.
        if !ending
            && (drain.has_begun() || !std::mem::replace(&mut waiting, true))
            && begun.as_mut().poll(cx).is_ready()
        {
            ending = true;
            shutdown(connection.as_mut());
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Runs the tasks of an HTTP/2 connection on this thread.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
