//! Endpoints that fail, misbehave, or are several.

use crate::harness::client::KeptAlive;
use crate::harness::upstream::{read_request, reset};
use crate::harness::{Answer, Request, Setup, TestProxy, TestUpstream, eventually};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt;

const SHORT: &str = "[limits]\nconnect_timeout = \"500ms\"\nresponse_timeout = \"500ms\"\n";

#[tokio::test]
async fn nobody_listening_is_502() {
    let port = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        closed.local_addr().expect("bound").port()
    };
    let proxy = TestProxy::start(&format!("[[route]]\nto = \"127.0.0.1:{port}\"\n")).await;
    let response = proxy.get("/", &[]).await;
    assert_eq!(response.status, 502);
    let id = response.header("x-request-id").to_owned();
    assert!(!id.is_empty());
    assert!(response.text().contains(&id), "{}", response.text());
    let line = proxy
        .access_line("the failed request", |line| line["id"] == id.as_str())
        .await;
    let error = line["error"].as_str().expect("an error");
    assert!(error.contains(&port.to_string()), "{error}");
    assert!(
        !response.text().contains(&port.to_string()),
        "clients learn no addresses"
    );
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_is_504_at_the_deadline() {
    let upstream = TestUpstream::answering(|_| Answer::Hang).await;
    let proxy = Setup::new(format!("{SHORT}{}", upstream.route()))
        .start()
        .await;
    for request in [Request::get("/"), Request::post("/", "x")] {
        assert_eq!(proxy.send(request).await.status, 504);
    }
}

#[tokio::test]
async fn a_response_head_that_never_ends_is_504() {
    let upstream = TestUpstream::raw(|mut stream, connection| async move {
        let mut buffer = Vec::new();
        read_request(&mut stream, &mut buffer, connection, 0).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        // A field every now and then: there is a deadline for the whole head.
        for n in 0.. {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if stream
                .write_all(format!("X-{n}: y\r\n").as_bytes())
                .await
                .is_err()
            {
                return;
            }
        }
    })
    .await;
    let proxy = Setup::new(format!("{SHORT}{}", upstream.route()))
        .start()
        .await;
    assert_eq!(proxy.get("/", &[]).await.status, 504);
}

