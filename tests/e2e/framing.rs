//! HTTP/1 framing: what is refused never reaches an endpoint, what is forwarded is framed anew.

use crate::harness::{Answer, PATIENCE, Raw, TestProxy, TestUpstream};

async fn proxy() -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::answering(|request| Answer::ok(&request.body)).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    (proxy, upstream)
}

/// Sends each message on a connection of its own and expects its status, then the end of the connection.
async fn refused(cases: &[(&str, &[u16], String)]) {
    let (proxy, upstream) = proxy().await;
    let mut wrong = Vec::new();
    for (name, statuses, message) in cases {
        // Seen if it fails.
        println!("{name}");
        let mut client = proxy.raw().await;
        let response = client.ask(message).await;
        if !statuses.contains(&response.status) {
            wrong.push(format!(
                "{name}: {}, expected {statuses:?}",
                response.status
            ));
        }
        let ended = tokio::time::timeout(PATIENCE, client.is_closed()).await;
        if ended != Ok(true) {
            wrong.push(format!("{name}: not closed"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(upstream.received().len(), 0, "{:?}", upstream.received());
    assert_eq!(upstream.connections(), 0);
}

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

fn chunked(chunks: &str) -> String {
    post("Transfer-Encoding: chunked", chunks)
}

#[tokio::test]
async fn ambiguous_lengths_are_refused_before_any_endpoint_is_reached() {
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let lengths = |fields: &str| post(fields, smuggled);
    refused(&[
        (
            "CL then TE",
            &[400],
            lengths("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        ),
        (
            "TE then CL",
            &[400],
            lengths("Transfer-Encoding: chunked\r\nContent-Length: 5"),
        ),
        (
            "two equal CL",
            &[400],
            lengths("Content-Length: 5\r\nContent-Length: 5"),
        ),
        (
            "two CL that differ",
            &[400],
            lengths("Content-Length: 5\r\nContent-Length: 6"),
        ),
        ("CL list", &[400], lengths("Content-Length: 5, 5")),
        ("CL plus", &[400], lengths("Content-Length: +5")),
        ("CL minus", &[400], lengths("Content-Length: -5")),
        ("CL hex", &[400], lengths("Content-Length: 0x5")),
        ("CL empty", &[400], lengths("Content-Length:")),
        ("CL space inside", &[400], lengths("Content-Length: 5 0")),
        (
            "CL overflow",
            &[400],
            lengths("Content-Length: 18446744073709551621"),
        ),
        (
            "CL space before colon",
            &[400],
            lengths("Content-Length : 5"),
        ),
        (
            "TE identity",
            &[400, 501],
            lengths("Transfer-Encoding: identity"),
        ),
        (
            "TE list",
            &[400, 501],
            lengths("Transfer-Encoding: gzip, chunked"),
        ),
        (
            "TE twice in a list",
            &[400, 501],
            lengths("Transfer-Encoding: chunked, chunked"),
        ),
        (
            "TE in two fields",
            &[400, 501],
            lengths("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        ),
        (
            "TE chunked then identity",
            &[400, 501],
            lengths("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        ),
        (
            "TE with a quote",
            &[400, 501],
            lengths("Transfer-Encoding: \"chunked\""),
        ),
        (
            "TE xchunked",
            &[400, 501],
            lengths("Transfer-Encoding: xchunked"),
        ),
        (
            "TE with vertical tab",
            &[400, 501],
            lengths("Transfer-Encoding: \u{b}chunked"),
        ),
        (
            "TE space before colon",
            &[400],
            lengths("Transfer-Encoding : chunked"),
        ),
        (
            "TE in 1.0",
            &[400, 501],
            format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"),
        ),
        (
            "folded TE",
            &[400, 501],
            lengths("Transfer-Encoding:\r\n chunked"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn heads_that_parsers_disagree_about_are_refused() {
    refused(&[
        ("bare LF", &[400], "GET / HTTP/1.1\nHost: a\n\n".into()),
        (
            "bare LF in a field",
            &[400],
            "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n".into(),
        ),
        ("bare CR in a value", &[400], get("X: a\rb")),
        ("folded field", &[400], get("X: a\r\n b")),
        (
            "folded first field",
            &[400],
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(),
        ),
        ("NUL in a value", &[400], get("X: a\0b")),
        ("NUL in a name", &[400], get("X\0: a")),
        ("space in a name", &[400], get("X Y: a")),
        ("space before the colon", &[400], get("X : a")),
        ("no colon", &[400], get("X")),
        ("empty name", &[400], get(": a")),
        ("name in brackets", &[400], get("X[]: a")),
        ("no host", &[400], "GET / HTTP/1.1\r\n\r\n".into()),
        ("two hosts", &[400], get("Host: b")),
        ("two equal hosts", &[400], get("Host: a")),
        (
            "empty host",
            &[400],
            "GET / HTTP/1.1\r\nHost:\r\n\r\n".into(),
        ),
        (
            "host with a path",
            &[400],
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(),
        ),
        (
            "host with user",
            &[400],
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".into(),
        ),
        (
            "host with a space",
            &[400],
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(),
        ),
        (
            "host list",
            &[400],
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(),
        ),
        ("no version", &[400], "GET /\r\nHost: a\r\n\r\n".into()),
        (
            "HTTP/2.0",
            &[400, 505],
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "HTTP/1.2",
            &[400, 505],
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "HTTP/0.9",
            &[400, 505],
            "GET / HTTP/0.9\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "http/1.1",
            &[400, 505],
            "GET / http/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "space in the target",
            &[400],
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "two spaces",
            &[400],
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "target without slash",
            &[400],
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "other scheme",
            &[400],
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        ("garbage", &[400], "\x16\x03\x01\x02\0\r\n\r\n".into()),
    ])
    .await;
}

#[tokio::test]
async fn chunks_that_parsers_disagree_about_are_refused_and_never_look_whole_upstream() {
    let (proxy, upstream) = proxy().await;
    let bad = [
        ("bare LF after the size", "3\nabc\r\n0\r\n\r\n"),
        ("bare LF after the data", "3\r\nabc\n0\r\n\r\n"),
        ("longer than its size", "3\r\nabcd\r\n0\r\n\r\n"),
        ("prefix 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("space before the size", " 3\r\nabc\r\n0\r\n\r\n"),
        ("space after the size", "3 \r\nabc\r\n0\r\n\r\n"),
        ("minus", "-3\r\nabc\r\n0\r\n\r\n"),
        ("17 digits", "00000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("overflow", "ffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ("empty size", "\r\nabc\r\n0\r\n\r\n"),
        ("not hexadecimal", "3g\r\nabc\r\n0\r\n\r\n"),
    ];
    for (name, body) in bad {
        let mut client = proxy.raw().await;
        client.send(chunked(body)).await;
        if let Ok(response) = client.try_response(false).await {
            assert_eq!(response.status, 400, "{name}");
        }
        assert!(client.is_closed().await, "{name}");
    }
    let whole = upstream.received();
    assert!(whole.is_empty(), "{whole:?}");
}

#[tokio::test]
async fn large_heads_are_refused_by_their_part() {
    let long = "a".repeat(17 << 10);
    let many = |count| "X: y\r\n".repeat(count) + "Z: z";
    refused(&[
        (
            "target over 16 KiB",
            &[414],
            format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"),
        ),
        (
            "field over 64 KiB",
            &[431],
            get(&format!("X: {}", "a".repeat(65 << 10))),
        ),
        (
            "head over 64 KiB",
            &[431],
            get(&"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(2_000)),
        ),
        ("over 100 fields", &[431], get(&many(100))),
    ])
    .await;
}

#[tokio::test]
async fn connect_and_trace_are_not_proxied() {
    let (proxy, upstream) = proxy().await;
    for message in [
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut client = proxy.raw().await;
        assert_eq!(client.ask(message).await.status, 405, "{message}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_request_arrives_framed_anew_byte_for_byte() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let response = client
        .ask(
            "POST /p?q=1 HTTP/1.1\r\nHost: example.test\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n\
             3;ext=1\r\nabc\r\n04\r\ndefg\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(
        (response.status, response.body.as_slice()),
        (200, b"abcdefg".as_slice())
    );
    let received = upstream.only();
    assert_eq!(received.line(), "POST /p?q=1 HTTP/1.1");
    assert_eq!(received.header("host"), Some("example.test"));
    assert_eq!(received.header("transfer-encoding"), Some("chunked"));
    assert_eq!(received.header("content-length"), None);
    assert_eq!(received.header("x-a"), Some("1"));
    assert_eq!(received.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(received.header("x-forwarded-proto"), Some("http"));
    assert_eq!(received.header("x-forwarded-host"), Some("example.test"));
    assert_eq!(received.body, b"abcdefg");
    let raw = String::from_utf8(received.raw).expect("text");
    assert!(!raw.contains("ext"), "{raw}");
    assert!(raw.ends_with("0\r\n\r\n"), "{raw}");
}

#[tokio::test]
async fn a_length_stays_a_length() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let response = client.ask(post("Content-Length: 5", "hello")).await;
    assert_eq!(
        (response.status, response.body.as_slice()),
        (200, b"hello".as_slice())
    );
    let received = upstream.only();
    assert_eq!(received.header("content-length"), Some("5"));
    assert_eq!(received.header("transfer-encoding"), None);
    assert!(received.raw.ends_with(b"\r\n\r\nhello"));
}

#[tokio::test]
async fn a_get_without_a_body_goes_out_without_one() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    assert_eq!(client.ask(get("X: y")).await.status, 200);
    let received = upstream.only();
    assert_eq!(received.header("content-length"), None);
    assert_eq!(received.header("transfer-encoding"), None);
    assert!(received.raw.ends_with(b"\r\n\r\n"));
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let message =
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(client.ask(message).await.status, 200);
    assert_eq!(upstream.only().body, b"abc");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = TestUpstream::answering(|request| Answer::ok(request.line())).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let all: String = (0..20)
        .map(|n| match n % 3 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"),
            _ => format!(
                "POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
            ),
        })
        .collect();
    client.send(all).await;
    for n in 0..20 {
        let body = String::from_utf8(client.response().await.body).expect("text");
        assert!(body.contains(&format!(" /{n} ")), "{n}: {body}");
    }
}

#[tokio::test]
async fn a_request_pipelined_after_a_bad_one_is_not_answered() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let bad = post(
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "0\r\n\r\n",
    );
    let response = client.ask(format!("{bad}{}", get("X: y"))).await;
    assert_eq!(response.status, 400);
    assert!(client.is_closed().await);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let interim = client.ask(head).await;
    assert_eq!(interim.status, 100);
    let response = client.ask("hello").await;
    assert_eq!(
        (response.status, response.body.as_slice()),
        (200, b"hello".as_slice())
    );
    assert_eq!(upstream.only().body, b"hello");
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let (proxy, upstream) = proxy().await;
    let mut client = proxy.raw().await;
    let response = client.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.status, 200);
    assert!(client.is_closed().await);
    assert_eq!(upstream.only().line(), "GET / HTTP/1.1");
}

#[tokio::test]
async fn a_chunked_response_reaches_an_http_1_0_client_without_chunks() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        )
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let response = client.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.body, b"abcde");
}

#[tokio::test]
async fn a_client_that_closes_in_a_body_leaves_no_whole_request_upstream() {
    let (proxy, upstream) = proxy().await;
    for message in [post("Content-Length: 10", "abc"), chunked("3\r\nabc\r\n")] {
        let mut client: Raw = proxy.raw().await;
        client.send(message).await;
        drop(client);
    }
    proxy
        .access_line("an aborted request", |line| line["error"].is_string())
        .await;
    assert!(upstream.received().is_empty(), "{:?}", upstream.received());
}
