//! Deadlines: nobody holds a connection by being slow.

use crate::harness::{Answer, Raw, Setup, TestProxy, TestUpstream, soon};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TIMEOUT: Duration = Duration::from_millis(500);

async fn proxy(limits: &str) -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::echoing().await;
    let proxy = Setup::new(format!("[limits]\n{limits}\n{}", upstream.route()))
        .start()
        .await;
    (proxy, upstream)
}

/// Waits for the end of the connection, which must not come much before the timeout.
async fn is_cut(client: &mut Raw, since: Instant) {
    client.rest().await;
    let after = since.elapsed();
    // Deadlines are looked at every 100 ms, from a clock as coarse.
    assert!(
        after + Duration::from_millis(150) >= TIMEOUT,
        "cut after {after:?}"
    );
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut() {
    let (proxy, _upstream) = proxy("first_byte_timeout = \"500ms\"").await;
    let mut client = proxy.raw().await;
    let since = Instant::now();
    is_cut(&mut client, since).await;
    let counted = |count| count >= 1.0;
    proxy
        .admin()
        .metric_is("throwbar_connections_timed_out", counted)
        .await;
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    // Nothing else cuts it before the test gives up.
    let limits = "head_timeout = \"500ms\"\nfirst_byte_timeout = \"60s\"\nidle_timeout = \"60s\"";
    let (proxy, upstream) = proxy(limits).await;
    for beginning in [
        "G",
        "P",
        "PRI * HTTP/2.0\r\n\r\nS",
        "PRI",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\n",
    ] {
        let mut client = proxy.raw().await;
        let since = Instant::now();
        client.send(beginning).await;
        is_cut(&mut client, since).await;
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_head_that_drips_is_cut_all_the_same() {
    let (proxy, _upstream) = proxy("head_timeout = \"500ms\"").await;
    let mut client = proxy.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
    let cut = async {
        let mut byte = [0];
        loop {
            let dripped = client.stream.write_all(b"X: y\r\n").await;
            if dripped.is_err() {
                return;
            }
            let read = client.stream.read(&mut byte);
            if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(Duration::from_millis(50), read).await
            {
                return;
            }
        }
    };
    soon("a dripping client cut", cut).await;
}

#[tokio::test]
async fn an_http2_client_that_never_sends_settings_is_cut() {
    let (proxy, _upstream) = proxy("head_timeout = \"500ms\"\nidle_timeout = \"500ms\"").await;
    let mut client = proxy.raw().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.rest().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let (proxy, _upstream) = proxy("idle_timeout = \"500ms\"").await;
    let mut client = proxy.raw().await;
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.status, 200);
    let since = Instant::now();
    is_cut(&mut client, since).await;
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_and_never_whole_upstream() {
    let (proxy, upstream) = proxy("body_timeout = \"500ms\"").await;
    let mut client = proxy.raw().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    let since = Instant::now();
    is_cut(&mut client, since).await;
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let body = vec![b'x'; 64 << 20];
    let upstream = TestUpstream::answering(move |_| Answer::ok(&body)).await;
    let limits = "[limits]\nwrite_timeout = \"500ms\"\n";
    let proxy = Setup::new(format!("{limits}{}", upstream.route()))
        .start()
        .await;
    let mut client = proxy.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let line = proxy
        .access_line("the request that was cut", |line| line["kind"] == "request")
        .await;
    assert!(
        line["bytes_out"].as_u64().expect("a number") < 64 << 20,
        "{line}"
    );
}

#[tokio::test]
async fn a_response_body_that_stalls_is_cut() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    })
    .await;
    let limits = "[limits]\nresponse_body_timeout = \"500ms\"\n";
    let proxy = Setup::new(format!("{limits}{}", upstream.route()))
        .start()
        .await;
    let mut client = proxy.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let bytes = client.rest().await;
    assert!(
        bytes.ends_with(b"\r\n\r\nabc"),
        "{:?}",
        String::from_utf8_lossy(&bytes)
    );
}

#[tokio::test]
async fn a_slow_client_delays_no_one() {
    let (proxy, _upstream) = proxy("head_timeout = \"10s\"").await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut client = proxy.raw().await;
        client.send("GET / HTTP/1.1\r\n").await;
        slow.push(client);
    }
    assert_eq!(proxy.get("/", &[]).await.status, 200);
}

#[tokio::test]
async fn connections_over_the_limit_of_a_client_are_refused_and_others_go_on() {
    let upstream = TestUpstream::saying("ok").await;
    let limits = "[limits]\nconnections_per_client_max = 4\n";
    let proxy = Setup::new(format!("{limits}{}", upstream.route()))
        .workers(1)
        .start()
        .await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.raw().await;
        assert_eq!(
            client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status,
            200
        );
        kept.push(client);
    }
    let mut fifth = proxy.raw().await;
    fifth.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = fifth.rest().await;
    assert!(
        !answer.starts_with(b"HTTP/1.1 200"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    let first = &mut kept[0];
    assert_eq!(
        first.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status,
        200
    );
}
