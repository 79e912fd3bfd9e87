//! The commands for keys that end, count, and are watched.

use super::kv_operations::with_notes;
use crate::harness::proxy::{Ended, command, run_with};
use crate::harness::{Setup, TestProxy, eventually};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// A proxy whose admin API is a Unix socket: at the same place after a restart.
async fn proxy() -> TestProxy {
    let mut setup = Setup::new(with_notes());
    let socket = "[admin]\nlisten = \"unix:admin.sock\"";
    setup.frame = setup
        .frame
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", socket);
    assert!(setup.frame.contains(socket), "{}", setup.frame);
    setup.start().await
}

fn prepared() -> tokio::process::Command {
    let mut command = command();
    command.env("THROWBAR_ADMIN", "unix:admin.sock");
    command
}

async fn kv(proxy: &TestProxy, arguments: &[&str]) -> Ended {
    let arguments: Vec<_> = ["kv"].iter().chain(arguments).copied().collect();
    run_with(prepared(), proxy.dir(), &arguments).await
}

async fn ok(proxy: &TestProxy, arguments: &[&str]) -> String {
    let ended = kv(proxy, arguments).await;
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
    ended.stdout
}

#[tokio::test]
async fn keys_end_are_renewed_counted_and_asked_for() {
    let proxy = proxy().await;
    let set = ok(&proxy, &["set", "notes", "a=1", "b=2", "--ttl", "4s"]).await;
    assert!(
        set.contains("2 added   revision 1   the first ends 20"),
        "{set}"
    );
    let renewed = ok(&proxy, &["touch", "notes", "a", "--ttl", "1h"]).await;
    assert!(renewed.contains("1 renewed"), "{renewed}");
    eventually("the key has ended", async || {
        (kv(&proxy, &["exists", "notes", "b"]).await.code == 1).then_some(())
    })
    .await;
    assert_eq!(ok(&proxy, &["exists", "notes", "a"]).await, "");
    let listed = ok(&proxy, &["ls", "notes", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert!(listed["entries"][0]["expires_at"].is_string(), "{listed}");
    ok(&proxy, &["touch", "notes", "a", "--forever"]).await;
    assert_eq!(ok(&proxy, &["incr", "notes", "a"]).await, "2\n");
    assert_eq!(ok(&proxy, &["incr", "notes", "a", "-5"]).await, "-3\n");
    let json = ok(
        &proxy,
        &["incr", "notes", "new", "7", "--ttl", "1h", "--json"],
    )
    .await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["value"], &json["outcome"]),
        (&json!(7), &json!("created"))
    );
    assert!(json["expires_at"].is_string(), "{json}");
    let revision = ok(&proxy, &["get", "notes", "a", "--json"]).await;
    let revision: Value = serde_json::from_str(&revision).expect("JSON");
    let revision = revision["revision"].to_string();
    let late = kv(&proxy, &["del", "notes", "a", "--if-revision", "1"]).await;
    assert_eq!(late.code, 1, "{}", late.stderr);
    ok(&proxy, &["del", "notes", "a", "--if-revision", &revision]).await;
    let set = ["set", "notes", "once=1", "--if-absent", "--ttl", "1h"];
    let set = ok(&proxy, &set).await;
    assert!(
        set.contains("once set   revision ") && set.contains("   ends 20"),
        "{set}"
    );
    let renewed = ok(&proxy, &["touch", "notes", "once", "--ttl", "2h"]).await;
    assert!(renewed.contains("   ends 20"), "{renewed}");
    let got = ok(&proxy, &["ls", "notes", "--prefix", "once", "--json"]).await;
    assert!(got.contains("expires_at"), "{got}");
    for (arguments, code, said) in [
        (
            &["touch", "notes", "a", "--ttl", "1h"][..],
            1,
            "entry is absent",
        ),
        (&["touch", "notes", "a"], 2, "--ttl"),
        (&["set", "notes", "a=1", "--ttl", "5"], 2, "no unit"),
        (&["incr", "upstreams", "a"], 3, "holds addresses"),
        (&["exists", "none", "a"], 1, "no bucket"),
    ] {
        kv(&proxy, arguments).await.refused(code, said);
    }
}

