//! The admin API's door: who may come in, and how refusals look.

use crate::harness::proxy::BY_HEADER;
use crate::harness::{Raw, Request, Setup, TestProxy, TestUpstream, fixture, sha256};
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn nothing_but_probes_is_there_without_the_token() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let at = proxy.admin_address;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(Request::get(path).send(at).await.status, 200, "{path}");
    }
    for path in [
        "/",
        "/metrics",
        "/v1/status",
        "/v1/kv",
        "/v1/plugins",
        "/v1/config",
        "/v1/streams",
        "/nothing",
    ] {
        let response = Request::get(path).send(at).await;
        assert_eq!(response.status, 401, "{path}");
        assert_eq!(
            response.header("www-authenticate").split(' ').next(),
            Some("Bearer")
        );
        let wrong = Request::get(path)
            .field("authorization", "Bearer wrong")
            .send(at)
            .await;
        assert_eq!(wrong.status, 401, "{path}");
    }
    let put = Request::new("PUT", "/v1/kv/upstreams/a")
        .body("127.0.0.1")
        .send(at)
        .await;
    assert_eq!(put.status, 401);
    let patch = Request::new("PATCH", "/id/proxy-map/mappings")
        .body("[]")
        .send(at)
        .await;
    assert_eq!(patch.status, 401);
    assert_eq!(proxy.admin().get("/v1/kv/upstreams/a").await.status, 404);
}

#[tokio::test]
async fn the_token_is_for_its_owner_only_and_stays() {
    let mut proxy = TestProxy::start(BY_HEADER).await;
    let file = proxy.file("data/admin.token");
    let mode = std::fs::metadata(&file)
        .expect("a token")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = std::fs::read(&file).expect("a token");
    assert!(before.len() >= 32);
    assert!(
        !proxy
            .stderr()
            .contains(String::from_utf8_lossy(&before).trim())
    );
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(std::fs::read(&file).expect("a token"), before);
}

#[tokio::test]
async fn pages_of_the_web_cannot_reach_it() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    for (name, value) in [
        ("host", "evil.test"),
        ("host", "evil.test:80"),
        ("origin", "https://evil.test"),
        ("origin", "null"),
    ] {
        let response = admin
            .send(Request::get("/v1/status").field(name, value))
            .await;
        assert_eq!(response.status, 403, "{name}: {value}");
        let probe = Request::get("/healthz")
            .field(name, value)
            .send(proxy.admin_address)
            .await;
        assert_eq!(probe.status, 403, "{name}: {value}");
    }
    let own = proxy.admin_address.to_string();
    let response = admin
        .send(Request::get("/v1/status").field("origin", &format!("http://{own}")))
        .await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn refusals_are_problem_documents() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let all = [
        (Request::get("/nothing"), 404),
        (Request::get("/v1/kv/none"), 404),
        (Request::get("/v1/kv/upstreams?limit=0"), 400),
        (Request::get("/v1/kv/upstreams?unknown=1"), 400),
        (
            Request::new("PUT", "/v1/kv/upstreams/a").body("no address!"),
            422,
        ),
        (Request::post("/v1/kv/upstreams/batch", "{"), 400),
        (Request::new("PATCH", "/v1/status"), 405),
        (Request::get("/v1/plugins/none"), 404),
        (Request::new("DELETE", "/v1/streams/1"), 404),
        (
            Request::new("PUT", "/v1/plugins/router")
                .field("content-type", "text/html")
                .body("x"),
            415,
        ),
    ];
    for (request, status) in all {
        let shown = format!("{request:?}");
        let response = admin.send(request).await;
        let problem = response.json();
        assert!(
            response.status == status || (status == 400 && response.status == 422),
            "{shown}: {} {problem}",
            response.status
        );
        assert_eq!(
            response.header("content-type"),
            "application/problem+json",
            "{shown}"
        );
        assert_eq!(problem["status"], response.status, "{shown}");
        for field in ["type", "title", "code", "detail"] {
            assert!(
                problem[field].as_str().is_some_and(|text| !text.is_empty()),
                "{shown}: {problem}"
            );
        }
    }
}

