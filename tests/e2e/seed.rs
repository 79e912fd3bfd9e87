//! The case this was made for: ID to address by header, kept by hand or by the agents themselves.

use crate::harness::proxy::BY_HEADER;
use crate::harness::{Raw, Request, Setup, TestProxy, TestUpstream, websocket};

#[tokio::test]
async fn a_request_goes_to_the_host_of_its_id_at_the_port_it_names_without_both_fields() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = TestProxy::start(BY_HEADER).await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
    let mut client = proxy.raw().await;
    let message = format!(
        "GET /path?q HTTP/1.1\r\nHost: a.test\r\nX-ID: id1\r\nx-port: {}\r\nX-Other: kept\r\n\r\n",
        upstream.port()
    );
    assert_eq!(client.ask(message).await.status, 200);
    let received = upstream.only();
    assert_eq!(received.line(), "GET /path?q HTTP/1.1");
    assert_eq!(received.header("host"), Some("a.test"));
    assert_eq!(received.header("x-other"), Some("kept"));
    assert_eq!(
        (received.header("x-id"), received.header("x-port")),
        (None, None)
    );
}

#[tokio::test]
async fn ids_are_on_different_hosts() {
    let one = TestUpstream::saying("one").await;
    let two = TestUpstream::answering_at(&format!("127.0.0.2:{}", one.port()), |_| {
        crate::harness::Answer::ok("two")
    })
    .await;
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    admin.set("upstreams", "id2", "127.0.0.2").await;
    for (id, expected) in [("id1", "one"), ("id2", "two")] {
        let response = proxy
            .get("/", &[("x-id", id), ("x-port", &one.port())])
            .await;
        assert_eq!(response.text(), expected);
    }
    assert_eq!(two.received().len(), 1);
}

/// What anything else is answered.
fn invalid(id: &str) -> String {
    format!("{{\"error\": \"Invalid request\", \"id\": \"{id}\"}}")
}

#[tokio::test]
async fn anything_else_is_404_with_the_id_as_json() {
    let proxy = TestProxy::start(BY_HEADER).await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
    for (fields, id) in [
        ("", ""),
        ("X-Port: 80", ""),
        ("X-ID: nobody\r\nX-Port: 80", "nobody"),
        ("X-ID: id1", "id1"),
        ("X-ID: id1\r\nX-Port:", "id1"),
        ("X-ID: id1\r\nX-Port: 0", "id1"),
        ("X-ID: id1\r\nX-Port: 080", "id1"),
        ("X-ID: id1\r\nX-Port: 65536", "id1"),
        ("X-ID: id1\r\nX-Port: 99999999999999999999", "id1"),
        ("X-ID: id1\r\nX-Port: -80", "id1"),
        ("X-ID: id1\r\nX-Port: +80", "id1"),
        ("X-ID: id1\r\nX-Port: 80a", "id1"),
        ("X-ID: id1\r\nX-Port: 8 0", "id1"),
        ("X-ID: id1\r\nX-Port: 0x50", "id1"),
        ("X-ID: a\"b\\c/d\r\nX-Port: 80", "a\\\"b\\\\c/d"),
        ("X-ID: a\tb\r\nX-Port: 80", "a\\tb"),
        ("X-ID: <script>\r\nX-Port: 80", "<script>"),
        ("X-ID: é\r\nX-Port: 80", "é"),
    ] {
        let mut client: Raw = proxy.raw().await;
        let end = if fields.is_empty() {
            "\r\n"
        } else {
            "\r\n\r\n"
        };
        let response = client
            .ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}{end}"))
            .await;
        assert_eq!(response.status, 404, "{fields}");
        assert_eq!(
            response.header("content-type"),
            Some("application/json"),
            "{fields}"
        );
        let body = String::from_utf8(response.body).expect("text");
        assert_eq!(body, invalid(id), "{fields}");
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON");
    }
}

#[tokio::test]
async fn an_id_that_is_no_text_is_404_with_valid_json() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let mut client = proxy.raw().await;
    let response = client
        .ask(b"GET / HTTP/1.1\r\nHost: a\r\nX-ID: \xff\xfe\r\nX-Port: 80\r\n\r\n")
        .await;
    assert_eq!(response.status, 404);
    serde_json::from_slice::<serde_json::Value>(&response.body).expect("JSON");
}

#[tokio::test]
async fn a_websocket_is_routed_by_its_id_and_stays_when_the_id_moves() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let mut socket =
        websocket::open(proxy.address, &[("x-id", "id1"), ("x-port", &echo.port())]).await;
    socket.echo("before").await;
    let stream = admin.streams_are(1).await.remove(0);
    assert_eq!(
        (&stream["key"], &stream["plugin"]),
        (&"id1".into(), &"router".into())
    );
    admin.set("upstreams", "id1", "127.0.0.9").await;
    socket.echo("moved").await;
    assert_eq!(admin.delete("/v1/kv/upstreams/id1").await.status, 204);
    socket.echo("gone").await;
}

const SELF_REGISTER: &str = r#"
[buckets.upstreams]
[plugins.agents]
source = "builtin:self-register"
buckets = { upstreams = "write" }
settings = { secret = "a-secret-of-some-length" }
[[route]]
plugin = "agents"
"#;

#[tokio::test]
async fn agents_announce_and_withdraw_themselves() {
    let upstream = TestUpstream::saying("agent").await;
    let mut proxy = Setup::new(SELF_REGISTER).start().await;
    let announce = |method: &str, secret: &str, address: &str| {
        Request::new(method, "/_throwbar/agents/agent-7")
            .field("authorization", &format!("Bearer {secret}"))
            .field("x-address", address)
    };
    let good = "a-secret-of-some-length";
    let fields = [("x-id", "agent-7"), ("x-port", &*upstream.port())];
    assert_eq!(proxy.get("/", &fields).await.status, 404);
    assert_eq!(
        proxy
            .send(announce("PUT", "a-wrong-secret-of-that", "127.0.0.1"))
            .await
            .status,
        401
    );
    assert_eq!(
        proxy
            .send(Request::new("PUT", "/_throwbar/agents/agent-7"))
            .await
            .status,
        401
    );
    assert_eq!(
        proxy
            .send(announce("PUT", good, "not an address"))
            .await
            .status,
        422
    );
    assert_eq!(proxy.get("/", &fields).await.status, 404);
    assert_eq!(
        proxy.send(announce("PUT", good, "127.0.0.1")).await.status,
        201
    );
    assert_eq!(proxy.get("/", &fields).await.text(), "agent");
    assert_eq!(
        proxy.send(announce("PUT", good, "127.0.0.1")).await.status,
        200
    );
    // What was acknowledged to the agent survives.
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(proxy.get("/", &fields).await.text(), "agent");
    assert_eq!(proxy.send(announce("DELETE", good, "")).await.status, 204);
    assert_eq!(proxy.get("/", &fields).await.status, 404);
}
