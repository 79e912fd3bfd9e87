//! What the commands require of what they write, as the admin API takes it.

use super::kv_operations::with_notes;
use crate::harness::TestProxy;
use serde_json::{Value, json};

/// A proxy whose bucket of notes has a key `n` with the value 1, at revision 1.
async fn with_one() -> TestProxy {
    let proxy = TestProxy::start(&with_notes()).await;
    proxy.kv(&["set", "notes", "n=1"]).await.ok();
    proxy
}

#[tokio::test]
async fn a_key_is_counted_and_renewed_only_as_it_is_required_to_be() {
    let proxy = with_one().await;
    for (arguments, code, said) in [
        (
            &["incr", "notes", "n", "--if-revision", "7"][..],
            1,
            "entry is at revision 1, expected 7: it was changed since",
        ),
        (
            &["incr", "notes", "n", "--if-absent"],
            1,
            "it exists already",
        ),
        (
            &["incr", "notes", "n", "--if-revision", "0"],
            1,
            "it exists already",
        ),
        (
            &["set", "notes", "n=2", "--if-revision", "0"],
            1,
            "it exists already",
        ),
        (
            &["touch", "notes", "n", "--ttl", "1h", "--if-revision", "7"],
            1,
            "expected 7: it was changed since",
        ),
        (
            &["touch", "notes", "n", "--ttl", "1h", "--if-revision", "0"],
            2,
            "a key that does not exist",
        ),
        (
            &[
                "touch",
                "notes",
                "n",
                "m",
                "--ttl",
                "1h",
                "--if-revision",
                "1",
            ],
            2,
            "exactly one KEY",
        ),
        (
            &["del", "notes", "n", "--if-revision", "0"],
            2,
            "a key that does not exist",
        ),
    ] {
        proxy.kv(arguments).await.refused(code, said);
    }
    let touch = ["touch", "notes", "n", "--ttl", "1h", "--if-revision", "1"];
    let dry = proxy.kv(&[&touch[..], &["--dry-run"]].concat()).await.ok();
    assert!(dry.contains("would be renewed; nothing changed"), "{dry}");
    let done = proxy.kv(&touch).await.ok();
    assert!(done.contains("n renewed   revision 1   ends 20"), "{done}");
    let incr = ["incr", "notes", "n", "4", "--if-revision", "1"];
    let dry = proxy.kv(&[&incr[..], &["--dry-run"]].concat()).await.ok();
    assert_eq!(dry, "5\n");
    assert_eq!(proxy.kv(&["get", "notes", "n"]).await.ok(), "1\n");
    assert_eq!(proxy.kv(&incr).await.ok(), "5\n");
    // As in batches, 0 is the revision of what does not exist.
    let new = ["set", "notes", "new=1", "--if-revision", "0"];
    proxy.kv(&new).await.ok();
    let new = ["incr", "notes", "count", "--if-absent", "--json"];
    let new: Value = serde_json::from_str(&proxy.kv(&new).await.ok()).expect("JSON");
    assert_eq!(
        (&new["value"], &new["outcome"]),
        (&json!(1), &json!("created"))
    );
}

#[tokio::test]
async fn a_bucket_is_written_whole_only_as_it_is_required_to_be() {
    let proxy = with_one().await;
    let write = |name: &str, text: &str| std::fs::write(proxy.file(name), text).expect("written");
    write("map", "a 1\n");
    write(
        "batch",
        "{\"bucket\":\"notes\",\"key\":\"b\",\"value\":\"2\"}\n",
    );
    write(
        "several",
        "{\"bucket\":\"notes\",\"key\":\"b\",\"value\":\"2\"}\n{\"bucket\":\"upstreams\",\"key\":\"b\",\"value\":null}\n",
    );
    write(
        "own",
        "{\"bucket\":\"notes\",\"key\":\"n\",\"value\":\"2\",\"if_revision\":9}\n",
    );
    let late = "bucket \"notes\": it is at revision 1, expected 7: it was changed since";
    for (arguments, code, said) in [
        (
            &["import", "notes", "map", "--if-revision", "7"][..],
            1,
            late,
        ),
        (&["batch", "batch", "--if-revision", "7"], 1, late),
        (
            &["import", "notes", "map", "--if-revision", "0"],
            1,
            "expected it to hold no key",
        ),
        (
            &[
                "import",
                "notes",
                "map",
                "--if-revision",
                "1",
                "--chunk",
                "5",
            ],
            2,
            "cannot be used with",
        ),
        (
            &["batch", "several", "--if-revision", "1"],
            2,
            "is that of one bucket",
        ),
        (
            &["batch", "own", "--if-revision", "1"],
            1,
            "key \"n\": entry is at revision 1 (412)",
        ),
    ] {
        proxy.kv(arguments).await.refused(code, said);
    }
    let import = ["import", "notes", "map", "--if-revision", "1"];
    proxy.kv(&import).await.ok();
    let batch = ["batch", "batch", "--if-revision", "2"];
    proxy.kv(&batch).await.ok();
    assert_eq!(proxy.kv(&["export", "notes"]).await.ok(), "a 1\nb 2\nn 1\n");
}