#[tokio::test]
async fn a_page_of_keys_goes_on_where_the_one_before_ended() {
    let proxy = proxy().await;
    for key in ["a", "b", "c", "d"] {
        ok(&proxy, &["set", "notes", &format!("{key}=1")]).await;
    }
    let page = async |more: &[&str]| -> (Vec<String>, Value) {
        let ls = [&["ls", "notes", "--limit", "2", "--json"], more].concat();
        let page: Value = serde_json::from_str(&ok(&proxy, &ls).await).expect("JSON");
        let entries = page["entries"].as_array().expect("entries").iter();
        let keys = entries.map(|entry| entry["key"].as_str().expect("a key").to_owned());
        (keys.collect(), page["cursor"].clone())
    };
    let (first, cursor) = page(&[]).await;
    assert_eq!(first, ["a", "b"]);
    // What is written between two pages moves nothing.
    ok(&proxy, &["del", "notes", "a"]).await;
    ok(&proxy, &["set", "notes", "aa=1"]).await;
    let cursor = cursor.as_str().expect("there is more");
    assert_eq!(
        page(&["--cursor", cursor]).await,
        (vec!["c".into(), "d".into()], Value::Null)
    );
    let shown = kv(&proxy, &["ls", "notes", "--limit", "2"]).await;
    assert!(shown.stderr.contains("--cursor"), "{}", shown.stderr);
    let without = kv(&proxy, &["ls", "--cursor", "a"]).await;
    assert_eq!(without.code, 2, "{}", without.stderr);
}

