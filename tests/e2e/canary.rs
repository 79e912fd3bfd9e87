//! Canaries: a share of the IDs, always the same ones, until it is promoted or aborted.

use crate::harness::client::KeptAlive;
use crate::harness::proxy::{BY_HEADER, PATIENT};
use crate::harness::websocket;
use crate::harness::{Request, TestProxy, fixture, sha256};
use std::collections::BTreeSet;
use std::net::SocketAddr;

const CANARY: &str = "/v1/plugins/router/canary";
const IDS: u32 = 20_000;
const CLIENTS: u32 = 4;

/// A request with this ID in it.
type WithId = fn(u32) -> Request;

/// `version-a` is active and answers 404 for an ID that is not in the map; the canary to be replies with 200.
async fn proxy() -> TestProxy {
    let proxy = TestProxy::start(&format!("{BY_HEADER}{PATIENT}")).await;
    proxy.admin().push_ok("router", fixture("version-a")).await;
    proxy
}

async fn begin(proxy: &TestProxy, percent: f64) {
    let path = format!("/v1/plugins/router?canary={percent}&by=header:x-id");
    let begun = proxy.admin().put(&path, fixture("count")).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    assert_eq!(begun.json()["outcome"], "canary");
}

async fn grow(proxy: &TestProxy, percent: f64) {
    let grown = proxy
        .admin()
        .put(CANARY, format!("{{\"percent\": {percent}}}"))
        .await;
    assert_eq!(grown.status, 200, "{}", grown.text());
}

/// Which of these IDs the canary answers.
async fn taken(address: SocketAddr, ids: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    let by_header = |id| Request::get("/").field("x-id", &format!("id{id}"));
    taken_with(address, ids, by_header).await
}

/// The same, for IDs that requests have elsewhere.
async fn taken_with(
    address: SocketAddr,
    ids: impl IntoIterator<Item = u32>,
    request: WithId,
) -> BTreeSet<u32> {
    let ids: Vec<u32> = ids.into_iter().collect();
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let each = |id: &u32| id % CLIENTS == number;
            let ids: Vec<u32> = ids.iter().copied().filter(each).collect();
            tokio::spawn(async move {
                let mut client = KeptAlive::connect(address).await.expect("connected");
                let mut taken = Vec::new();
                for id in ids {
                    match client.send(request(id)).await.expect("a response").status {
                        200 => taken.push(id),
                        status => assert_eq!(status, 404),
                    }
                }
                taken
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for task in tasks {
        all.extend(task.await.expect("no failed request"));
    }
    all
}

#[tokio::test]
async fn a_growing_canary_has_its_share_of_the_ids_and_keeps_each_of_them() {
    let proxy = proxy().await;
    begin(&proxy, 5.0).await;
    let five = taken(proxy.address, 0..IDS).await;
    let percent = five.len() as f64 * 100.0 / f64::from(IDS);
    assert!((percent - 5.0).abs() < 0.5, "{percent} % instead of 5 %");
    assert_eq!(
        taken(proxy.address, five.iter().copied()).await,
        five,
        "the same at every worker"
    );

    grow(&proxy, 25.0).await;
    assert_eq!(
        taken(proxy.address, five.iter().copied()).await,
        five,
        "none goes back"
    );
    let more = taken(proxy.address, 0..4_000).await;
    assert!((800..1_200).contains(&more.len()), "{} of 4000", more.len());
    grow(&proxy, 100.0).await;
    assert_eq!(taken(proxy.address, 0..400).await.len(), 400);
    // A request without the field stays with the active version, whatever the share.
    assert_eq!(proxy.get("/", &[]).await.status, 404);
}

#[tokio::test]
async fn an_id_is_drawn_alike_in_a_header_a_cookie_the_query_or_the_path() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    begin(&proxy, 25.0).await;
    let by_header = taken(proxy.address, 0..1_000).await;
    assert!((190..310).contains(&by_header.len()), "{}", by_header.len());
    let version = &sha256(&fixture("count"))[..12];
    let fields: [(&str, WithId); 3] = [
        ("cookie:id", |id| {
            Request::get("/").field("cookie", &format!("theme=dark; id=id{id}"))
        }),
        ("query:id", |id| {
            Request::get(&format!("/?page=1&id=id{id}"))
        }),
        ("segment:2", |id| {
            Request::get(&format!("/users/id{id}?page=1"))
        }),
    ];
    for (field, request) in fields {
        assert_eq!(admin.delete(CANARY).await.status, 204);
        let again = format!("{{\"version\": \"{version}\", \"percent\": 25, \"by\": \"{field}\"}}");
        assert_eq!(admin.put(CANARY, again).await.status, 200);
        let taken = taken_with(proxy.address, 0..1_000, request).await;
        assert_eq!(taken, by_header, "{field}");
        grow(&proxy, 100.0).await;
        assert_eq!(proxy.get("/", &[]).await.status, 404, "no {field} at all");
    }
}

#[tokio::test]
async fn a_canary_survives_kill_9_with_its_share() {
    let mut proxy = proxy().await;
    begin(&proxy, 30.0).await;
    let before = taken(proxy.address, 0..400).await;
    assert!(!before.is_empty() && before.len() < 400);
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(taken(proxy.address, 0..400).await, before);
    let plugin = proxy.admin().plugin("router").await;
    assert_eq!(plugin["active"], sha256(&fixture("version-a")).as_str());
    assert_eq!(plugin["canary"]["percent"], 30.0, "{plugin}");
    assert_eq!(plugin["canary"]["by"], "header:x-id");
}

#[tokio::test]
async fn a_canary_beside_a_version_of_the_config_survives_and_leaves_the_config_its_say() {
    let mut proxy = TestProxy::start(&format!("{BY_HEADER}{PATIENT}")).await;
    begin(&proxy, 100.0).await;
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(taken(proxy.address, 0..20).await.len(), 20);
    let admin = proxy.admin();
    assert_eq!(admin.delete(CANARY).await.status, 204);
    let path = proxy.file("throwbar.toml");
    let config = std::fs::read_to_string(&path).expect("read");
    std::fs::write(
        &path,
        config.replace("builtin:by-header", "builtin:maintenance"),
    )
    .expect("written");
    let before = admin.plugin("router").await["active"].clone();
    proxy.kill().await;
    proxy.start_again().await;
    let active = proxy.admin().plugin("router").await["active"].clone();
    assert_ne!(active, before, "nothing was pushed, so the config decides");
}

#[tokio::test]
async fn a_promoted_canary_is_active_with_the_instances_it_had() {
    let mut proxy = proxy().await;
    begin(&proxy, 10.0).await;
    let before = proxy.admin().plugin("router").await["canary"]["version"].clone();
    let promoted = proxy
        .admin()
        .post("/v1/plugins/router/canary/promote", "")
        .await;
    assert_eq!(promoted.status, 200, "{}", promoted.text());
    assert_eq!(promoted.json()["outcome"], "swapped");
    assert_eq!(taken(proxy.address, 0..40).await.len(), 40);
    let plugin = proxy.admin().plugin("router").await;
    assert_eq!(
        (&plugin["active"], &plugin["canary"]),
        (&before, &serde_json::Value::Null)
    );
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(proxy.admin().plugin("router").await["active"], before);
    let rolled = proxy.admin().post("/v1/plugins/router/rollback", "").await;
    assert_eq!(
        rolled.json()["digest"],
        sha256(&fixture("version-a")).as_str()
    );
}

#[tokio::test]
async fn an_aborted_canary_has_no_request_any_more_and_is_kept() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    begin(&proxy, 100.0).await;
    assert_eq!(admin.delete(CANARY).await.status, 204);
    assert_eq!(taken(proxy.address, 0..40).await.len(), 0);
    assert_eq!(admin.get(CANARY).await.status, 404);
    assert_eq!(admin.delete(CANARY).await.status, 409);
    let version = &sha256(&fixture("count"))[..12];
    let again = format!("{{\"version\": \"{version}\", \"percent\": 100, \"by\": \"query:id\"}}");
    assert_eq!(admin.put(CANARY, again).await.status, 200);
    assert_eq!(proxy.get("/?id=7", &[]).await.status, 200);
    assert_eq!(proxy.get("/?it=7", &[("x-id", "7")]).await.status, 404);
}

