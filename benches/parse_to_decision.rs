//! How long is it from a request's bytes to its decision?
//!
//! `framing` is the check of raw bytes alone; `parse` is that, the parser (a whole server connection of it, that answers
//! with an empty 200) and the admission; `decide` is all of it with the decision of the built-in by-header plugin.

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http_body_util::Empty;
use hyper::rt::ReadBufCursor;
use hyper::service::service_fn;
use std::cell::RefCell;
use std::convert::Infallible;
use std::hint::black_box;
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use throwbar_benches::doors::{self, Door};
use throwbar_host::listener::framing::{Framing, HeadLimits};
use throwbar_host::proxy::request;

const LIMITS: HeadLimits = HeadLimits {
    bytes_max: 64 << 10,
    fields_max: 100,
    target_bytes_max: 8 << 10,
};

/// A client that sends the same request so many times, each after the response to the one before.
struct Client {
    message: Bytes,
    left: u64,
    framing: Framing,
}

impl hyper::rt::Read for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left > 0 {
            self.left -= 1;
            let message = self.message.clone();
            self.framing.feed(&message).expect("well framed");
            buffer.put_slice(&message);
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(black_box(bytes).len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Time of so many requests on one connection.
fn serve(requests: u64, door: Option<&RefCell<Door>>) -> Duration {
    let client = Client {
        message: doors::message().into(),
        left: requests,
        framing: Framing::new(LIMITS),
    };
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let (parts, _) = request.into_parts();
        let client = Ipv4Addr::LOCALHOST.into();
        let admitted = request::admit(parts, client, LIMITS.target_bytes_max);
        let head = admitted.unwrap_or_else(|_| panic!("admitted")).head;
        if let Some(door) = door {
            black_box(door.borrow_mut().route(head).expect("a decision"));
        }
        std::future::ready(Ok::<_, Infallible>(http::Response::new(
            Empty::<Bytes>::new(),
        )))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .auto_date_header(false)
        .header_read_timeout(None)
        .serve_connection(client, service);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let began = Instant::now();
    // Ends when the client does.
    let _ = runtime.block_on(connection);
    began.elapsed()
}

fn parse_to_decision(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse_to_decision");
    let message = doors::message();
    let mut framing = Framing::new(LIMITS);
    group.bench_function("framing", |bencher| {
        bencher.iter(|| framing.feed(black_box(&message)).is_ok())
    });
    group.bench_function("parse", |bencher| {
        bencher.iter_custom(|requests| serve(requests, None))
    });
    let door = RefCell::new(Door::open("by-slots").expect("a door"));
    group.bench_function("decide", |bencher| {
        bencher.iter_custom(|requests| serve(requests, Some(&door)))
    });
    group.finish();
}

criterion_group!(benches, parse_to_decision);
criterion_main!(benches);
