//! Plugins that misbehave hurt the request that met them, and nothing else.

use crate::harness::{Setup, TestProxy, TestUpstream, fixture, fixture_path};

/// A route for the plugin under `/p`, one without a plugin beside it.
fn config(guest: &str, on_failure: &str, access: &str, upstream: &TestUpstream) -> String {
    format!(
        "[buckets.upstreams]\nbackend = \"memory\"\n\
         [upstreams.spare]\nendpoints = [\"{0}\"]\n\
         [plugins.router]\nsource = \"{1}\"\nbuckets = {{ upstreams = \"{access}\" }}\nsettings = {{ header = \"x-id\" }}\n\
         [plugins.router.limits]\ndeadline = \"100ms\"\n\
         [[route]]\nname = \"static\"\nmatch = {{ path = \"/static\" }}\nto = \"{0}\"\n\
         [[route]]\nname = \"plugin\"\nplugin = \"router\"\n{on_failure}\n",
        upstream.address,
        fixture_path(guest).display(),
    )
}

async fn proxy(guest: &str, on_failure: &str, access: &str) -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::saying("up").await;
    let proxy = Setup::new(config(guest, on_failure, access, &upstream))
        .start()
        .await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
    (proxy, upstream)
}

/// A good request is answered by the plugin, and one without a plugin is, too.
async fn serves(proxy: &TestProxy, upstream: &TestUpstream) {
    let good = [("x-id", "id1"), ("x-port", &*upstream.port())];
    assert_eq!(proxy.get("/", &good).await.status, 200, "the next request");
    assert_eq!(
        proxy.get("/static", &[]).await.text(),
        "up",
        "another route"
    );
}

async fn counted(proxy: &TestProxy, outcome: &str, at_least: f64) {
    let begin = format!("throwbar_plugin_calls_total{{plugin=\"router\",outcome=\"{outcome}\"}}");
    proxy
        .admin()
        .metric_is(&begin, |count| count >= at_least)
        .await;
}

#[tokio::test]
async fn a_trap_fails_one_request_and_is_told_with_plugin_and_version() {
    let (proxy, upstream) = proxy("trap", "", "read").await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/", &[("x-trap", "1")]).await.status, 503);
        serves(&proxy, &upstream).await;
    }
    counted(&proxy, "trap", 20.0).await;
    let line = proxy
        .access_line("the trap", |line| line["error"].is_string())
        .await;
    assert_eq!(line["plugin"], "router");
    let active = proxy.admin().plugin("router").await["active"].clone();
    let version = line["version"].as_str().expect("a version");
    assert!(
        active.as_str().expect("a digest").starts_with(version),
        "{line}"
    );
}

#[tokio::test]
async fn a_plugin_that_never_returns_is_cut_at_its_deadline() {
    let (proxy, upstream) = proxy("spin", "", "read").await;
    for _ in 0..5 {
        assert_eq!(proxy.get("/", &[("x-spin", "1")]).await.status, 503);
        serves(&proxy, &upstream).await;
    }
    counted(&proxy, "deadline", 5.0).await;
}

#[tokio::test]
async fn a_plugin_that_never_stops_calling_the_host_is_cut_too() {
    for door in ["kv", "log", "config"] {
        let (proxy, _upstream) = proxy("stall", "", "read").await;
        let response = proxy.get("/", &[("x-door", door)]).await;
        assert!(
            matches!(response.status, 200 | 503),
            "{door}: {}",
            response.status
        );
        assert_eq!(proxy.get("/static", &[]).await.text(), "up", "{door}");
    }
}

#[tokio::test]
async fn a_plugin_that_takes_memory_without_end_is_stopped_at_its_limit() {
    for (guest, field) in [("grow", "x-grow"), ("alloc-big", "x-alloc")] {
        let (proxy, upstream) = proxy(guest, "", "read").await;
        serves(&proxy, &upstream).await;
        let before = proxy.rss_kib();
        for _ in 0..10 {
            assert_eq!(proxy.get("/", &[(field, "1")]).await.status, 503, "{guest}");
            serves(&proxy, &upstream).await;
        }
        // Two workers, 16 MiB each, and what the process needs beside.
        let grown = proxy.rss_kib().saturating_sub(before);
        assert!(grown < 64 << 10, "{guest}: {grown} KiB");
    }
}

