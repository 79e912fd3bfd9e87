//! Plugins that keep a view of their own of a bucket: told of what has changed before a call that sees it.

use crate::harness::websocket;
use crate::harness::{Admin, Request, Setup, TestProxy, fixture, fixture_path};
use crate::sessions::ask;

/// Routes by the guest, which reads `notes`.
async fn proxy(guest: &str, plugin: &str, more: &str) -> TestProxy {
    let config = format!(
        "[buckets.notes]\nvalues = \"bytes\"\nbackend = \"memory\"\n\
         [plugins.p]\nsource = \"{}\"\nbuckets = {{ notes = \"read\" }}\n\
         limits = {{ deadline = \"2s\", memory = \"64MiB\", watch_deadline = \"10s\" }}\n{plugin}\n\
         {more}\n[[route]]\nname = \"p\"\nplugin = \"p\"\n",
        fixture_path(guest).display()
    );
    Setup::new(config).workers(1).start().await
}

async fn said(proxy: &TestProxy, id: &str) -> (u16, String) {
    let response = proxy.get("/", &[("x-id", id), ("x-key", id)]).await;
    (response.status, response.text())
}

/// Writes so many notes in one batch.
async fn import(admin: &Admin, notes: usize) {
    let lines: String = (0..notes)
        .map(|note| format!("id{note} {note}\n"))
        .collect();
    let import = Request::post("/v1/kv/notes/import", lines).field("content-type", "text/plain");
    let imported = admin.send_and_wait(import).await;
    assert_eq!(imported.status, 200, "{}", imported.text());
}

#[tokio::test]
async fn a_put_is_in_the_view_of_the_next_request() {
    let proxy = proxy("view", "", "").await;
    let admin = proxy.admin();
    assert_eq!(said(&proxy, "a").await, (200, "0 none".into()));
    for round in 1..20 {
        admin.set("notes", "a", &round.to_string()).await;
        assert_eq!(said(&proxy, "a").await, (200, format!("1 {round}")));
    }
    admin.set("notes", "b", "2").await;
    let deleted = admin.delete("/v1/kv/notes/a").await;
    assert_eq!(deleted.status, 204);
    assert_eq!(said(&proxy, "a").await, (200, "1 none".into()));
    let told = "throwbar_watch_changes_total{plugin=\"p\"}";
    admin.metric_is(told, |changes| changes >= 21.0).await;
}

#[tokio::test]
async fn a_hundred_thousand_changes_are_told_before_a_version_is_active_and_at_once_after() {
    let proxy = proxy("view", "", "").await;
    let admin = proxy.admin();
    import(&admin, 100_000).await;
    assert_eq!(said(&proxy, "id7").await, (200, "100000 7".into()));
    // Its instances are told before the first request: they are warm.
    admin.push_ok("p", fixture("count")).await;
    admin.push_ok("p", fixture("view")).await;
    let told = "throwbar_watch_changes_total{plugin=\"p\"}";
    admin.metric_is(told, |changes| changes >= 200_000.0).await;
    assert_eq!(said(&proxy, "id99999").await, (200, "100000 99999".into()));
}

#[tokio::test]
async fn a_watcher_that_traps_costs_requests_until_its_data_are_good_again() {
    let proxy = proxy("view", "", "").await;
    let admin = proxy.admin();
    admin.set("notes", "a", "1").await;
    admin.set("notes", "trap", "1").await;
    for _ in 0..2 {
        assert_eq!(said(&proxy, "a").await.0, 503);
    }
    let errors = "throwbar_watch_errors_total{plugin=\"p\",kind=\"trap\"}";
    admin.metric_is(errors, |errors| errors >= 2.0).await;
    // Another version that would trap is refused before anything is asked of it.
    let pushed = admin.push("p", fixture("count")).await;
    assert_eq!(pushed.status, 200, "{}", pushed.text());
    let refused = admin.push("p", fixture("view")).await;
    assert!(refused.status >= 400, "{}", refused.text());
    assert!(refused.text().contains("watcher: "), "{}", refused.text());
    admin.delete("/v1/kv/notes/trap").await;
    admin.push_ok("p", fixture("view")).await;
    assert_eq!(said(&proxy, "a").await, (200, "1 1".into()));
}

#[tokio::test]
async fn a_watcher_that_never_returns_is_cut() {
    let proxy = proxy("view", "", "").await;
    let admin = proxy.admin();
    let config = admin.get("/v1/config").await.text();
    let config = config.replace("watch_deadline = \"10s\"", "watch_deadline = \"30ms\"");
    let applied = admin.put("/v1/config", config).await;
    assert_eq!(applied.status, 200, "{}", applied.text());
    admin.set("notes", "spin", "1").await;
    assert_eq!(said(&proxy, "a").await.0, 503);
    let errors = "throwbar_watch_errors_total{plugin=\"p\",kind=\"deadline\"}";
    admin.metric_is(errors, |errors| errors >= 1.0).await;
}

#[tokio::test]
async fn sessions_have_views_too_whether_or_not_they_share_an_instance() {
    for isolated in [false, true] {
        let (upstream, _closes) = websocket::echo().await;
        let sessions = format!("[plugins.p.sessions]\nisolated = {isolated}");
        let upstream = format!("[upstreams.echo]\nendpoints = [\"{}\"]", upstream.address);
        let proxy = proxy("view", &sessions, &upstream).await;
        let admin = proxy.admin();
        admin.set("notes", "a", "1").await;
        let mut first = websocket::open(proxy.address, &[]).await;
        ask(&mut first, "a", "1").await;
        admin.set("notes", "a", "2").await;
        let mut second = websocket::open(proxy.address, &[]).await;
        for socket in [&mut first, &mut second] {
            ask(socket, "a", "2").await;
            ask(socket, "b", "none").await;
        }
        admin.set("notes", "b", "1").await;
        ask(&mut second, "b", "1").await;
        ask(&mut first, "b", "1").await;
        // It is told of it by the next message, or by the worker before.
        admin.set("notes", "trap", "1").await;
        let errors = "throwbar_watch_errors_total{plugin=\"p\",kind=\"trap\"}";
        admin.metric_is(errors, |errors| errors >= 1.0).await;
        assert_eq!(first.close_code().await, Some(1011));
        assert_eq!(second.close_code().await, Some(1011));
    }
}

#[tokio::test]
async fn the_portable_watcher_of_either_draft_follows_a_bucket() {
    for guest in ["portable-view-1", "portable-view-2"] {
        let proxy = proxy(guest, "", "").await;
        let admin = proxy.admin();
        import(&admin, 2_500).await;
        assert_eq!(said(&proxy, "id7").await, (200, "2500 7".into()));
        admin.set("notes", "id7", "other").await;
        assert_eq!(said(&proxy, "id7").await, (200, "2500 other".into()));
        admin.delete("/v1/kv/notes/id7").await;
        assert_eq!(
            said(&proxy, "id7").await,
            (200, "2499 none".into()),
            "{guest}"
        );
    }
}
