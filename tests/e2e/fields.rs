//! The fields of a message: which are passed on, which are ours, which are added.

use crate::harness::{Answer, TestProxy, TestUpstream};
use std::time::{Duration, SystemTime};

async fn proxy() -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::answering(|request| Answer::ok(&request.body)).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    (proxy, upstream)
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

#[tokio::test]
async fn an_absolute_target_replaces_host() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let message = "GET http://right.test/x?y HTTP/1.1\r\nHost: wrong.test\r\n\r\n";
    assert_eq!(client.ask(message).await.status, 200);
    let received = upstream.only();
    assert_eq!(received.line(), "GET /x?y HTTP/1.1");
    assert_eq!(received.header("host"), Some("right.test"));
    assert!(!received.head.contains("wrong"), "{}", received.head);
}

#[tokio::test]
async fn connection_may_not_name_fields_that_make_the_message() {
    let (proxy, upstream) = proxy().await;
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "X-Forwarded-For",
    ] {
        let mut client = proxy.raw().await;
        let message = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close, {name}\r\n\r\nabc"
        );
        assert_eq!(client.ask(message).await.status, 400, "{name}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn fields_of_one_connection_are_not_passed_on() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Back, keep-alive\r\nX-Back: 1\r\n\
             Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-Kept: 1\r\n\r\n",
        )
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let response = client
        .ask(get(
            "Connection: keep-alive, X-Hop, TE\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
             TE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nProxy-Authorization: Basic eA==\r\nX-Kept: 1",
        ))
        .await;
    assert_eq!(response.status, 200);
    let received = upstream.only();
    for name in [
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
    ] {
        assert_eq!(received.header(name), None, "{}", received.head);
    }
    assert_eq!(received.header("x-kept"), Some("1"));
    for name in ["x-back", "keep-alive"] {
        assert_eq!(response.header(name), None, "{}", response.head);
    }
    assert_eq!(response.header("x-kept"), Some("1"));
}

#[tokio::test]
async fn what_clients_say_of_forwarding_is_not_believed() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    client
        .ask(get(
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil",
        ))
        .await;
    let received = upstream.only();
    assert_eq!(received.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(received.header("x-forwarded-proto"), Some("http"));
    assert_eq!(received.header("x-forwarded-host"), Some("a"));
    assert!(!received.head.contains("evil"));
}

/// RFC 9110, 6.6.1.
#[tokio::test]
async fn a_response_has_the_date_of_its_endpoint_or_ours() {
    const OF_ENDPOINT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let upstream = TestUpstream::answering(|request| match request.line() {
        "GET /dated HTTP/1.1" => Answer::bytes(format!(
            "HTTP/1.1 200 OK\r\nDate: {OF_ENDPOINT}\r\nContent-Length: 0\r\n\r\n"
        )),
        _ => Answer::ok(""),
    })
    .await;
    let ours =
        "[[route]]\nname = \"ours\"\nmatch = { path = \"/ours\" }\nreply = { status = 204 }\n";
    let proxy = TestProxy::start(&format!("{ours}{}", upstream.route())).await;
    assert_eq!(proxy.get("/dated", &[]).await.header("date"), OF_ENDPOINT);
    for path in ["/undated", "/ours"] {
        let response = proxy.get(path, &[]).await;
        let date = httpdate::parse_http_date(response.header("date")).expect(path);
        let age = SystemTime::now().duration_since(date);
        assert!(
            age.is_ok_and(|age| age < Duration::from_secs(60)),
            "{date:?}"
        );
    }
}
