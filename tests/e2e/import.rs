//! What people have: a config of Caddy becomes a config and a filled bucket; maps of others go into a bucket.

use crate::harness::proxy::{Ended, run};
use crate::harness::{Admin, TestProxy, TestUpstream, websocket};
use serde_json::json;
use std::path::Path;

const CADDY: &str = include_str!("../../examples/from-caddy/caddy.json");

/// The example on ports from the system.
fn caddy_json() -> String {
    CADDY
        .replace("\":8080\"", "\"127.0.0.1:0\"")
        .replace("localhost:2019", "localhost:0")
        .replace("\"127.0.0.2\"", "\"127.0.0.1\"")
}

async fn import(dir: &Path, arguments: &[&str]) -> Ended {
    run(
        dir,
        &[&["import", "caddy", "caddy.json"], arguments].concat(),
    )
    .await
}

async fn imported() -> TestProxy {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("caddy.json"), caddy_json()).expect("written");
    let ended = import(dir.path(), &["--out", "made", "--without-token"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended
            .stdout
            .contains("1 listener, 2 routes, 1 plugin, 1 bucket with 2 keys"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("serve made/throwbar.toml"));
    TestProxy::start_in(dir, &["serve", "made/throwbar.toml"]).await
}

#[tokio::test]
async fn a_config_of_caddy_goes_on_doing_its_job_with_its_own_requests_to_change_the_map() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = imported().await;
    let port = upstream.port();
    let fields = |id| [("x-id", id), ("x-port", &*port)];
    assert_eq!(proxy.get("/a", &fields("id1")).await.text(), "ok");
    let received = upstream.only();
    assert_eq!(
        (received.header("x-id"), received.header("x-port")),
        (None, None)
    );
    for fields in [
        &fields("nobody")[..],
        &[("x-id", "id1")],
        &[("x-port", "80")],
        &[("x-id", "id1"), ("x-port", "8o")],
    ] {
        let response = proxy.get("/", fields).await;
        assert_eq!(response.status, 404);
        let id = fields
            .iter()
            .find(|(name, _)| *name == "x-id")
            .map_or("", |(_, id)| *id);
        assert_eq!(
            response.text(),
            format!("{{\"error\": \"Invalid request\", \"id\": \"{id}\"}}")
        );
        assert_eq!(response.header("content-type"), "application/json");
    }
    // As Caddy's users change the map, without a token and with a stream open.
    let (echo, _closes) = websocket::echo().await;
    let mut socket =
        websocket::open(proxy.address, &[("x-id", "id1"), ("x-port", &echo.port())]).await;
    let admin = Admin::new(proxy.admin_address, None);
    let patch = crate::harness::Request::new("PATCH", "/id/proxy-map/mappings")
        .field("content-type", "application/json")
        .body(r#"[{"input": "new", "outputs": ["127.0.0.1"]}]"#);
    assert_eq!(admin.send(patch).await.status, 200);
    assert_eq!(proxy.get("/", &fields("new")).await.text(), "ok");
    assert_eq!(proxy.get("/", &fields("id1")).await.status, 404);
    socket.echo("still open").await;
}

/// The address of an upstream that says this.
async fn saying(text: &'static str) -> (TestUpstream, String) {
    let upstream = TestUpstream::saying(text).await;
    let address = format!("127.0.0.1:{}", upstream.port());
    (upstream, address)
}

#[tokio::test]
async fn defaults_and_expressions_of_caddys_map_find_what_they_found() {
    let (_one, one) = saying("one").await;
    let (_two, two) = saying("two").await;
    let (_other, other) = saying("default").await;
    let map = json!({
        "handler": "map", "@id": "ids", "source": "{http.request.header.X-ID}",
        "destinations": ["{to}"], "defaults": [other],
        "mappings": [
            {"input": "b1", "outputs": [one]},
            {"input_regexp": "^b", "outputs": [two]},
            {"input_regexp": "^.1", "outputs": [one]},
            {"input": "b2", "outputs": [one]}
        ]
    });
    let proxy = json!({"handler": "reverse_proxy", "upstreams": [{"dial": "{to}"}]});
    let server = json!({"listen": ["127.0.0.1:0"], "routes": [{"handle": [map, proxy]}]});
    let caddy = json!({
        "admin": {"listen": "localhost:0"}, "apps": {"http": {"servers": {"srv0": server}}}
    });
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("caddy.json"), caddy.to_string()).expect("written");
    let ended = import(dir.path(), &["--out", "made", "--without-token"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let never = "mappings[3]: input \"b2\" is never found";
    assert!(ended.stdout.contains(never), "{}", ended.stdout);
    let proxy = TestProxy::start_in(dir, &["serve", "made/throwbar.toml"]).await;
    let found = async |keys: &[(&str, &str)]| {
        for (key, says) in keys {
            let answer = proxy.get("/", &[("x-id", *key)]).await.text();
            assert_eq!(answer, *says, "{key:?}");
        }
        assert_eq!(proxy.get("/", &[]).await.text(), "default");
    };
    found(&[
        ("b1", "one"),
        ("b2", "two"),
        ("b", "two"),
        ("a1", "one"),
        ("a", "default"),
        ("", "default"),
    ])
    .await;
    // Mappings are replaced, and the default is none of them.
    let body = json!([{"input": "a", "outputs": [two]}, {"input_regexp": "2$", "outputs": [one]}]);
    let patch = crate::harness::Request::new("PATCH", "/id/ids/mappings")
        .field("content-type", "application/json")
        .body(body.to_string());
    let admin = Admin::new(proxy.admin_address, None);
    assert_eq!(admin.send(patch).await.status, 200);
    found(&[("a", "two"), ("b2", "one"), ("b1", "default")]).await;
    let shown = admin.send(crate::harness::Request::get("/id/ids/mappings"));
    assert_eq!(shown.await.json(), body);
}

/// Where a bucket has no default, its key is one like any other.
#[tokio::test]
async fn a_star_in_a_bucket_of_exact_keys_is_no_default() {
    let text = "[buckets.plain]\n[compat.caddy]\nplain = \"plain\"\n";
    let proxy = TestProxy::start(text).await;
    let admin = proxy.admin();
    let body = json!([{"input": "*", "outputs": ["127.0.0.2"]}, {"input": "x", "outputs": [""]}]);
    for _ in 0..2 {
        let patch = crate::harness::Request::new("PATCH", "/id/plain/mappings")
            .field("content-type", "application/json")
            .body(body.to_string());
        let replaced = admin.send(patch).await;
        assert_eq!(replaced.status, 200, "{}", replaced.text());
    }
}

#[tokio::test]
async fn a_default_that_comes_or_changes_while_mappings_are_replaced_stays() {
    let setup = "[buckets.ids]\nlookup = [\"exact\", \"regex\", \"default\"]\n\
                 regexes_max = 1000\n[compat.caddy]\nids = \"ids\"\n";
    let proxy = TestProxy::start(setup).await;
    let admin = proxy.admin();
    let mappings: Vec<_> = (0..500)
        .map(|n| json!({"input_regexp": format!("^agent-{n}-[a-z0-9]{{1,9}}$"), "outputs": ["127.0.0.2"]}))
        .collect();
    let body = serde_json::to_string(&mappings).expect("JSON");
    // Whenever in the course of a replacement it happens, of which nobody outside is told.
    for delay in [0, 5, 20, 50, 100, 200].map(std::time::Duration::from_millis) {
        for before in [None, Some("127.0.0.3")] {
            admin.delete("/v1/kv/ids/*").await;
            if let Some(before) = before {
                admin.set("ids", "*", before).await;
            }
            let patch =
                crate::harness::Request::new("PATCH", "/id/ids/mappings").body(body.clone());
            let changing = async {
                tokio::time::sleep(delay).await;
                admin.set("ids", "*", "127.0.0.4").await;
            };
            let (replaced, ()) = tokio::join!(admin.send(patch), changing);
            assert_eq!(replaced.status, 200, "{delay:?}: {}", replaced.text());
            assert_eq!(
                admin.get("/v1/kv/ids/*").await.text(),
                "127.0.0.4",
                "{delay:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_import_writes_all_or_nothing_and_never_over_something() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |text: &str| std::fs::write(dir.path().join("caddy.json"), text).expect("written");
    let entries = || std::fs::read_dir(dir.path()).expect("read").count();
    write(&caddy_json());
    let shown = import(dir.path(), &["--dry-run"]).await;
    assert_eq!((shown.code, entries()), (0, 1), "{}", shown.stderr);
    assert!(
        shown.stdout.contains("[plugins.by-header]"),
        "{}",
        shown.stdout
    );

    write(&caddy_json().replace("\"static_response\"", "\"file_server\""));
    let refused = import(dir.path(), &["--out", "made"]).await;
    assert_eq!((refused.code, entries()), (3, 1));
    assert!(
        refused
            .stderr
            .contains("handler \"file_server\" has no counterpart"),
        "{}",
        refused.stderr
    );
    let without = import(dir.path(), &["--out", "made", "--skip-unsupported"]).await;
    assert_eq!((without.code, entries()), (0, 2), "{}", without.stderr);
    assert!(without.stdout.contains("left out: "), "{}", without.stdout);

    let again = import(dir.path(), &["--out", "made", "--skip-unsupported"]).await;
    assert_eq!((again.code, entries()), (1, 2));
    assert!(
        again.stderr.contains(
            "made: exists already, expected a directory to make: give another one as --out"
        ),
        "{}",
        again.stderr
    );
    write(&caddy_json());
    let unnamed = import(dir.path(), &[]).await;
    assert_eq!((unnamed.code, entries()), (0, 3), "{}", unnamed.stderr);
    assert!(dir.path().join("throwbar-config/throwbar.toml").is_file());
    write(":8080 {\n}\n");
    let caddyfile = import(dir.path(), &["--out", "other"]).await;
    assert_eq!((caddyfile.code, entries()), (3, 3));
    assert!(
        caddyfile.stderr.contains("caddy adapt"),
        "{}",
        caddyfile.stderr
    );
}

const BYTES: &str = "[buckets.names]\nvalues = \"bytes\"\n[[route]]\nreply = { status = 200 }\n";

#[tokio::test]
async fn maps_of_haproxy_and_nginx_and_tables_become_entries() {
    let proxy = TestProxy::start(BYTES).await;
    let write = |name: &str, text: &str| std::fs::write(proxy.file(name), text).expect("written");
    write(
        "hosts.map",
        "# hosts\na.example.com   app one\na.example.com other\n",
    );
    write(
        "nginx.conf",
        "http {\n map $http_x_id $upstream {\n  default \"\";\n  id1 10.0.0.1;\n  ~^x 10.0.0.2;\n }\n}\n",
    );
    write(
        "sheet.csv",
        "note,Key,Value\r\n,\"k,1\",\"v \"\"1\"\"\"\r\n",
    );
    let haproxy = proxy
        .kv(&["import", "names", "hosts.map", "--format", "haproxy-map"])
        .await;
    assert_eq!(haproxy.code, 0, "{}", haproxy.stderr);
    assert!(
        haproxy
            .stderr
            .contains("line 3: key \"a.example.com\" is on line 2 already")
    );
    let nginx = ["import", "names", "nginx.conf", "--format", "nginx-map"];
    let refused = proxy.kv(&nginx).await;
    assert_eq!(refused.code, 3);
    assert!(
        refused.stderr.contains("line 5: ~^x 10.0.0.2"),
        "{}",
        refused.stderr
    );
    let skipped = proxy
        .kv(&[&nginx[..], &["--skip-unsupported"]].concat())
        .await;
    assert_eq!(skipped.code, 0, "{}", skipped.stderr);
    let csv = proxy
        .kv(&["import", "names", "sheet.csv", "--format", "csv"])
        .await;
    assert_eq!(csv.code, 0, "{}", csv.stderr);

    let all = proxy
        .kv(&["export", "names", "--format", "csv"])
        .await
        .stdout;
    assert_eq!(
        all,
        "key,value,revision,expires_at\na.example.com,app one,1,\nid1,10.0.0.1,2,\n\"k,1\",\"v \"\"1\"\"\",3,\n"
    );
    let lines = proxy.kv(&["export", "names"]).await;
    assert_eq!(
        (lines.code, &*lines.stdout),
        (0, "a.example.com app one\nid1 10.0.0.1\nk,1 v \"1\"\n")
    );
}

#[tokio::test]
async fn a_diff_shows_what_an_import_would_change_and_changes_nothing() {
    let proxy = TestProxy::start(BYTES).await;
    let write = |text: &str| std::fs::write(proxy.file("map.txt"), text).expect("written");
    write("same 1\nother 1\ngone 1\n");
    assert_eq!(proxy.kv(&["import", "names", "map.txt"]).await.code, 0);
    write("same 1\nother 2\nnew 1\n");
    let replace = ["import", "names", "map.txt", "--replace"];
    let shown = proxy.kv(&[&replace[..], &["--diff"]].concat()).await;
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert_eq!(
        lines[..3],
        ["- gone 1", "+ new 1", "~ other 1 -> 2"],
        "{}",
        shown.stdout
    );
    assert!(
        lines[3].contains("1 added, 1 changed, 1 deleted, 1 as before; nothing changed"),
        "{}",
        shown.stdout
    );
    assert_eq!(proxy.kv(&["get", "names", "gone"]).await.stdout, "1\n");
    assert_eq!(proxy.kv(&replace).await.code, 0);
    let diff = [&replace[..], &["--diff"]].concat();
    let none = proxy.kv(&diff).await;
    assert!(
        none.stdout.starts_with("names: would be 3 as before"),
        "{}",
        none.stdout
    );
}

#[tokio::test]
async fn an_export_that_its_format_cannot_hold_is_refused_whole() {
    let proxy = TestProxy::start(BYTES).await;
    let admin = proxy.admin();
    admin.set("names", "with%20space", "v").await;
    let get = async |format: &str| {
        let path = format!("/v1/kv/names?format={format}");
        admin.send(crate::harness::Request::get(&path)).await
    };
    let lines = get("lines").await;
    assert_eq!(lines.status, 422);
    assert!(
        lines.text().contains("\\\"with space\\\""),
        "{}",
        lines.text()
    );
    assert_eq!(
        get("csv").await.text(),
        "key,value,revision,expires_at\nwith space,v,1,\n"
    );
    assert_eq!(get("xml").await.status, 400);
    let cut = proxy.kv(&["export", "names", "out.txt"]).await;
    assert_eq!(cut.code, 1, "{}", cut.stderr);
    assert!(!proxy.file("out.txt").exists());
}

#[tokio::test]
async fn masks_expressions_and_defaults_become_keys_where_the_bucket_declares_them() {
    let declared = "lookup = [\"prefix\", \"suffix\", \"regex\", \"default\"]";
    let config = format!("[buckets.paths]\n{declared}\n[buckets.names]\nvalues = \"bytes\"\n");
    let proxy = TestProxy::start(&(config + "[[route]]\nreply = { status = 200 }\n")).await;
    let write = |name: &str, text: &str| std::fs::write(proxy.file(name), text).expect("written");
    write("paths.map", "/api/ 10.0.0.1:80\n/ 10.0.0.2:80\n");
    write(
        "nginx.conf",
        "map $host $to {\n hostnames;\n default 10.0.0.3:80;\n *.example.com 10.0.0.4:80;\n ~^v[0-9] 10.0.0.5:80;\n}\n",
    );
    let map = ["paths.map", "--format", "haproxy-map", "--match", "beg"];
    let undeclared = proxy.kv(&[&["import", "names"], &map[..]].concat()).await;
    assert_eq!(undeclared.code, 3, "{}", undeclared.stderr);
    assert!(
        undeclared
            .stderr
            .contains("expected \"prefix\" in `lookup`"),
        "{}",
        undeclared.stderr
    );
    let nginx = ["nginx.conf", "--format", "nginx-map"];
    for file in [&map[..], &nginx[..]] {
        let imported = proxy.kv(&[&["import", "paths"], file].concat()).await;
        assert_eq!(imported.code, 0, "{}", imported.stderr);
    }
    for (key, value) in [
        ("/api/x", "10.0.0.1:80"),
        ("/x", "10.0.0.2:80"),
        ("a.example.com", "10.0.0.4:80"),
        ("v7", "10.0.0.5:80"),
        ("x", "10.0.0.3:80"),
    ] {
        let found = proxy.kv(&["lookup", "paths", key]).await;
        assert!(found.stdout.contains(value), "{key}: {}", found.stdout);
    }
}

/// The key in `x-name`, in a bucket of these kinds.
fn by_name(lookup: &str) -> String {
    format!(
        "[buckets.names]\nlookup = [{lookup}]\n[plugins.by-name]\nsource = \"builtin:by-header\"\n\
         buckets = {{ names = \"read\" }}\nlimits = {{ deadline = \"1s\" }}\n\
         settings = {{ header = \"x-name\", port-header = \"\", bucket = \"names\", absent = \"empty\" }}\n\
         [[route]]\nplugin = \"by-name\"\n"
    )
}

#[tokio::test]
async fn masks_and_the_default_of_nginx_route_what_they_routed() {
    let (_head, head) = saying("head").await;
    let (_tail, tail) = saying("tail").await;
    let (_long, long) = saying("long tail").await;
    let (_first, first) = saying("first").await;
    let (_other, other) = saying("default").await;
    let proxy = TestProxy::start(&by_name("\"prefix\", \"suffix\", \"default\"")).await;
    let write = |name: &str, text: &str| std::fs::write(proxy.file(name), text).expect("written");
    write(
        "tails.map",
        &format!("mail.* {tail};\nmail.long.* {long};\n"),
    );
    let of_tails =
        format!("map $http_x_name $to {{ hostnames; default {other}; include tails.map; }}");
    let of_all = format!(
        "map $http_x_name $to {{\n hostnames;\n volatile;\n default {other};\n *.example.com {head};\n \
         include *.map;\n ~^z {first};\n ~^mail.?$ {first};\n ~^m {other};\n}}"
    );
    write("tails.conf", &of_tails);
    write("all.conf", &of_all);
    let import = async |proxy: &TestProxy, file: &Path| {
        let file = file.to_str().expect("UTF-8");
        proxy
            .kv(&["import", "names", file, "--format", "nginx-map"])
            .await
    };
    let found = async |proxy: &TestProxy, keys: &[(&str, &str)]| {
        for (key, says) in keys {
            let answer = proxy.get("/", &[("x-name", *key)]).await.text();
            assert_eq!(answer, *says, "{key:?}");
        }
        assert_eq!(proxy.get("/", &[]).await.text(), "default");
    };
    let tails = [
        ("mail.x.org", "tail"),
        ("mail.long.org", "long tail"),
        ("mail", "default"),
        ("mailx.org", "default"),
    ];

    let imported = import(&proxy, &proxy.file("tails.conf")).await;
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    found(&proxy, &tails).await;
    // A prefix would be tried before the suffix, which nginx tries first.
    let refused = import(&proxy, &proxy.file("all.conf")).await;
    assert_eq!(refused.code, 3);
    let told = "tails.map: line 1: mail.* 127.0.0.1:";
    let order = "nginx tries *.example.com on line 5 before it";
    assert!(
        refused.stderr.contains(told) && refused.stderr.contains(order),
        "{}",
        refused.stderr
    );

    let with_regex = TestProxy::start(&by_name("\"suffix\", \"regex\", \"default\"")).await;
    let imported = import(&with_regex, &proxy.file("all.conf")).await;
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    found(&with_regex, &tails[..2]).await;
    found(
        &with_regex,
        &[
            ("mail.example.com", "head"),
            ("MAIL.Example.com", "head"),
            ("mail", "first"),
            ("mailx", "first"),
            ("mx", "default"),
            ("z", "first"),
        ],
    )
    .await;
}
