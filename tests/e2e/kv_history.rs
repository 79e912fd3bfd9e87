//! The past of keys, who wrote them, and back to it: by the admin API and by commands.

use crate::harness::proxy::PATIENT;
use crate::harness::{Admin, Request, Setup, TestProxy, eventually, fixture_path};
use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A bucket on disk and one in memory, a plugin that writes to the first, and a token for a part of that.
fn config() -> String {
    format!(
        r#"
[buckets.notes]
values = "bytes"
history = 4
[buckets.brief]
values = "bytes"
backend = "memory"
history = 4
[buckets.plain]
values = "bytes"
[admin.tokens.agents]
token = "${{file:agents.token}}"
buckets = {{ notes = "write" }}
prefix = "eu-"
[plugins.router]
source = "{}"
buckets = {{ notes = "write" }}
[[route]]
name = "by-id"
plugin = "router"
{PATIENT}"#,
        fixture_path("writer").display()
    )
}

/// A proxy whose admin API is a Unix socket for commands, and its audit log in a file.
async fn proxy() -> TestProxy {
    let mut setup = Setup::new(config());
    setup.frame = setup
        .frame
        .replace("[log]\n", "[log]\naudit = \"audit.log\"\n");
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("agents.token"), format!("{SECRET}\n")).expect("written");
    std::fs::write(dir.path().join("throwbar.toml"), setup.text()).expect("written");
    TestProxy::start_in(dir, &["serve", "throwbar.toml"]).await
}

async fn put_as(admin: &Admin, actor: &str, path: &str, value: &str) -> u64 {
    let request = Request::new("PUT", path).field("x-throwbar-actor", actor);
    let response = admin.send(request.body(value.to_owned())).await;
    assert!(response.status < 300, "{}", response.text());
    response.json()["revision"].as_u64().expect("a revision")
}

async fn history(admin: &Admin, bucket: &str, key: &str) -> Vec<Value> {
    let path = format!("/v1/kv/{bucket}/{key}?history");
    let response = admin.get(&path).await;
    assert_eq!(response.status, 200, "{}", response.text());
    let rows = response.json()["history"].clone();
    rows.as_array().expect("a list").clone()
}

/// The event, the value and who, of each row.
fn told(rows: &[Value]) -> Vec<(&str, &str, &str)> {
    let told = rows.iter().map(|row| {
        let text = |name: &str| row[name].as_str().unwrap_or("-");
        (text("event"), text("value"), text("by"))
    });
    told.collect()
}