#[tokio::test]
async fn a_share_that_makes_no_sense_is_refused_and_named() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    for (query, expected) in [
        (
            "canary=101&by=path",
            "percent 101: expected a number from 0 to 100",
        ),
        ("canary=5", "by: expected a field such as header:x-id"),
        ("canary=5&by=key", "by \"key\": expected header:NAME"),
        (
            "canary=5&by=segment:0",
            "expected the number of a segment of the path, 1 to 100",
        ),
    ] {
        let path = format!("/v1/plugins/router?{query}");
        let refused = admin.put(&path, fixture("count")).await;
        assert_eq!(refused.status, 422, "{query}");
        assert!(
            refused.text().contains(&expected.replace('"', "\\\"")),
            "{}",
            refused.text()
        );
    }
    let active = admin
        .put("/v1/plugins/router?canary=5&by=path", fixture("version-a"))
        .await;
    assert_eq!(active.status, 409, "{}", active.text());
    begin(&proxy, 5.0).await;
    let second = admin
        .put("/v1/plugins/router?canary=5&by=path", fixture("version-b"))
        .await;
    assert_eq!(second.status, 409, "{}", second.text());
}

#[tokio::test]
async fn a_stream_of_a_canary_is_counted_and_stays_when_it_is_aborted() {
    let (upstream, _closes) = websocket::echo().await;
    let proxy = proxy().await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let path = "/v1/plugins/router?canary=100&by=header:x-id";
    assert_eq!(admin.put(path, fixture("version-b")).await.status, 200);
    let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
    let mut socket = websocket::open(proxy.address, &fields).await;
    let streams = admin.streams_are(1).await;
    assert_eq!(
        streams[0]["version"],
        sha256(&fixture("version-b")).as_str()
    );
    assert_eq!(admin.delete(CANARY).await.status, 204);
    socket.echo("still here").await;
}

#[tokio::test]
async fn beside_a_canary_that_fails_the_active_version_is_the_last_good_one() {
    let config = BY_HEADER.replace(
        "plugin = \"router\"",
        "plugin = \"router\"\non_failure = \"last-good\"",
    );
    let proxy = TestProxy::start(&format!("{config}{PATIENT}")).await;
    let admin = proxy.admin();
    // The version before it, of the config, answers 404.
    admin.push_ok("router", fixture("count")).await;
    let path = "/v1/plugins/router?canary=100&by=path";
    assert_eq!(admin.put(path, fixture("trap")).await.status, 200);
    let fields = [("x-id", "none"), ("x-trap", "1")];
    assert_eq!(
        proxy.get("/", &fields[..1]).await.status,
        404,
        "the canary decides"
    );
    assert_eq!(
        proxy.get("/", &fields).await.status,
        200,
        "it traps, and the active one decides"
    );
}