#[tokio::test]
async fn what_is_no_response_is_502() {
    let huge = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n",
        "a".repeat(300 << 10)
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n",
        "X: y\r\n".repeat(5_000)
    );
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1_000)
        + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let cases: Vec<(&str, String)> = vec![
        ("closes", String::new()),
        ("garbage", "\x16\x03\x01 what\r\n\r\n".into()),
        ("another protocol", "SSH-2.0-x\r\n\r\n".into()),
        ("HTTP/0.9", "<html>hello</html>\r\n\r\n".into()),
        ("status 000", "HTTP/1.1 000 X\r\n\r\n".into()),
        ("status of four digits", "HTTP/1.1 2000 X\r\n\r\n".into()),
        ("status no number", "HTTP/1.1 abc X\r\n\r\n".into()),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".into(),
        ),
        (
            "length list",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab".into(),
        ),
        (
            "length garbage",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na".into(),
        ),
        (
            "length and chunks",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .into(),
        ),
        (
            "TE list",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into(),
        ),
        (
            "TE identity",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n".into(),
        ),
        (
            "NUL in a value",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        (
            "CR in a value",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        (
            "folded",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        (
            "space in a name",
            "HTTP/1.1 200 OK\r\nX Y: a\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        (
            "space before the colon",
            "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        ("huge head", huge),
        ("many fields", many),
        ("cut head", "HTTP/1.1 200 OK\r\nContent-Le".into()),
        (
            "101 unasked",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
                .into(),
        ),
        ("1xx without end", interim),
    ];
    let answers: Vec<String> = cases.iter().map(|(_, answer)| answer.clone()).collect();
    let upstream = TestUpstream::answering(move |request| {
        let number = request
            .line()
            .split(['/', ' '])
            .nth(2)
            .and_then(|n| n.parse::<usize>().ok());
        Answer::last(&answers[number.expect("a number in the path")])
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut wrong = Vec::new();
    for (number, (name, _)) in cases.iter().enumerate() {
        let mut client = proxy.raw().await;
        let message = format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        client.send(message).await;
        // Interim responses may have been passed on before.
        let status = loop {
            match client.try_response(false).await {
                Ok(response) if response.status == 103 => {}
                Ok(response) => break response.status,
                Err(_) => break 0,
            }
        };
        if status != 502 {
            wrong.push(format!("{name}: {status}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn interim_responses_are_swallowed() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes(
            "HTTP/1.1 100 Continue\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(
        (response.status, response.body.as_slice()),
        (200, b"ok".as_slice())
    );
    assert_eq!(response.header("link"), None);
}

#[tokio::test]
async fn stray_bytes_after_a_response_poison_nobody() {
    let upstream = TestUpstream::answering(|request| {
        if request.number == 0 && request.connection == 0 {
            Answer::bytes(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
            )
        } else {
            Answer::ok("clean")
        }
    })
    .await;
    let proxy = Setup::new(upstream.route()).workers(1).start().await;
    let mut client = KeptAlive::connect(proxy.address).await.expect("connected");
    let first = client.send(Request::get("/1")).await.expect("answered");
    assert_eq!(first.text(), "first");
    for _ in 0..5 {
        let next = client.send(Request::get("/2")).await.expect("answered");
        assert_eq!(next.text(), "clean");
    }
    assert!(
        upstream.received()[1].connection > 0,
        "the connection is not used again"
    );
}

/// Answers the first request of each connection; at the second it resets without an answer.
async fn stale() -> TestUpstream {
    TestUpstream::answering(|request| match request.number {
        0 => Answer::ok("ok"),
        _ => Answer::Reset,
    })
    .await
}

#[tokio::test]
async fn a_get_that_meets_a_stale_connection_is_sent_once_more() {
    for ending in [Answer::Reset, Answer::last("")] {
        let ending = Arc::new(ending);
        let upstream = TestUpstream::answering(move |request| match (request.number, &*ending) {
            (0, _) => Answer::ok("ok"),
            (_, Answer::Last(bytes)) => Answer::last(bytes),
            _ => Answer::Reset,
        })
        .await;
        let proxy = Setup::new(upstream.route()).workers(1).start().await;
        for _ in 0..5 {
            let response = proxy.get("/", &[]).await;
            assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        }
        assert!(proxy.admin().metric("throwbar_upstream_retries").await >= 1.0);
    }
}

#[tokio::test]
async fn a_post_that_meets_a_stale_connection_is_never_sent_twice() {
    let upstream = stale().await;
    let proxy = Setup::new(upstream.route()).workers(1).start().await;
    assert_eq!(proxy.send(Request::post("/1", "x")).await.status, 200);
    assert_eq!(proxy.send(Request::post("/2", "x")).await.status, 502);
    let paths: Vec<String> = upstream
        .received()
        .iter()
        .map(|r| r.line().to_owned())
        .collect();
    assert_eq!(paths, ["POST /1 HTTP/1.1", "POST /2 HTTP/1.1"]);
}

#[tokio::test]
async fn a_retry_that_fails_is_the_last() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let upstream = TestUpstream::raw(move |mut stream, connection| {
        let counter = counter.clone();
        async move {
            let mut buffer = Vec::new();
            for number in 0.. {
                let Some(_) = read_request(&mut stream, &mut buffer, connection, number).await
                else {
                    return;
                };
                if counter.fetch_add(1, Ordering::SeqCst) > 0 {
                    return reset(stream);
                }
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .await;
            }
        }
    })
    .await;
    let proxy = Setup::new(upstream.route()).workers(1).start().await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    assert_eq!(proxy.get("/", &[]).await.status, 502);
    assert_eq!(
        count.load(Ordering::SeqCst),
        3,
        "one request, its stale attempt, one retry"
    );
}

#[tokio::test]
async fn connections_to_an_endpoint_are_used_again() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = Setup::new(upstream.route()).workers(1).start().await;
    for _ in 0..50 {
        assert_eq!(proxy.get("/", &[]).await.status, 200);
    }
    assert_eq!(upstream.received().len(), 50);
    assert!(upstream.connections() <= 2, "{}", upstream.connections());
}

#[tokio::test]
async fn idle_connections_to_an_endpoint_are_closed_after_their_time() {
    let (told, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let upstream = TestUpstream::raw(move |mut stream, connection| {
        let told = told.clone();
        async move {
            let mut buffer = Vec::new();
            read_request(&mut stream, &mut buffer, connection, 0).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
            read_request(&mut stream, &mut buffer, connection, 1).await;
            let _ = told.send(());
        }
    })
    .await;
    let limits = "[limits]\npool_idle_timeout = \"300ms\"\n";
    let proxy = TestProxy::start(&format!("{limits}{}", upstream.route())).await;
    assert_eq!(proxy.get("/", &[]).await.status, 200);
    crate::harness::soon("the idle connection closed", closed.recv()).await;
}

fn group(policy: &str, upstreams: &[&TestUpstream]) -> String {
    let endpoints: Vec<String> = upstreams
        .iter()
        .map(|u| format!("{:?}", u.address.to_string()))
        .collect();
    format!(
        "[upstreams.app]\nendpoints = [{}]\npolicy = \"{policy}\"\n[[route]]\nupstream = \"app\"\n",
        endpoints.join(", ")
    )
}

#[tokio::test]
async fn round_robin_spreads_requests_evenly() {
    let (a, b, c) = (
        TestUpstream::saying("a").await,
        TestUpstream::saying("b").await,
        TestUpstream::saying("c").await,
    );
    let proxy = Setup::new(group("round-robin", &[&a, &b, &c]))
        .workers(1)
        .start()
        .await;
    for _ in 0..30 {
        proxy.get("/", &[]).await;
    }
    for upstream in [&a, &b, &c] {
        assert_eq!(upstream.received().len(), 10);
    }
}

#[tokio::test]
async fn least_requests_avoids_a_busy_endpoint() {
    let busy = TestUpstream::answering(|_| Answer::Hang).await;
    let free = TestUpstream::saying("free").await;
    let proxy = Setup::new(group("least-requests", &[&busy, &free]))
        .workers(1)
        .start()
        .await;
    // One at a time, each answered before the next, until the busy one holds one.
    let held = loop {
        let mut client = proxy.raw().await;
        let before = free.received().len();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let at_busy = eventually("the request at an endpoint", async || {
            let (busy, free) = (busy.received().len(), free.received().len());
            (busy == 1 || free > before).then_some(busy == 1)
        })
        .await;
        if at_busy {
            break client;
        }
        client.response().await;
    };
    for _ in 0..20 {
        assert_eq!(proxy.get("/", &[]).await.text(), "free");
    }
    assert_eq!(busy.received().len(), 1);
    drop(held);
}

#[tokio::test]
async fn hash_keeps_a_client_at_its_endpoint() {
    let (a, b) = (
        TestUpstream::saying("a").await,
        TestUpstream::saying("b").await,
    );
    let proxy = TestProxy::start(&group("hash", &[&a, &b])).await;
    let first = proxy.get("/", &[]).await.text();
    for _ in 0..20 {
        assert_eq!(proxy.get("/", &[]).await.text(), first);
    }
}

#[tokio::test]
async fn a_dead_endpoint_of_a_group_costs_no_request() {
    let alive = TestUpstream::saying("alive").await;
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("bound")
    };
    let config = format!(
        "[upstreams.app]\nendpoints = [\"{dead}\", \"{}\"]\n[[route]]\nupstream = \"app\"\n",
        alive.address
    );
    let proxy = TestProxy::start(&config).await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/", &[]).await.text(), "alive");
        assert_eq!(proxy.send(Request::post("/", "x")).await.text(), "alive");
    }
}