#[tokio::test]
async fn who_wrote_a_key_when_and_how_is_told_and_survives_kill_9() {
    let mut proxy = proxy().await;
    let admin = proxy.admin();
    let plugin = admin.plugin("router").await;
    let version = &plugin["active"].as_str().expect("a digest")[..12];
    let plugin = format!("plugin router@{version}");
    let said = proxy
        .get("/", &[("x-do", "bucket notes; put eu-a 1")])
        .await;
    assert_eq!(said.text(), "ok\n");
    put_as(&admin, "ann", "/v1/kv/notes/eu-a", "2").await;
    let limited = Admin::new(proxy.admin_address, Some(SECRET.to_owned()));
    assert_eq!(
        limited.put("/v1/kv/notes/eu-a?ttl=300ms", "3").await.status,
        200
    );
    eventually("it has ended", async || {
        (admin.get("/v1/kv/notes/eu-a").await.status == 404).then_some(())
    })
    .await;
    let rows = history(&admin, "notes", "eu-a").await;
    let expected = [
        ("expired", "-", "-"),
        ("changed", "3", "agents"),
        ("changed", "2", "ann"),
        ("created", "1", &*plugin),
    ];
    assert_eq!(told(&rows), expected);
    assert!(rows[1]["expires_at"].is_string(), "{}", rows[1]);
    assert!(
        rows.iter()
            .all(|row| row["at"].as_str().is_some_and(|at| at.ends_with('Z')))
    );
    proxy.kill().await;
    proxy.start_again().await;
    let admin = proxy.admin();
    assert_eq!(history(&admin, "notes", "eu-a").await, rows);
    put_as(&admin, "ann", "/v1/kv/notes/eu-a", "4").await;
    let after = history(&admin, "notes", "eu-a").await;
    assert_eq!(told(&after)[0], ("created", "4", "ann"));
    assert_eq!(after[1..], rows[..3], "the last four are kept");

    // In memory it is as long as the process lives.
    put_as(&admin, "ann", "/v1/kv/brief/k", "1").await;
    assert_eq!(
        told(&history(&admin, "brief", "k").await),
        [("created", "1", "ann")]
    );
    for (path, status, code) in [
        ("/v1/kv/notes/none?history", 404, "no-such-key"),
        ("/v1/kv/plain/k?history", 404, "no-history"),
        ("/v1/kv/none/k?history", 404, "no-such-bucket"),
        ("/v1/kv/notes/eu-a?history=maybe", 400, "query"),
    ] {
        let refused = admin.get(path).await;
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (status, &json!(code)),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_key_goes_back_by_a_write_like_any_other() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    for value in ["1", "2"] {
        put_as(&admin, "ann", "/v1/kv/notes/a%2Fb", value).await;
    }
    let shown = proxy.kv(&["undo", "notes", "a/b", "--diff"]).await.ok();
    assert!(
        shown.contains("~ a/b 2 -> 1") && shown.contains("nothing changed"),
        "{shown}"
    );
    let done = proxy.kv(&["undo", "notes", "a/b"]).await.ok();
    assert_eq!(done, "notes: 1 changed   revision 3\n");
    assert_eq!(proxy.kv(&["get", "notes", "a/b"]).await.ok(), "1\n");
    let table = proxy.kv(&["history", "notes", "a/b"]).await.ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("REVISION  TIME"), "{table}");
    assert!(
        lines[1].contains("admin") && lines[1].contains("changed (undo)"),
        "{table}"
    );
    assert!(
        lines[3].contains("ann") && lines[3].contains("created"),
        "{table}"
    );
    // Once more, and the change is there again; then back to before it was created.
    proxy.kv(&["undo", "notes", "a/b"]).await.ok();
    assert_eq!(proxy.kv(&["get", "notes", "a/b"]).await.ok(), "2\n");
    let future = proxy.kv(&["undo", "notes", "a/b", "--to", "99999"]).await;
    assert_eq!(future.code, 1, "{}", future.stderr);
    let expected = "revision 99999 is not of this store, which is at ";
    assert!(future.stderr.contains(expected), "{}", future.stderr);
    proxy.kv(&["undo", "notes", "a/b", "--to", "0"]).await.ok();
    assert_eq!(proxy.kv(&["exists", "notes", "a/b"]).await.code, 1);
    proxy.kv(&["undo", "notes", "a/b", "--to", "2"]).await.ok();
    // What is required of the key is so, whatever became of others.
    let tag = admin
        .get("/v1/kv/notes/a%2Fb")
        .await
        .header("etag")
        .to_owned();
    put_as(&admin, "ann", "/v1/kv/notes/other", "1").await;
    for (tag, status) in [("\"1\"", 412), (&*tag, 200), (&*tag, 412)] {
        let undo = Request::post("/v1/kv/notes/undo", r#"{"key": "a/b"}"#);
        let undone = admin.send(undo.field("if-match", tag)).await;
        assert_eq!(undone.status, status, "{tag}: {}", undone.text());
    }
    proxy.kv(&["undo", "notes", "a/b"]).await.ok();
    let json = proxy.kv(&["history", "notes", "a/b", "--json"]).await.ok();
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["history"][0]["undo"], true);
    assert_eq!(json["history"][0]["value"], "2");
    let audit = std::fs::read_to_string(proxy.file("audit.log")).expect("a log");
    assert!(audit.contains("/v1/kv/notes/undo"), "{audit}");
    for (arguments, code, said) in [
        (
            &["undo", "notes", "a/b", "--if-revision", "1"][..],
            1,
            "is at revision",
        ),
        (&["undo", "notes", "none"], 1, "is not kept"),
        (&["undo", "plain", "k"], 1, "keeps no history"),
        (&["undo", "notes"], 2, "<KEY|--revision <REVISION>>"),
        (&["undo", "notes", "k", "--revision", "1"], 2, "--revision"),
        (
            &["undo", "notes", "--revision", "999"],
            1,
            "no change of revision 999",
        ),
        (&["history", "plain", "k"], 1, "history = 10"),
    ] {
        proxy.kv(arguments).await.refused(code, said);
    }
    for body in [
        json!({}),
        json!({ "key": "k", "revision": 1 }),
        json!({ "keys": ["k"] }),
    ] {
        let refused = admin.post("/v1/kv/notes/undo", body.to_string()).await;
        assert_eq!(refused.status, 422, "{body}: {}", refused.text());
    }
}