#[tokio::test]
async fn a_file_of_writes_is_applied_all_or_none_in_any_buckets() {
    let proxy = proxy().await;
    ok(&proxy, &["set", "notes", "a=1", "b=2"]).await;
    ok(&proxy, &["set", "upstreams", "id1=127.0.0.2"]).await;
    let write = |text: &str| std::fs::write(proxy.file("w.ndjson"), text).expect("written");
    let move_all = "# one moves, one goes, one is counted\n\
        {\"bucket\": \"upstreams\", \"key\": \"id1\", \"value\": \"127.0.0.4\", \"if_revision\": 2}\n\n\
        {\"bucket\": \"notes\", \"key\": \"a\", \"value\": null}\n\
        {\"bucket\": \"notes\", \"key\": \"b\", \"increment\": 40}\n\
        {\"bucket\": \"notes\", \"key\": \"c\", \"value\": \"new\", \"if_revision\": 0}\n";
    write(move_all);
    let dry = ok(&proxy, &["batch", "w.ndjson", "--dry-run"]).await;
    let expected = "1 added, 2 changed, 1 deleted; nothing changed";
    assert!(dry.ends_with(&format!("{expected}\n")), "{dry}");
    assert_eq!(ok(&proxy, &["get", "notes", "b"]).await, "2\n");
    let done = ok(&proxy, &["batch", "w.ndjson"]).await;
    assert_eq!(
        done,
        "notes, upstreams: 1 added, 2 changed, 1 deleted   revision 3\n"
    );
    assert_eq!(ok(&proxy, &["get", "notes", "b"]).await, "42\n");
    assert_eq!(kv(&proxy, &["exists", "notes", "a"]).await.code, 1);
    let object = r#"{"writes": {"notes": {"set": {"d": "4"}, "delete": ["c"]}}}"#;
    write(object);
    let done = ok(&proxy, &["batch", "w.ndjson", "--json"]).await;
    let done: Value = serde_json::from_str(&done).expect("JSON");
    assert_eq!((&done["created"], &done["deleted"]), (&json!(1), &json!(1)));
    for (text, code, said) in [
        (
            move_all,
            1,
            "w.ndjson, line 2: bucket \"upstreams\", key \"id1\": entry is at revision 3",
        ),
        (
            "{\"bucket\": \"upstreams\", \"key\": \"x\", \"value\": \"no address!\"}",
            3,
            "w.ndjson, line 1: ",
        ),
        (
            "\n{\"bucket\": \"notes\", \"key\": \"x\"}",
            3,
            "w.ndjson, line 2: missing field `value`",
        ),
        (
            "{\"bucket\": \"none\", \"key\": \"x\", \"value\": \"\"}",
            1,
            "no bucket \"none\"",
        ),
        (
            "{\n\"writes\": {\"notes\": {\"sett\": {}}}\n}",
            3,
            "w.ndjson: bucket \"notes\": unknown field `sett`, expected one of `set`, ",
        ),
        ("", 3, "w.ndjson: has no write"),
    ] {
        write(text);
        let refused = kv(&proxy, &["batch", "w.ndjson"]).await;
        assert_eq!(refused.code, code, "{text}: {}", refused.stderr);
        assert!(refused.stderr.contains(said), "{text}: {}", refused.stderr);
    }
    let mut piped = prepared()
        .current_dir(proxy.dir())
        .args(["kv", "batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command under test runs");
    let mut stdin = piped.stdin.take().expect("piped");
    let line = b"{\"bucket\": \"notes\", \"key\": \"e\", \"value\": \"5\"}\n";
    stdin.write_all(line).await.expect("taken");
    drop(stdin);
    let ended = crate::harness::soon("the end", piped.wait_with_output()).await;
    assert!(ended.expect("it ended").status.success());
    assert_eq!(ok(&proxy, &["get", "notes", "e"]).await, "5\n");
}

#[tokio::test]
async fn a_watch_goes_on_after_the_proxy_was_killed() {
    let mut proxy = proxy().await;
    ok(&proxy, &["set", "notes", "a=1"]).await;
    let mut watch = prepared()
        .current_dir(proxy.dir())
        .args(["kv", "watch", "notes", "--since", "0", "--count", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command under test runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = crate::harness::soon("a line", lines.next_line()).await;
        line.expect("readable").expect("a line")
    };
    assert_eq!(next().await, "1 put a 1");
    proxy.kill().await;
    let mut asides = BufReader::new(watch.stderr.take().expect("piped")).lines();
    let aside = crate::harness::soon("what it says", asides.next_line()).await;
    let aside = aside.expect("readable").expect("a line");
    assert!(aside.contains("trying to go on"), "{aside}");
    proxy.start_again().await;
    ok(&proxy, &["set", "notes", "b=x y"]).await;
    assert_eq!(next().await, "2 put b x y");
    ok(&proxy, &["del", "notes", "a"]).await;
    assert_eq!(next().await, "3 delete a");
    let status = crate::harness::soon("the end", watch.wait()).await;
    assert!(status.expect("it ended").success());
    // The log of the second process begins where that did.
    let gone = kv(&proxy, &["watch", "notes", "--since", "0"]).await;
    assert_eq!(gone.code, 1, "{}", gone.stderr);
    assert!(gone.stderr.contains("no longer kept"), "{}", gone.stderr);
}

#[tokio::test]
async fn what_is_there_twice_or_not_yet_is_refused_with_both_places() {
    let proxy = proxy().await;
    let write = |name: &str, text: &str| std::fs::write(proxy.file(name), text).expect("written");
    write("lines.txt", "a 1\nb 2\n\na 3\n");
    write("object.json", "{\"a\": \"1\", \"b\": \"2\", \"a\": \"3\"}");
    write(
        "lines.ndjson",
        "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"a\",\"value\":\"2\"}\n",
    );
    write("wide.csv", "key,value\na,1,2\n");
    write("narrow.csv", "key,value,note\na,1\n");
    write("long.txt", &"x".repeat(3_000_000));
    let long = format!(
        "line 1: \"{}…\" (3000000 bytes): expected a key",
        "x".repeat(80)
    );
    for (arguments, code, said) in [
        (&["set", "notes", "a=1", "a=2"][..], 2, "as a=1 and a=2"),
        (
            &["import", "notes", "lines.txt"],
            3,
            "line 4: key \"a\" is on line 1 already",
        ),
        (
            &["import", "notes", "lines.txt", "--chunk", "10"],
            3,
            "is on line 1 already",
        ),
        (
            &["import", "notes", "lines.ndjson"],
            3,
            "line 2: key \"a\" is on line 1 already",
        ),
        (
            &["import", "notes", "object.json"],
            3,
            "twice, as entries 1 and 3",
        ),
        (
            &["import", "notes", "wide.csv", "--format", "csv"],
            3,
            "3 columns, expected 2",
        ),
        (
            &["import", "notes", "narrow.csv", "--format", "csv"],
            3,
            "2 columns, expected 3",
        ),
        (&["import", "notes", "long.txt"], 3, &long),
        (
            &["import", "notes", "none.txt"],
            3,
            "none.txt: No such file",
        ),
        (&["import", "notes", "data"], 3, "is a directory"),
    ] {
        let refused = kv(&proxy, arguments).await;
        let said_it = &refused.stderr[..refused.stderr.len().min(600)];
        assert_eq!(refused.code, code, "{arguments:?}: {said_it}");
        assert!(refused.stderr.contains(said), "{arguments:?}: {said_it}");
        assert!(refused.stderr.len() < 1_000, "{arguments:?}");
    }
    assert_eq!(ok(&proxy, &["export", "notes"]).await, "");
}

#[tokio::test]
async fn a_long_value_is_cut_where_keys_are_listed() {
    let proxy = proxy().await;
    std::fs::write(
        proxy.file("long.txt"),
        format!("a {}\n", "v".repeat(120_000)),
    )
    .expect("written");
    ok(&proxy, &["import", "notes", "long.txt"]).await;
    let listed = ok(&proxy, &["ls", "notes"]).await;
    let cut = format!("{}… (120,000 bytes)", "v".repeat(60));
    assert!(
        listed.contains(&cut) && listed.len() < 1_000,
        "{} bytes",
        listed.len()
    );
}

#[tokio::test]
async fn what_is_refused_is_told_in_words_of_the_command_line() {
    let proxy = proxy().await;
    ok(&proxy, &["set", "notes", "id1=1"]).await;
    assert!(!ok(&proxy, &["ls", "notes"]).await.contains("ENDS"));
    ok(&proxy, &["set", "notes", "short=1", "--ttl", "1h"]).await;
    let listed = ok(&proxy, &["ls", "notes"]).await;
    assert!(listed.contains("REVISION  ENDS\n"), "{listed}");
    let got = ok(&proxy, &["get", "notes", "short", "--json"]).await;
    let got: Value = serde_json::from_str(&got).expect("JSON");
    let ends = got["expires_at"].as_str().expect("a time");
    assert!(listed.contains(ends), "{listed}");
    for (arguments, code, said) in [
        (
            &["set", "notes", "id1=2", "--if-revision", "77"][..],
            1,
            "bucket \"notes\", key \"id1\": entry is at revision 1, expected 77: it was changed since",
        ),
        (
            &["set", "notes", "id1=2", "--if-absent"],
            1,
            "at revision 1, it exists already",
        ),
        (&["set", "notes", "a=1", "--ttl", "0s"], 2, "1ms to 3650d"),
        (
            &["set", "notes", "a=1", "--ttl", "9999d"],
            2,
            "1ms to 3650d",
        ),
        (&["touch", "notes", "id1"], 2, "--forever"),
        (&["undo", "notes"], 2, "--revision"),
        (&["watch", "notes", "--since", "x"], 2, "since"),
        (&["export", "notes"], 1, "or --without-deadlines"),
    ] {
        let refused = kv(&proxy, arguments).await;
        assert_eq!(refused.code, code, "{arguments:?}: {}", refused.stderr);
        assert!(
            refused.stderr.contains(said),
            "{arguments:?}: {}",
            refused.stderr
        );
    }
    let prefixed = ok(&proxy, &["export", "notes", "--prefix", "id"]).await;
    assert_eq!(prefixed, "id1 1\n");
}

/// An admin API that answers each request with a text, and hangs up or not.
async fn answering(text: &'static str, hangs_up: bool) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = socket.read(&mut head).await;
            let _ = socket.write_all(text.as_bytes()).await;
            if !hangs_up {
                open.push(socket);
            }
        }
    });
    address
}

#[tokio::test]
async fn an_import_without_an_answer_is_not_said_to_have_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("map.txt"), "a 1\n").expect("written");
    let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                 20\r\n{\"applied\":19000,\"line\":19000} \n\r\n";
    for (text, chunk, said) in [
        (
            "",
            false,
            "not known whether it was written: see throwbar kv ls notes",
        ),
        (begun, true, "at least 19,000 rows stay written"),
    ] {
        let mut command = command();
        command.env("THROWBAR_ADMIN", answering(text, true).await);
        let mut arguments = vec!["kv", "import", "notes", "map.txt"];
        if chunk {
            arguments.extend(["--chunk", "1000"]);
        }
        let ended = run_with(command, dir.path(), &arguments).await;
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("map.txt"), "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
}
