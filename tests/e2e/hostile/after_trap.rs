//! What becomes of an instance that trapped, and of a version that does so again and again.

use super::guest::Guest;
use super::proxy_with;
use crate::harness::client::KeptAlive;
use crate::harness::proxy::{BY_HEADER, PATIENT};
use crate::harness::{Request, TestProxy, eventually, fixture, sha256};

#[tokio::test]
async fn an_instance_that_trapped_is_never_used_again() {
    let (proxy, _upstream) = proxy_with("deadline = \"2s\"", "").await;
    // Replies with 200 and the number of its calls, and traps at the third one.
    let guest = Guest {
        items: r#"(data (i32.const 256) "\02\00\00\00\c8\00") (global $calls (mut i32) (i32.const 0))"#,
        route: r#"
          (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
          (i32.store16 (i32.const 260) (i32.add (i32.const 200) (global.get $calls)))
          (if (i32.eq (global.get $calls) (i32.const 3)) (then unreachable))"#,
        ..Guest::default()
    };
    proxy.admin().push_ok("hostile", guest.build()).await;
    // On one connection, so that one worker has all of them.
    let mut client = KeptAlive::connect(proxy.address).await.expect("connected");
    let mut statuses = Vec::new();
    for _ in 0..9 {
        let answer = client.send(Request::get("/hostile")).await;
        statuses.push(answer.expect("answered").status);
    }
    assert_eq!(statuses, [201, 202, 503].repeat(3));
    super::counted(&proxy, "trap", 3.0).await;
}

#[tokio::test]
async fn a_version_with_too_many_traps_in_ten_seconds_is_failing_and_taken_back() {
    let breaker =
        "\n[plugins.router.guard]\nwindow = \"10s\"\nmin_calls = 1\nerror_rate = 1\ntraps = 3\n";
    let proxy = TestProxy::start(&format!("{BY_HEADER}{PATIENT}{breaker}")).await;
    let admin = proxy.admin();
    let good = admin.push_ok("router", fixture("version-a")).await;
    let bad = admin.push_ok("router", fixture("trap")).await;
    for _ in 0..4 {
        assert_eq!(proxy.get("/", &[("x-trap", "1")]).await.status, 503);
    }
    let plugin = eventually("the version is failing", async || {
        let plugin = admin.plugin("router").await;
        plugin["failing"][0].is_object().then_some(plugin)
    })
    .await;
    assert_eq!(plugin["active"], good.as_str());
    assert_eq!(plugin["failing"][0]["version"], bad.as_str());
    assert_eq!(sha256(&fixture("trap")), bad);
    let reason = plugin["failing"][0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("4 traps of"), "{reason}");
    assert_eq!(proxy.get("/", &[("x-trap", "1")]).await.status, 404);
}