#[tokio::test]
async fn a_bad_import_goes_back_as_one() {
    let proxy = proxy().await;
    let write = |text: &str| std::fs::write(proxy.file("map.txt"), text).expect("written");
    let import = ["import", "notes", "map.txt", "--replace", "--json"];
    write("a 1\nb 1\nc 1\n");
    proxy.kv(&import).await.ok();
    write("a 2\nc 1\nd 2\n");
    let bad: Value = serde_json::from_str(&proxy.kv(&import).await.ok()).expect("JSON");
    let revision = bad["revision"].to_string();
    let undo = ["undo", "notes", "--revision", &revision];
    let shown = proxy.kv(&[&undo[..], &["--diff"]].concat()).await.ok();
    assert_eq!(
        shown,
        "~ a 2 -> 1\n+ b 1\n- d 2\nnotes: would be 1 added, 1 changed, 1 deleted; nothing changed\n"
    );
    proxy.kv(&["set", "notes", "d=3"]).await.ok();
    let changed = proxy.kv(&undo).await;
    assert_eq!(changed.code, 1);
    let said = "1 of the keys of revision 2 were changed since, the first is \"d\" at revision 3";
    assert!(changed.stderr.contains(said), "{}", changed.stderr);
    let done = proxy
        .kv(&[&undo[..], &["--skip-changed"]].concat())
        .await
        .ok();
    assert!(
        done.contains("1 added, 1 changed, 1 left as they are"),
        "{done}"
    );
    assert_eq!(
        proxy.kv(&["export", "notes"]).await.ok(),
        "a 1\nb 1\nc 1\nd 3\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_undos_at_once_one_wins_and_a_put_between_is_never_lost() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    for bucket in ["notes", "brief"] {
        let path = format!("/v1/kv/{bucket}/k");
        for round in 0..5 {
            put_as(&admin, "ann", &path, &format!("before {round}")).await;
            let revision = put_as(&admin, "ann", &path, "bad").await;
            let undo = |admin: Admin| {
                let body = json!({ "key": "k" }).to_string();
                let path = format!("/v1/kv/{bucket}/undo");
                let request = Request::post(&path, body);
                let request = request.field("if-match", &format!("\"{revision}\""));
                async move { admin.send(request).await }
            };
            let undos: Vec<_> = (0..6).map(|_| tokio::spawn(undo(admin.clone()))).collect();
            let put = {
                let (admin, path) = (admin.clone(), path.clone());
                let request = Request::new("PUT", &path).body("put");
                let request = request.field("if-match", &format!("\"{revision}\""));
                tokio::spawn(async move { admin.send(request).await })
            };
            let mut won = 0;
            for undo in undos {
                let response = undo.await.expect("it ended");
                assert!(matches!(response.status, 200 | 412), "{}", response.text());
                won += u32::from(response.status == 200);
            }
            let put = put.await.expect("it ended").status == 200;
            assert_eq!(won + u32::from(put), 1, "one of all wins");
            let found = admin.get(&path).await.text();
            let expected = if put {
                "put".to_owned()
            } else {
                format!("before {round}")
            };
            assert_eq!(found, expected);
        }
    }
}

