//! Bodies: streamed both ways under back-pressure, never whole when they were cut.

use crate::harness::client::KeptAlive;
use crate::harness::{Answer, Request, Setup, TestProxy, TestUpstream, noise, sha256, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_large_upload_arrives_whole() {
    let upstream = TestUpstream::answering(|request| Answer::ok(sha256(&request.body))).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let body = noise(1, 50 * MIB);
    let expected = sha256(&body);
    let response = proxy.send(Request::post("/", body)).await;
    assert_eq!((response.status, response.text()), (200, expected));
}

#[tokio::test]
async fn a_large_chunked_response_arrives_whole() {
    let body = noise(2, 20 * MIB);
    let expected = sha256(&body);
    let mut message = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(100_001) {
        message.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        message.extend_from_slice(chunk);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"0\r\n\r\n");
    let upstream = TestUpstream::answering(move |_| Answer::bytes(&message)).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let response = proxy.get("/", &[]).await;
    assert_eq!(sha256(&response.body), expected);
}

#[tokio::test]
async fn slow_readers_hold_the_endpoint_back_and_cost_little_memory() {
    let body = vec![b'x'; 20 * MIB];
    let upstream = TestUpstream::answering(move |_| Answer::ok(&body)).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    assert_eq!(proxy.get("/", &[]).await.body.len(), 20 * MIB);
    let before = proxy.rss_kib();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.raw().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.line().await.expect("the head has come");
        clients.push(client);
    }
    upstream.receives(21).await;
    // 400 MB are on their way; what is not read stays with the endpoint and the kernel.
    let grown = proxy.rss_kib().saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB for 20 slow readers");
    for client in &mut clients {
        let mut left = 0;
        let mut chunk = vec![0; MIB];
        while left < 20 * MIB {
            match soon("more", client.stream.read(&mut chunk))
                .await
                .expect("read")
            {
                0 => panic!("cut"),
                n => left += n,
            }
            if left > 19 * MIB {
                break;
            }
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_read_holds_the_client_back() {
    let upstream = TestUpstream::raw(|stream, _| async move {
        // Until the proxy gives up.
        let _ = stream.readable().await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let before = proxy.rss_kib();
    let mut client = proxy.raw().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        .await;
    let chunk = vec![0; MIB];
    let mut sent = 0;
    // The kernel's buffers fill, then nothing more is taken.
    while sent < 200 * MIB {
        let write = client.stream.write(&chunk);
        match tokio::time::timeout(std::time::Duration::from_secs(1), write).await {
            Ok(taken) => sent += taken.expect("the connection is open"),
            Err(_) => break,
        }
    }
    assert!(sent < 100 * MIB, "{sent} bytes taken");
    let grown = proxy.rss_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB");
}

#[tokio::test]
async fn trailers_are_kept_for_who_takes_them() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\
             Content-Length: 9\r\n\r\n",
        )
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let response = client
        .ask(
            "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Up\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Up: 8\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
    assert_eq!(response.status, 200);
    let lower = response.trailers.to_ascii_lowercase();
    assert_eq!(lower, "x-sum: 7\r\n");
    let received = upstream.only();
    assert_eq!(received.trailers.to_ascii_lowercase(), "x-up: 8\r\n");
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let upstream = TestUpstream::answering(|request| {
        let line = request.line().to_owned();
        Answer::bytes(if line.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        } else if line.contains("/204") {
            "HTTP/1.1 204 No Content\r\n\r\n"
        } else {
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"a\"\r\n\r\n"
        })
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    for (method, path, status) in [
        ("HEAD", "/", 200),
        ("GET", "/204", 204),
        ("GET", "/304", 304),
    ] {
        client
            .send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        let response = client.response_without_body().await;
        assert_eq!(response.status, status);
        if status == 200 {
            assert_eq!(response.header("content-length"), Some("1000"));
        }
        if status == 204 {
            assert_eq!(response.header("content-length"), None);
        }
    }
    // The connection is where it should be: nothing was taken for a body.
    assert_eq!(upstream.received().len(), 3);
}

#[tokio::test]
async fn an_answer_before_the_body_has_come_is_relayed() {
    let upstream = TestUpstream::raw(|mut stream, _| async move {
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        let _ = stream.write_all(answer).await;
        // Reads what still comes, so that no reset overtakes the answer.
        while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
    client.send(head).await;
    client.send(vec![b'x'; 1000]).await;
    let response = client.response().await;
    assert_eq!(
        (response.status, response.body.as_slice()),
        (403, b"no".as_slice())
    );
}

#[tokio::test]
async fn a_body_that_the_endpoint_cuts_never_looks_whole() {
    let upstream = TestUpstream::answering(|request| match request.line() {
        line if line.contains("/length") => {
            Answer::last("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        }
        line if line.contains("/chunk-end") => {
            Answer::last("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        }
        line if line.contains("/in-chunk") => {
            Answer::last("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc")
        }
        _ => {
            Answer::last("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
        }
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    for path in ["/length", "/chunk-end", "/in-chunk", "/garbage"] {
        let mut client = proxy.raw().await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        let bytes = client.rest().await;
        let text = String::from_utf8_lossy(&bytes);
        if text.starts_with("HTTP/1.1 200") {
            assert!(!text.ends_with("0\r\n\r\n"), "{path}: {text}");
            assert!(!text.contains("Content-Length: 3"), "{path}: {text}");
        } else {
            assert!(
                text.starts_with("HTTP/1.1 502") || text.is_empty(),
                "{path}: {text}"
            );
        }
        let error = Request::get(path).try_send(proxy.address).await;
        assert!(
            !matches!(error, Ok(response) if response.status == 200),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_is_whole_and_chunked() {
    let upstream =
        TestUpstream::answering(|_| Answer::last("HTTP/1.1 200 OK\r\n\r\nuntil the end")).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.body, b"until the end");
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn a_request_body_over_the_limit_is_refused() {
    let upstream = TestUpstream::echoing().await;
    let limits = "[limits]\nbody_bytes_max = \"1KiB\"\n";
    let proxy = Setup::new(format!("{limits}{}", upstream.route()))
        .start()
        .await;
    assert_eq!(
        proxy
            .send(Request::post("/", vec![b'a'; 1024]))
            .await
            .status,
        200
    );
    let mut client = proxy.raw().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n";
    assert_eq!(client.ask(head).await.status, 413);
    let mut client = proxy.raw().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client
        .send(format!("401\r\n{}\r\n0\r\n\r\n", "a".repeat(1025)))
        .await;
    assert_eq!(client.response().await.status, 413);
    assert_eq!(upstream.received().len(), 1, "only the small one was whole");
}

#[tokio::test]
async fn requests_with_and_without_bodies_share_a_connection() {
    let upstream = TestUpstream::echoing().await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = KeptAlive::connect(proxy.address).await.expect("connected");
    for n in 0..50_usize {
        let body = noise(n as u64 + 1, n * 997);
        let response = client
            .send(Request::post("/", body.clone()))
            .await
            .expect("answered");
        assert_eq!(response.body, body);
    }
}