const BAD_DECISIONS: [&str; 41] = [
    "address-empty",
    "address-crlf",
    "address-nul",
    "address-space",
    "address-no-port",
    "address-port-0",
    "address-port-65536",
    "address-userinfo",
    "address-long",
    "upstream-unknown",
    "upstream-empty",
    "entry-unknown",
    "entry-max",
    "header-crlf",
    "header-nul",
    "header-name",
    "header-name-empty",
    "header-framing",
    "header-connection",
    "header-host",
    "header-forwarded",
    "header-remove-framing",
    "headers-huge",
    "headers-many",
    "response-crlf",
    "response-framing",
    "path-relative",
    "path-empty",
    "path-absolute",
    "path-crlf",
    "path-space",
    "path-long",
    "key-long",
    "status-0",
    "status-99",
    "status-101",
    "status-600",
    "status-1000",
    "reply-crlf",
    "reply-name",
    "reply-framing",
];

#[tokio::test]
async fn no_bad_decision_is_acted_on() {
    let (proxy, upstream) = proxy("bad-decisions", "", "read").await;
    let mut wrong = Vec::new();
    for kind in BAD_DECISIONS.iter().chain(&["reply-huge", "key-crlf"]) {
        let mut client = proxy.raw().await;
        let message =
            format!("GET / HTTP/1.1\r\nHost: a\r\nX-Bad: {kind}\r\nConnection: close\r\n\r\n");
        client.send(message).await;
        let bytes = client.rest().await;
        let text = String::from_utf8_lossy(&bytes);
        if !matches!(text.get(9..12), Some("502" | "503")) || text.contains("evil") {
            wrong.push(format!("{kind}: {:.120}", text));
        }
        serves(&proxy, &upstream).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    counted(&proxy, "bad_decision", 10.0).await;
}

#[tokio::test]
async fn our_own_ports_and_link_local_are_never_dialled() {
    let (proxy, upstream) = proxy("bad-decisions", "", "read").await;
    let own = proxy.address.port();
    for address in [
        proxy.address.to_string(),
        proxy.admin_address.to_string(),
        format!("localhost:{}", proxy.admin_address.port()),
        format!("[::ffff:127.0.0.1]:{own}"),
        format!("0.0.0.0:{own}"),
        "169.254.169.254:80".into(),
        "[fe80::1]:80".into(),
    ] {
        let fields = [("x-bad", "address-given"), ("x-address", &*address)];
        assert_eq!(proxy.get("/", &fields).await.status, 502, "{address}");
    }
    let fields = [
        ("x-bad", "address-given"),
        ("x-address", &*upstream.address.to_string()),
    ];
    assert_eq!(proxy.get("/", &fields).await.status, 200);
}

#[tokio::test]
async fn a_listener_on_every_interface_is_refused_at_each_of_its_addresses() {
    let upstream = TestUpstream::saying("up").await;
    let mut setup = Setup::new(config("bad-decisions", "", "read", &upstream));
    let web = "name = \"web\"\nlisten = \"";
    setup.frame = setup
        .frame
        .replace(&format!("{web}127.0.0.1"), &format!("{web}0.0.0.0"));
    let proxy = setup.start().await;
    assert!(proxy.address.ip().is_unspecified());
    let mut hosts = vec!["127.0.0.1".to_owned(), "127.0.0.2".into(), "[::1]".into()];
    // The source of a route to a network for documentation is an interface of this machine; nothing is sent.
    let route = std::net::UdpSocket::bind("0.0.0.0:0").expect("bound");
    if route.connect("203.0.113.77:9").is_ok() {
        hosts.push(route.local_addr().expect("bound").ip().to_string());
    }
    for host in hosts {
        let address = format!("{host}:{}", proxy.address.port());
        let fields = [("x-bad", "address-given"), ("x-address", &*address)];
        let path = format!("/{host}");
        assert_eq!(proxy.get(&path, &fields).await.status, 502, "{address}");
        let line = proxy.access_line(&path, |line| line["path"] == path).await;
        assert!(line.to_string().contains("is our own"), "{line}");
    }
    let fields = [
        ("x-bad", "address-given"),
        ("x-address", &*upstream.address.to_string()),
    ];
    assert_eq!(proxy.get("/", &fields).await.text(), "up");
}

#[tokio::test]
async fn the_guard_allows_only_its_networks_and_ports() {
    let upstream = TestUpstream::saying("up").await;
    let config = config("bad-decisions", "", "read", &upstream);
    let guard = format!(
        "[guard]\nallow = [\"127.0.0.0/8\"]\nports = [\"{}\"]\n",
        upstream.address.port()
    );
    let proxy = Setup::new(format!("{guard}{config}")).start().await;
    let port = upstream.address.port();
    let other = TestUpstream::saying("other").await;
    for (address, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (other.address.to_string(), 502),
        (format!("10.1.2.3:{port}"), 502),
        (format!("[::1]:{port}"), 502),
    ] {
        let fields = [("x-bad", "address-given"), ("x-address", &*address)];
        assert_eq!(proxy.get("/", &fields).await.status, status, "{address}");
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a_route_says_what_becomes_of_a_failure() {
    let (proxy, _up) = proxy("trap", "on_failure = { reply = 599 }", "read").await;
    assert_eq!(proxy.get("/", &[("x-trap", "1")]).await.status, 599);
    let (proxy, upstream) =
        self::proxy("trap", "on_failure = { upstream = \"spare\" }", "read").await;
    assert_eq!(proxy.get("/", &[("x-trap", "1")]).await.text(), "up");
    drop(upstream);
    let spare = "on_failure = { upstream = \"spare\" }";
    let (proxy, _upstream) = self::proxy("bad-decisions", spare, "read").await;
    for kind in ["upstream-unknown", "address-no-port"] {
        assert_eq!(
            proxy.get("/", &[("x-bad", kind)]).await.text(),
            "up",
            "{kind}"
        );
    }
    counted(&proxy, "bad_decision", 2.0).await;
}

#[tokio::test]
async fn the_last_good_version_decides_when_the_active_one_cannot() {
    let (proxy, upstream) = proxy("version-a", "on_failure = \"last-good\"", "read").await;
    let good = [
        ("x-id", "id1"),
        ("x-port", &*upstream.port()),
        ("x-trap", "1"),
    ];
    assert_eq!(proxy.get("/", &good).await.header("x-version"), "a");
    proxy.admin().push_ok("router", fixture("trap")).await;
    let response = proxy.get("/", &good).await;
    assert_eq!((response.status, response.header("x-version")), (200, "a"));
    counted(&proxy, "trap", 1.0).await;
}

#[tokio::test]
async fn a_plugins_writes_are_read_by_it_and_kept_together() {
    let (proxy, _upstream) = proxy("writer", "", "write").await;
    let admin = proxy.admin();
    let before = admin.get("/v1/status").await.json()["store"]["revision"].as_u64();
    let steps = "put a 127.0.0.2; get a; put b 127.0.0.3; delete id1; get id1; keys - - 10";
    let response = proxy.get("/", &[("x-do", steps)]).await;
    let text = response.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(response.status, 200, "{text}");
    assert_eq!(lines[0], "ok");
    assert!(lines[1].starts_with("127.0.0.2 @"), "{text}");
    assert_eq!(lines[4], "none");
    assert_eq!(lines[5], "a b");
    // Acknowledged before the reply: here for everybody, under one revision.
    let page = admin.get("/v1/kv/upstreams").await.json();
    let entries = page["entries"].as_array().expect("a list");
    assert_eq!(entries.len(), 2, "{page}");
    assert_eq!(entries[0]["revision"], entries[1]["revision"]);
    assert_eq!(page["revision"].as_u64(), before.map(|r| r + 1));
}

#[tokio::test]
async fn a_trap_or_a_deadline_after_writes_leaves_nothing_of_them() {
    let (proxy, _upstream) = proxy("writer", "", "write").await;
    for end in ["trap", "spin"] {
        let steps = format!("put a 127.0.0.2; put id1 127.0.0.9; {end}");
        assert_eq!(proxy.get("/", &[("x-do", &steps)]).await.status, 503);
        let admin = proxy.admin();
        assert_eq!(admin.get("/v1/kv/upstreams/a").await.status, 404);
        assert_eq!(admin.get("/v1/kv/upstreams/id1").await.text(), "127.0.0.1");
    }
}

#[tokio::test]
async fn writes_that_are_not_granted_are_an_error_for_the_plugin() {
    let (proxy, _upstream) = proxy("writer", "", "read").await;
    let response = proxy
        .get("/", &[("x-do", "get id1; put a 127.0.0.2")])
        .await;
    let text = response.text();
    assert!(
        text.lines()
            .next()
            .is_some_and(|l| l.starts_with("127.0.0.1")),
        "{text}"
    );
    assert!(
        text.lines()
            .nth(1)
            .is_some_and(|l| l.starts_with("error: ")),
        "{text}"
    );
    assert_eq!(proxy.admin().get("/v1/kv/upstreams/a").await.status, 404);
}

#[tokio::test]
async fn a_value_that_is_no_address_is_refused_with_the_whole_batch() {
    let (proxy, _upstream) = proxy("writer", "", "write").await;
    let response = proxy
        .get("/", &[("x-do", "put a 127.0.0.2; put b not/an/address")])
        .await;
    let admin = proxy.admin();
    let is_there = admin.get("/v1/kv/upstreams/a").await.status == 200;
    // Told to the plugin at once, which goes on; or at the commit, which fails the request. Never half.
    let told = response.text().lines().any(|l| l.starts_with("error: "));
    assert!(if told {
        response.status == 200 && is_there
    } else {
        response.status == 503 && !is_there
    });
    assert_eq!(admin.get("/v1/kv/upstreams/b").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_that_race_for_a_key_one_wins_and_no_write_is_lost() {
    let (proxy, _upstream) = proxy("writer", "on_failure = { reply = 599 }", "write").await;
    let admin = proxy.admin();
    for round in 0..10 {
        let now = admin.get("/v1/kv/upstreams/id1").await;
        let revision = now.header("etag").trim_matches('"').to_owned();
        let racers: Vec<_> = (0..8)
            .map(|n| {
                let steps = format!("cas id1 {revision} 127.0.{}.{}", round + 1, n + 1);
                let request = crate::harness::Request::get("/").field("x-do", &steps);
                tokio::spawn(request.send(proxy.address))
            })
            .collect();
        let mut won = 0;
        for racer in racers {
            let response = racer.await.expect("answered");
            match response.status {
                200 if response.text() == "ok\n" => won += 1,
                // It saw the newer revision and was told.
                200 => assert!(
                    response.text().starts_with("error: "),
                    "{}",
                    response.text()
                ),
                status => assert_eq!(status, 599, "lost at the commit"),
            }
        }
        assert_eq!(won, 1, "round {round}");
    }
}

#[tokio::test]
async fn a_plugin_that_writes_too_much_is_told_and_nothing_is_kept_in_part() {
    let (proxy, _upstream) = proxy("writer", "", "write").await;
    let response = proxy.get("/", &[("x-do", "fill 2000 127.0.0.2")]).await;
    let page = proxy
        .admin()
        .get("/v1/kv/upstreams?prefix=fill-&limit=10000")
        .await
        .json();
    let kept = page["entries"].as_array().expect("a list").len();
    let told = response.text().starts_with("error: ");
    assert!(
        told || response.status == 503,
        "{} {}",
        response.status,
        response.text()
    );
    assert!(kept == 0 || kept == 1000, "{kept}");
}

#[tokio::test]
async fn a_flood_of_log_lines_is_limited_and_counted() {
    let (proxy, _upstream) = proxy("log-flood", "", "read").await;
    let response = proxy
        .get("/", &[("x-lines", "5000"), ("x-bytes", "37")])
        .await;
    assert!(matches!(response.status, 200 | 503));
    let begin = "throwbar_plugin_log_dropped_total{plugin=\"router\"}";
    proxy
        .admin()
        .metric_is(begin, |count| count >= 1000.0)
        .await;
    let line = "=".repeat(37);
    let logged = proxy.stderr().matches(&line).count();
    assert!(logged <= 400, "{logged} lines");
    assert_eq!(proxy.get("/static", &[]).await.text(), "up");
}

#[tokio::test]
async fn bad_subscriptions_are_refused_at_upload() {
    let source = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/guests/examples/bad-subscription.rs"
    ))
    .expect("its source");
    let kinds: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" =>"))
        .map(|(kind, _)| kind)
        .filter(|kind| !kind.is_empty())
        .collect();
    assert!(kinds.len() > 5, "{kinds:?}");
    let plugins: String = kinds
        .iter()
        .map(|kind| format!("[plugins.{kind}]\nsettings = {{ bad = \"{kind}\" }}\n"))
        .collect();
    let config = format!("[buckets.upstreams]\n{plugins}[[route]]\nreply = {{ status = 200 }}\n");
    let proxy = TestProxy::start(&config).await;
    for kind in kinds {
        let response = proxy.admin().push(kind, fixture("bad-subscription")).await;
        assert_eq!(response.status, 422, "{kind}: {}", response.text());
        let detail = response.json()["detail"]
            .as_str()
            .expect("a reason")
            .to_owned();
        assert!(detail.len() > 20, "{kind}: {detail}");
    }
    assert_eq!(proxy.get("/", &[]).await.status, 200);
}