#[tokio::test]
async fn a_limited_token_sees_and_undoes_its_own_keys_only() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    let limited = Admin::new(proxy.admin_address, Some(SECRET.to_owned()));
    for (key, value) in [("eu-a", "1"), ("us-a", "1"), ("eu-a", "2"), ("us-a", "2")] {
        admin.set("notes", key, value).await;
    }
    let both = json!({ "set": { "eu-a": "3", "us-a": "3" } }).to_string();
    let both = admin.post("/v1/kv/notes/batch", both).await.json()["revision"].clone();
    assert_eq!(history(&limited, "notes", "eu-a").await.len(), 3);
    let undo = async |body: Value| limited.post("/v1/kv/notes/undo", body.to_string()).await;
    assert_eq!(limited.get("/v1/kv/notes/us-a?history").await.status, 403);
    assert_eq!(undo(json!({ "key": "us-a" })).await.status, 403);
    assert_eq!(undo(json!({ "key": "us-none" })).await.status, 403);
    let beyond = undo(json!({ "revision": both })).await;
    assert_eq!(beyond.status, 403, "{}", beyond.text());
    assert!(!beyond.text().contains("us-a"), "{}", beyond.text());
    assert_eq!(undo(json!({ "key": "eu-a" })).await.status, 200);
    assert_eq!(limited.get("/v1/kv/notes/eu-a").await.text(), "2");
    assert_eq!(
        told(&history(&admin, "notes", "eu-a").await)[0],
        ("changed", "2", "agents")
    );
    assert_eq!(admin.get("/v1/kv/notes/us-a").await.text(), "3");
    let rows = Request::post("/v1/kv/notes/import?chunk=1", "eu-b 1\nus-b 1\neu-c 1\n");
    let stopped = limited
        .send(rows.field("content-type", "text/plain"))
        .await
        .text();
    let last: Value = serde_json::from_str(stopped.lines().last().expect("a line")).expect("JSON");
    assert_eq!(
        (&last["applied"], &last["problem"]["status"]),
        (&json!(1), &json!(403)),
        "{last}"
    );
    assert_eq!(admin.get("/v1/kv/notes/eu-c").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_each_key_is_what_its_past_says() {
    let mut proxy = proxy().await;
    for round in 0..3 {
        let admin = proxy.admin();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let address = proxy.admin_address;
                let token = std::fs::read_to_string(proxy.file("data/admin.token"));
                let token = token.expect("a token").trim().to_owned();
                tokio::spawn(async move {
                    for n in 0_u64.. {
                        let path = format!("/v1/kv/notes/k{writer}-{}", n % 3);
                        let request = Request::new("PUT", &path)
                            .field("authorization", &format!("Bearer {token}"))
                            .body(format!("{round} {n}"));
                        // The proxy is gone.
                        if request.try_send(address).await.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        eventually("some writes", async || {
            let listed = admin.get("/v1/kv").await.json();
            let revision = listed["revision"].as_u64().expect("a revision");
            (revision > (round + 1) * 40).then_some(())
        })
        .await;
        proxy.kill().await;
        for writer in writers {
            writer.await.expect("it ended");
        }
        proxy.start_again().await;
        let admin = proxy.admin();
        let listed = admin.get("/v1/kv/notes").await.json();
        let entries = listed["entries"].as_array().expect("a list");
        assert_eq!(entries.len(), 12);
        for entry in entries {
            let key = entry["key"].as_str().expect("a key");
            let rows = history(&admin, "notes", key).await;
            assert_eq!(rows[0]["value"], entry["value"], "{key}");
            assert_eq!(rows[0]["revision"], entry["revision"], "{key}");
            assert!(rows.len() <= 4);
        }
    }
}