#[tokio::test]
async fn metrics_are_text_that_parses_and_count_what_happened() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = TestProxy::start(&upstream.route()).await;
    for _ in 0..7 {
        proxy.get("/", &[]).await;
    }
    let mut bad = proxy.raw().await;
    bad.ask("GET / HTTP/1.1\r\n\r\n").await;
    let admin = proxy.admin();
    let ok = "throwbar_requests_total{route=\"all\",code_class=\"2xx\"}";
    admin.metric_is(ok, |count| count == 7.0).await;
    let text = admin.get("/metrics").await.text();
    assert!(text.ends_with("# EOF\n"));
    let mut names = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            assert!(
                ["HELP ", "TYPE ", "UNIT ", "EOF"]
                    .iter()
                    .any(|w| comment.starts_with(w)),
                "{line}"
            );
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        value
            .parse::<f64>()
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(series.starts_with("throwbar_"), "{line}");
        assert!(names.insert(series.to_owned()), "{series} twice");
    }
}

#[tokio::test]
async fn status_tells_versions_listeners_and_streams() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let status = proxy.admin().get("/v1/status").await.json();
    assert_eq!(status["ready"], true);
    assert_eq!(status["workers"], 2);
    assert_eq!(status["listeners"]["web"], proxy.address.to_string());
    assert_eq!(status["streams"]["open"], 0);
    let version = proxy.admin().push_ok("router", fixture("version-a")).await;
    assert_eq!(version, sha256(&fixture("version-a")));
    let status = proxy.admin().get("/v1/status").await.json();
    assert_eq!(status["plugins"]["router"]["active"], version, "{status}");
}

#[tokio::test]
async fn status_tells_which_config_runs() {
    let text = Setup::new(BY_HEADER).text();
    let proxy = TestProxy::start_text(&text).await;
    let admin = proxy.admin();
    let status = async || admin.get("/v1/status").await.json();
    let first = sha256(text.as_bytes());
    assert_eq!(status().await["config"]["digest"], first.as_str());
    let other = format!("{text}# the same, said in another way\n");
    let second = sha256(other.as_bytes());
    let put = admin.put("/v1/config", other).await;
    assert_eq!(put.status, 200, "{}", put.text());
    assert_eq!(put.json()["digest"], second.as_str());
    assert_eq!(put.header("etag"), format!("\"{second}\""));
    assert_eq!(status().await["config"]["digest"], second.as_str());
}

#[tokio::test]
async fn status_tells_at_which_revision_the_store_is() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    for value in ["127.0.0.2", "127.0.0.3"] {
        let put = admin.put("/v1/kv/upstreams/id1", value).await;
        let store = &admin.get("/v1/status").await.json()["store"];
        assert_eq!(store["revision"], put.json()["revision"], "{store}");
        assert_eq!(put.header("etag"), format!("\"{}\"", store["revision"]));
        let bucket = &store["buckets"]["upstreams"];
        assert_eq!(bucket["revision"], store["revision"], "{store}");
    }
}

#[tokio::test]
async fn it_can_be_on_a_unix_socket() {
    let mut setup = Setup::new(BY_HEADER);
    setup.frame = setup.frame.replace(
        "listen = \"127.0.0.1:0\"\n\n[[l",
        "listen = \"unix:admin.sock\"\n\n[[l",
    );
    let proxy = setup.start().await;
    let socket = proxy.file("admin.sock");
    let mode = std::fs::metadata(&socket)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let stream = tokio::net::UnixStream::connect(&socket)
        .await
        .expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("connected");
    tokio::spawn(connection);
    let request = http::Request::get("/healthz")
        .header("host", "throwbar")
        .body(http_body_util::Empty::<bytes::Bytes>::new());
    let response = sender
        .send_request(request.expect("valid"))
        .await
        .expect("answered");
    assert_eq!(response.status(), 200);
    let ended =
        crate::harness::proxy::run(proxy.dir(), &["kv", "ls", "--admin", "unix:admin.sock"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[tokio::test]
async fn requests_that_are_no_http_do_not_disturb_it() {
    let proxy = TestProxy::start(BY_HEADER).await;
    for garbage in [
        "\x16\x03\x01",
        "GET\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ] {
        let mut client = Raw::connect(proxy.admin_address).await;
        client.send(garbage).await;
        drop(client);
    }
    assert_eq!(proxy.admin().get("/v1/status").await.status, 200);
}
