//! What a file to import is: found by itself, or told; and what nobody meant is not written.

use super::kv_operations::with_notes;
use crate::harness::{Request, TestProxy};

/// A proxy with a bucket of bytes, and these files beside it.
async fn with_files(files: &[(&str, &str)]) -> TestProxy {
    let proxy = TestProxy::start(&with_notes()).await;
    for (name, text) in files {
        std::fs::write(proxy.file(name), text).expect("written");
    }
    proxy
}

#[tokio::test]
async fn what_an_export_writes_an_import_reads_when_it_is_told_so() {
    let proxy = with_files(&[("first", "[a] 1\nkey 2\n{b} 3\n")]).await;
    let set = ["import", "notes", "first", "--format", "lines"];
    proxy.kv(&set).await.ok();
    let lines = proxy.kv(&["export", "notes"]).await.ok();
    assert_eq!(lines, "[a] 1\nkey 2\n{b} 3\n");
    for format in ["lines", "json", "ndjson", "csv"] {
        proxy
            .kv(&["export", "notes", format, "--format", format])
            .await
            .ok();
        proxy.kv(&["del", "notes", "[a]", "key", "{b}"]).await.ok();
        let import = ["import", "notes", format, "--format", format];
        let done = proxy.kv(&import).await.ok();
        assert!(done.starts_with("notes: 3 added"), "{format}: {done}");
        assert_eq!(proxy.kv(&["export", "notes"]).await.ok(), lines, "{format}");
    }
    // Of lines that begin as JSON, nobody knows what they are.
    let guess = proxy.kv(&["import", "notes", "lines"]).await;
    guess.refused(3, "--format lines");
}

/// Each of these was written, with exit code 0: as a key `key`, as keys `key` and `val`, as keys `key,` and `id1,`, and as keys
/// that begin with `{"key":`.
#[tokio::test]
async fn an_import_that_would_write_keys_nobody_meant_is_refused() {
    let proxy = with_files(&[
        ("short.ndjson", "{\"key\":\"n1\"}\n"),
        ("other.ndjson", "{\"key\":\"n1\",\"val\":\"x\"}\n"),
        ("sheet.csv", "key, value\nid1, 127.0.0.1\n"),
        ("bare.csv", "id1,127.0.0.1\nid2,127.0.0.2\n"),
        ("pairs", "id1=a\nid2=b\n"),
        ("noted.ndjson", "# a\n{\"key\": \"n1\", \"value\": \"x\"}\n"),
    ])
    .await;
    for (file, said) in [
        ("short.ndjson", "has `key` and no `value`"),
        ("other.ndjson", "has `key` and no `value`"),
        ("sheet.csv", "give --format csv"),
        ("bare.csv", "give --format csv"),
        ("pairs", "--format says what the file is"),
    ] {
        let refused = proxy.kv(&["import", "notes", file]).await;
        refused.refused(3, said);
    }
    assert_eq!(proxy.kv(&["export", "notes"]).await.ok(), "");
    proxy.kv(&["import", "notes", "noted.ndjson"]).await.ok();
    let map = ["import", "notes", "short.ndjson", "--format", "json"];
    proxy.kv(&map).await.ok();
    assert_eq!(proxy.kv(&["export", "notes"]).await.ok(), "key n1\nn1 x\n");
}

/// The mark became part of the first key, and nobody sees it there.
#[tokio::test]
async fn a_mark_of_the_byte_order_becomes_part_of_no_key() {
    let proxy = with_files(&[
        ("lines", "\u{feff}id1 a\n"),
        ("lines.json", "\u{feff}{\"key\":\"id2\",\"value\":\"b\"}\n"),
        ("haproxy", "\u{feff}id3 c\n"),
        (
            "batch",
            "\u{feff}{\"bucket\":\"notes\",\"key\":\"id4\",\"value\":\"d\"}\n",
        ),
    ])
    .await;
    for arguments in [
        &["import", "notes", "lines"][..],
        &["import", "notes", "lines.json"],
        &["import", "notes", "haproxy", "--format", "haproxy-map"],
        &["batch", "batch"],
    ] {
        proxy.kv(arguments).await.ok();
    }
    for (content_type, body) in [
        ("text/plain", "\u{feff}id5 e\n"),
        ("text/csv", "\u{feff}key,value\nid6,f\n"),
        (
            "application/x-ndjson",
            "\u{feff}{\"key\":\"id7\",\"value\":\"g\"}",
        ),
    ] {
        let sent = Request::post("/v1/kv/notes/import", body).field("content-type", content_type);
        let answer = proxy.admin().send(sent).await;
        assert_eq!(answer.status, 200, "{content_type}: {}", answer.text());
    }
    let all = proxy.kv(&["export", "notes"]).await.ok();
    assert_eq!(all, "id1 a\nid2 b\nid3 c\nid4 d\nid5 e\nid6 f\nid7 g\n");
}

#[tokio::test]
async fn an_export_that_does_not_fit_names_each_format_that_does() {
    let proxy = with_files(&[]).await;
    proxy.kv(&["set", "notes", "a b=x"]).await.ok();
    let lines = proxy.kv(&["export", "notes"]).await;
    lines.refused(
        1,
        "does not fit this format: give --format ndjson or csv (422)",
    );
    proxy.admin().put("/v1/kv/notes/a%20b", &b"\xff"[..]).await;
    for format in ["lines", "csv"] {
        let refused = proxy.kv(&["export", "notes", "--format", format]).await;
        refused.refused(1, "does not fit this format: give --format ndjson (422)");
    }
}

#[tokio::test]
async fn a_bad_line_of_json_is_told_with_its_own_number_and_no_other() {
    let good = "{\"key\":\"a\",\"value\":\"1\"}\n";
    let proxy = with_files(&[
        (
            "field",
            &format!("{good}{{\"key\":\"b\",\"value\":\"2\",\"x\":1}}\n"),
        ),
        (
            "ttl",
            &format!("{good}{{\"key\":\"b\",\"value\":\"2\",\"ttl\":\"30s\"}}\n"),
        ),
    ])
    .await;
    for (file, said) in [
        ("field", "line 2: unknown field `x`, expected one of"),
        (
            "ttl",
            "line 2: unknown field `ttl`: an import says when an entry ends, in `expires_at`",
        ),
    ] {
        let refused = proxy.kv(&["import", "notes", file]).await;
        refused.refused(3, said);
        assert!(!refused.stderr.contains("at line 1"), "{}", refused.stderr);
    }
}
