//! What a plugin says that nobody may act on.

use super::guest::Guest;
use super::{counted, proxy, serves};
use crate::harness::fixture;

#[tokio::test]
async fn no_text_that_is_not_an_address_is_dialled() {
    let (proxy, upstream) = proxy().await;
    proxy
        .admin()
        .push_ok("hostile", fixture("bad-decisions"))
        .await;
    let (own, admin) = (proxy.address.port(), proxy.admin_address.port());
    let port = upstream.port();
    let addresses = [
        "localhost".to_owned(),
        ":80".into(),
        format!("http://127.0.0.1:{port}/"),
        format!("127.0.0.1:{port}/path"),
        format!("127.0.0.1:{port}?query"),
        format!("127.0.0.1:{port}#part"),
        format!("127.0.0.1:{port},127.0.0.1:{port}"),
        format!("user:secret@127.0.0.1:{port}"),
        format!("127.0.0.1\t:{port}"),
        format!("127.0.0.1:+{port}"),
        format!("127.0.0.1:{port}0000"),
        "127.0.0.1:-1".into(),
        format!("[127.0.0.1]:{port}"),
        format!("[::1:{port}"),
        format!("[::1%lo]:{port}"),
        format!("%31%32%37.0.0.1:{port}"),
        "unix:/tmp/socket".into(),
        format!("*:{port}"),
        // Other ways to write our own addresses.
        format!("2130706433:{admin}"),
        format!("0x7f000001:{admin}"),
        format!("127.1:{admin}"),
        format!("0177.0.0.1:{own}"),
        format!("LOCALHOST:{admin}"),
        format!("localhost.:{admin}"),
        format!("[::ffff:7f00:1]:{admin}"),
        format!("[::]:{own}"),
        "169.254.169.254:80".into(),
        "[::ffff:169.254.169.254]:80".into(),
    ];
    let mut wrong = Vec::new();
    for address in &addresses {
        let fields = [("x-bad", "address-given"), ("x-address", address.as_str())];
        let status = proxy.get("/hostile", &fields).await.status;
        if status != 502 {
            wrong.push(format!("{address}: {status}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(upstream.connections(), 0);
    serves(&proxy, &upstream).await;
}

#[tokio::test]
async fn two_hundred_thousand_header_edits_are_a_failed_call() {
    let (proxy, upstream) = proxy().await;
    // Forward (1) to an address; of its edits `request-set` has 200,000 pairs of one name and one value.
    let guest = Guest {
        items: r#"
          (data (i32.const 256) "\01\00\00\00" "\01\00\00\00" "\00\04\00\00\0c\00\00\00"
            "\00\00\00\00\00\00\00\00" "\00\00\01\00\40\0d\03\00" "\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00")
          (data (i32.const 1024) "127.0.0.1:80") (data (i32.const 1040) "x-a1")
          (func $fill (local $at i32) (local.set $at (i32.const 65536))
            (loop
              (i32.store (local.get $at) (i32.const 1040))
              (i32.store offset=4 (local.get $at) (i32.const 3))
              (i32.store offset=8 (local.get $at) (i32.const 1043))
              (i32.store offset=12 (local.get $at) (i32.const 1))
              (br_if 0 (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (i32.const 3265536)))))"#,
        route: "(call $fill)",
        pages: 60,
        ..Guest::default()
    };
    proxy.admin().push_ok("hostile", guest.build()).await;
    for _ in 0..3 {
        let answer = proxy.get("/hostile", &[]).await;
        assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
        serves(&proxy, &upstream).await;
    }
    let line = proxy
        .access_line("the failed call", |line| line["path"] == "/hostile")
        .await;
    let error = line["error"].as_str().expect("an error");
    assert!(!error.contains("connect"), "{line}");
}

#[tokio::test]
async fn a_string_that_is_no_text_is_a_failed_call() {
    let (proxy, upstream) = proxy().await;
    // An address of two bytes that are not UTF-8; one outside of memory.
    for place in [r#"\00\04\00\00\02\00\00\00"#, r#"\f0\ff\ff\ff\20\00\00\00"#] {
        let decision = format!(
            r#"(data (i32.const 256) "\00\00\00\00\01\00\00\00{place}") (data (i32.const 1024) "\ff\fe")"#
        );
        let guest = Guest {
            items: &decision,
            ..Guest::default()
        };
        proxy.admin().push_ok("hostile", guest.build()).await;
        assert_eq!(proxy.get("/hostile", &[]).await.status, 503, "{place}");
        serves(&proxy, &upstream).await;
    }
    counted(&proxy, "trap", 2.0).await;
}
