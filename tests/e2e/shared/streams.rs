//! Open streams of proxies that share a bucket.

use super::*;

async fn a_map_change_by_another_proxy_touches_no_stream(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let (echo, _closes) = websocket::echo().await;
    let admins = fleet.admins();
    admins[1].set("upstreams", "id1", "127.0.0.1").await;
    has(&admins[0], "/v1/kv/upstreams/id1", Some("127.0.0.1")).await;
    let port = echo.port();
    let fields = [("x-id", "id1"), ("x-port", port.as_str())];
    let mut socket = websocket::open(fleet.proxies[0].address, &fields).await;
    socket.echo("before").await;
    admins[1].set("upstreams", "id1", "127.0.0.9").await;
    has(&admins[0], "/v1/kv/upstreams/id1", Some("127.0.0.9")).await;
    socket.echo("after").await;
    let deleted = admins[1].delete("/v1/kv/upstreams/id1").await;
    assert_eq!(deleted.status, 204);
    has(&admins[0], "/v1/kv/upstreams/id1", None).await;
    socket.echo("still").await;
    socket.close().await;
}

#[tokio::test]
async fn a_map_change_by_another_proxy_touches_no_stream_on_etcd() {
    a_map_change_by_another_proxy_touches_no_stream(Engine::Etcd).await;
}

#[tokio::test]
async fn a_map_change_by_another_proxy_touches_no_stream_on_redis() {
    a_map_change_by_another_proxy_touches_no_stream(Engine::Redis).await;
}
